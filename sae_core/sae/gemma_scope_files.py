"""Folders of Gemma Scope 1 (`params.npz`) and 2 (`config.json`, `params.safetensors`), as plain data.

JumpReLU SAEs that do not subtract b_dec from the input (Lieberum et al. 2024, arXiv:2408.05147), and transcoders, whose tensors have the
same names and shapes: version 2 says so in its config; version 1 has no config, so that only the path can tell. A path that says neither
is an SAE's.
"""

from pathlib import Path
from zipfile import ZipFile

import numpy as np
import torch
from torch import Tensor

from sae_core.activations.files import load_tensors
from sae_core.files import read_json
from sae_core.sae.foreign_files import as_float, check_shapes, check_thresholds, refuse, width
from sae_core.sae.saelens_files import StoredSAE, folded

FIRST = "params.npz"
SECOND = "params.safetensors"
CONFIG = "config.json"


def read_first(directory: Path) -> StoredSAE:
    """Read a folder of Gemma Scope 1.

    Raises:
        ConfigError: the tensors are others, or square, or the path says that it is the SAE of embeddings.
        Exception: whatever reading what is not such a file raises.
    """
    with ZipFile(directory / FIRST) as arrays:
        tensors = {name.removesuffix(".npy"): _tensor(arrays, name) for name in arrays.namelist()}
    names = [part for part in (*directory.parts, *directory.resolve().parts) if part != "/"]
    if any(part == "embedding" for part in names):
        scale = "an SAE must be for activations as the model has them, but that of Gemma Scope's embeddings is for embeddings / sqrt(d_in)"
        refuse([scale], directory, "Read another SAE of the release; rename the folder if it is another.")
    return _stored(tensors, directory, is_transcoder=any("transcoder" in part for part in names))


def _tensor(arrays: ZipFile, name: str) -> Tensor:
    with arrays.open(name) as file:
        return torch.from_numpy(np.lib.format.read_array(file, allow_pickle=False))


def read_second(directory: Path) -> StoredSAE:
    """Read a folder of Gemma Scope 2.

    Raises:
        ConfigError: it is no JumpReLU SAE, or one of all layers, or the tensors are others or square.
        Exception: whatever reading what is not such a file raises.
    """
    config, tensors = read_json(directory / CONFIG), load_tensors(directory / SECOND)[0]
    problems = []
    if str(config.get("architecture")).replace("_", "").lower() != "jumprelu":
        problems.append(f"`architecture` must be 'jump_relu', but got {config.get('architecture')!r}")
    reads, writes = (config.get(f"hf_hook_point_{side}") for side in ("in", "out"))
    if not isinstance(reads, str) or not isinstance(writes, str | None):
        problems.append(f"`hf_hook_point_in` and `hf_hook_point_out` must each be one hook point, but got {reads!r} and {writes!r}")
    is_transcoder, skips = writes not in (None, reads), bool(config.get("affine_connection"))
    if skips != ("affine_skip_connection" in tensors) or (skips and not is_transcoder):
        problems.append("`affine_connection` must say whether there is `affine_skip_connection`, which only transcoders may have")
    refuse(problems, directory, "Read another SAE of the release.")
    skip = {"W_skip": tensors.pop("affine_skip_connection").T} if skips else {}  # stored [d_in, d_out]
    renamed = {{"w_enc": "W_enc", "w_dec": "W_dec"}.get(name, name): tensor for name, tensor in tensors.items()}
    return _stored({**renamed, **skip}, directory, is_transcoder=is_transcoder)


def _stored(tensors: dict[str, Tensor], directory: Path, *, is_transcoder: bool) -> StoredSAE:
    """From tensors of SAELens' names."""
    d_out, d_sae = (width(tensors[name]) for name in ("b_dec", "b_enc"))
    d_in = tensors["W_enc"].shape[0] if is_transcoder else d_out
    optional = {"scaling_factor": (d_sae,), "W_skip": (d_out, d_in)}
    wanted = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_out), "b_enc": (d_sae,), "b_dec": (d_out,), "threshold": (d_sae,)}
    check_shapes(tensors, wanted | {name: shape for name, shape in optional.items() if name in tensors}, directory)
    square = f"an SAE without a config of its shape must have d_sae != d_in, but got both {d_in}, so that W_enc could be either way round"
    refuse([square] if d_sae in (d_in, d_out) else [], directory, "Save it in SAELens' format instead.")
    check_thresholds(tensors["threshold"], directory)
    factor = tensors.pop("scaling_factor", None)
    ours = folded(as_float(tensors), factor=None if factor is None else factor.float(), add_b_dec=not is_transcoder, rescale=False)
    skips = {"skip_connection": True} if "W_skip" in tensors else {}
    return StoredSAE("jumprelu", {"d_sae": d_sae, **skips}, d_in, d_out if is_transcoder else None, False, ours)
