"""Folders of Gemma Scope 1 (`params.npz`) and 2 (`config.json`, `params.safetensors`), as plain data.

JumpReLU SAEs that do not subtract b_dec from the input (Lieberum et al. 2024, arXiv:2408.05147). The tensors have the same shapes in a
transcoder: version 2 says so in its config; version 1 has no config, so that only the path can tell.
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
        ConfigError: the tensors are others, or square, or the path says that it is a transcoder.
        Exception: whatever reading what is not such a file raises.
    """
    with ZipFile(directory / FIRST) as arrays:
        tensors = {name.removesuffix(".npy"): _tensor(arrays, name) for name in arrays.namelist()}
    is_transcoder = any("transcoder" in part for part in directory.resolve().parts)
    refuse(
        [f"{FIRST} must be an SAE's, but its path says that it is a transcoder's"] if is_transcoder else [],
        directory,
        "Transcoders are not read; rename the folder if it is an SAE.",
    )
    return _stored(tensors, directory)


def _tensor(arrays: ZipFile, name: str) -> Tensor:
    with arrays.open(name) as file:
        return torch.from_numpy(np.lib.format.read_array(file, allow_pickle=False))


def read_second(directory: Path) -> StoredSAE:
    """Read a folder of Gemma Scope 2.

    Raises:
        ConfigError: it is a transcoder, or no JumpReLU SAE, or the tensors are others or square.
        Exception: whatever reading what is not such a file raises.
    """
    config, tensors = read_json(directory / CONFIG), load_tensors(directory / SECOND)[0]
    problems = []
    if str(config.get("architecture")).replace("_", "").lower() != "jumprelu":
        problems.append(f"`architecture` must be 'jump_relu', but got {config.get('architecture')!r}")
    reads, writes = (config.get(f"hf_hook_point_{side}") for side in ("in", "out"))
    if reads is None or writes not in (None, reads):
        problems.append(f"`hf_hook_point_out` must be `hf_hook_point_in`, else it is a transcoder, but got {writes!r} beside {reads!r}")
    if config.get("affine_connection") or "affine_skip_connection" in tensors:
        problems.append("an SAE must have no affine connection, but got one, as transcoders have")
    refuse(problems, directory, "Read another SAE of the release.")
    return _stored({{"w_enc": "W_enc", "w_dec": "W_dec"}.get(name, name): tensor for name, tensor in tensors.items()}, directory)


def _stored(tensors: dict[str, Tensor], directory: Path) -> StoredSAE:
    """From tensors of SAELens' names."""
    factor = tensors.pop("scaling_factor", None)
    d_in, d_sae = (width(tensors[name]) for name in ("b_dec", "b_enc"))
    check_shapes(
        tensors if factor is None else {**tensors, "scaling_factor": factor},
        {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_in), "b_enc": (d_sae,), "b_dec": (d_in,), "threshold": (d_sae,)}
        | ({} if factor is None else {"scaling_factor": (d_sae,)}),
        directory,
    )
    square = f"an SAE without a config of its shape must have d_sae != d_in, but got both {d_in}, so that W_enc could be either way round"
    refuse([square] if d_in == d_sae else [], directory, "Save it in SAELens' format instead.")
    check_thresholds(tensors["threshold"], directory)
    ours = folded(as_float(tensors), factor=None if factor is None else factor.float(), add_b_dec=True, rescale=False)
    return StoredSAE("jumprelu", {"d_sae": d_sae}, d_in, None, False, ours)
