"""Folders of dictionary_learning, `config.json` and `ae.pt`, as plain data (saprmarks/dictionary_learning, commit 60ec6bf).

`trainer.dict_class` says what the tensors mean: TopK and BatchTopK have the same names. Saved latents are in the model's units
already, whatever `normalize_activations` was. `k` comes from the tensors: the config has the one that an annealed run began with.
Before December 2024 the tensors of a TopK SAE had no threshold, and before that no k, which is then the config's.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae_core.errors import ConfigError, UnknownNameError
from sae_core.files import read_json
from sae_core.sae.foreign_files import as_float, check_shapes, check_thresholds, refuse
from sae_core.sae.saelens_files import StoredSAE, folded

CONFIG = "config.json"
WEIGHTS = "ae.pt"

_LINEAR = ("encoder.weight", "encoder.bias", "decoder.weight")
_MATRICES = ("W_enc", "b_enc", "W_dec", "b_dec")
_CLASSES: dict[str, tuple[str, tuple[str, ...], bool]] = {
    "AutoEncoder": ("standard", (*_LINEAR, "bias"), True),
    "AutoEncoderNew": ("standard", (*_LINEAR, "decoder.bias"), False),
    "GatedAutoEncoder": ("gated", ("encoder.weight", "decoder.weight", "decoder_bias", "gate_bias", "mag_bias", "r_mag"), True),
    "JumpReluAutoEncoder": ("jumprelu", (*_MATRICES, "threshold"), False),
    "AutoEncoderTopK": ("topk", (*_LINEAR, "b_dec", "k", "threshold"), True),
    "BatchTopKSAE": ("jumprelu", (*_LINEAR, "b_dec", "k", "threshold"), True),
    "MatryoshkaBatchTopKSAE": ("jumprelu", (*_MATRICES, "k", "threshold", "group_sizes"), True),
}
"""`dict_class` -> architecture here, tensors of the file, whether b_dec is subtracted from the input.

JumpReluAutoEncoder subtracts b_dec where an attribute says so, which is not saved: read is its default."""
_OURS = {
    "encoder.weight": "W_enc",
    "decoder.weight": "W_dec",
    "encoder.bias": "b_enc",
    "bias": "b_dec",
    "decoder.bias": "b_dec",
    "decoder_bias": "b_dec",
    "gate_bias": "b_gate",
    "mag_bias": "b_mag",
}
_NO_WEIGHTS = ("k", "group_sizes")


def read(directory: Path) -> StoredSAE:
    """Read a folder of dictionary_learning.

    Raises:
        ConfigError: its class is not known, it is the backup of a run that goes on, or its tensors are others than its class has.
        Exception: whatever reading what is not such a file raises.
    """
    trainer, buffer = (read_json(directory / CONFIG).get(part) or {} for part in ("trainer", "buffer"))
    kind = str(trainer.get("dict_class"))
    if kind not in _CLASSES:
        raise UnknownNameError.of(f"`trainer.dict_class` in {str(directory / CONFIG)!r}", kind, _CLASSES, "Others are not read.")
    architecture, names, subtracts = _CLASSES[kind]
    loaded = torch.load(directory / WEIGHTS, map_location="cpu", weights_only=True)
    if "optimizer" in loaded and "ae" in loaded:
        raise ConfigError(
            f"{WEIGHTS} must be the SAE of a finished run, but {str(directory)!r} has the backup of a running one, in units of "
            "training. Let it finish, or use a file of its `checkpoints` as ae.pt."
        )
    tensors = {name: value if isinstance(value, Tensor) else torch.tensor(value) for name, value in loaded.items()}
    d_in, d_sae = (trainer.get(key) for key in ("activation_dim", "dict_size"))
    if kind == "AutoEncoderTopK":
        tensors = {"threshold": torch.tensor(-1.0), **({} if "k" in tensors else {"k": torch.tensor(trainer["k"])}), **tensors}
    problems = []
    if not isinstance(d_in, int) or not isinstance(d_sae, int):
        problems.append(f"`activation_dim` and `dict_size` of {CONFIG} must be whole numbers, but got {d_in!r} and {d_sae!r}")
    if buffer.get("io") not in (None, "in", "out"):
        problems.append(f"`buffer.io` must be 'in' or 'out', as of an SAE, but got {buffer['io']!r}: transcoders are not read")
    refuse(problems, directory, "Correct it, or read another SAE.")
    assert isinstance(d_in, int) and isinstance(d_sae, int)
    check_shapes(tensors, _shapes(kind, names, d_in, d_sae, tensors), directory)
    fields: dict[str, Any] = {"d_sae": d_sae}
    if architecture == "topk":
        fields |= {"k": int(tensors["k"]), "rescale_acts_by_decoder_norm": False}
    if architecture == "jumprelu":
        check_thresholds(tensors["threshold"], directory)
        tensors["threshold"] = tensors["threshold"].expand(d_sae)
    elif architecture == "topk":
        del tensors["threshold"]
    ours = {
        _OURS.get(name, name): tensor.T if name.endswith(".weight") else tensor
        for name, tensor in tensors.items()
        if name not in _NO_WEIGHTS
    }
    return StoredSAE(architecture, fields, d_in, None, False, folded(as_float(ours), factor=None, add_b_dec=not subtracts, rescale=False))


def _shapes(kind: str, names: tuple[str, ...], d_in: int, d_sae: int, tensors: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Names and shapes that the class writes; those of `nn.Linear` are [out, in]."""
    of_input = {"bias": (d_in,), "decoder.bias": (d_in,), "decoder_bias": (d_in,), "b_dec": (d_in,)}
    matrices = {"encoder.weight": (d_sae, d_in), "decoder.weight": (d_in, d_sae), "W_enc": (d_in, d_sae), "W_dec": (d_sae, d_in)}
    groups = tuple(tensors["group_sizes"].shape) if "group_sizes" in tensors else ()
    others = {"k": (), "group_sizes": groups, "threshold": (d_sae,) if kind == "JumpReluAutoEncoder" else ()}
    known = {**of_input, **matrices, **others}
    return {name: known.get(name, (d_sae,)) for name in names}
