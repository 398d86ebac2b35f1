"""To and from SAELens' files: `cfg.json` and `sae_weights.safetensors` in its inference layout. What they mean: `saelens_files.py`.

`save` takes an SAE in inference form (`to_inference`, then `normalization.build_into`), so that whoever loads the files applies nothing
more. An affine normalisation is in the weights. Layer norm is named in cfg.json: SAELens applies it in `encode`, undoes it in `decode`.
Format facts: sae-lens 6.54.12 reads `dtype`, `architecture` and `metadata.sae_lens_version` as mandatory, and tensor names exactly; it
ignores the checksums that both files carry.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from sae_core.activations.files import load_tensors, save_tensors
from sae_core.config.run import ARCHITECTURES
from sae_core.errors import ConfigError, DamagedFileError, UnknownNameError, border
from sae_core.files import read_json, write_json
from sae_core.sae.base import SparseAutoencoder
from sae_core.sae.saelens_files import Description, checked_tensors, describe, folded, shown

FORMAT_VERSION = "6.54.12"
"""SAELens version whose format is written; below 6.0.0 its loader drops the metadata."""

CFG = "cfg.json"
WEIGHTS = "sae_weights.safetensors"
_LFS_POINTER = b"version https://git-lfs"
"""What a file of a repository begins with where Git LFS has not fetched its content."""


def save(sae: SparseAutoencoder, directory: Path, metadata: dict[str, Any]) -> None:
    """Write an SAE in inference form.

    Args:
        metadata: `model_name`, `hook_name`, `context_size`, ... and anything else worth keeping; SAELens accepts any key.

    Raises:
        ConfigError: the SAE is in a training form that SAELens does not know, or a weight is not finite.
    """
    if sae.saelens_architecture not in (None, sae.config.architecture):
        raise ConfigError(
            f"an SAE must be in inference form to be saved, but got architecture={sae.config.architecture!r}. "
            "Save what its `to_inference()` returns."
        )
    sae.check_finite()
    directory.mkdir(parents=True, exist_ok=True)
    cfg = {
        "architecture": sae.saelens_architecture or sae.config.architecture,
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "layer_norm" if sae.layer_norm else "none",
        # SAELens flattens (heads, d_head) itself, when told to; our activations are flat already.
        "reshape_activations": "hook_z" if str(metadata.get("hook_name", "")).endswith("hook_z") else "none",
        **sae.saelens_fields(),
        "metadata": {"sae_lens_version": FORMAT_VERSION, **metadata},
    }
    save_tensors(directory / WEIGHTS, {name: tensor.detach().float().cpu().contiguous() for name, tensor in sae.state_dict().items()})
    write_json(directory / CFG, cfg)


def load(directory: str | Path) -> SparseAutoencoder:
    """Read an SAE in inference form, from `save` or from SAELens, of any version. See `saelens_files`.

    Raises:
        ConfigError: files are missing, damaged, or say something that is not known here. Nothing else is raised.
    """
    with border(
        f"an SAE directory must hold {CFG} and {WEIGHTS} as SAELens writes them, but got {shown(str(directory))}",
        "Put back a copy, or export the SAE again.",
    ):
        folder = Path(directory)
        _check_there(folder)
        return _built(_read_cfg(folder / CFG), _read_weights(folder / WEIGHTS), folder)


def _check_there(folder: Path) -> None:
    if not folder.is_dir():
        what = "is a file. Give the directory that it is in" if folder.is_file() else "does not exist. Correct the path"
        raise ConfigError(f"an SAE must be a directory, but got {str(folder)!r}, which {what}.")
    for name in (CFG, WEIGHTS):
        path = folder / name
        if not path.is_file():
            raise ConfigError(f"an SAE directory must hold {CFG} and {WEIGHTS}, but {str(folder)!r} has no {name}. Export the SAE again.")
        with path.open("rb") as file:
            if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
                raise ConfigError(f"an SAE's files must be there themselves, but {str(path)!r} is a Git LFS pointer. Run `git lfs pull`.")


def _read_cfg(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except DamagedFileError as error:
        remedy = "Put back a copy or export the SAE again; if you changed the file on purpose, remove its key `checksum`."
        raise ConfigError(str(DamagedFileError.of(path, error.__cause__ or error, remedy))) from error


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        return load_tensors(path)[0]
    except DamagedFileError as error:
        remedy = "Put back a copy or export the SAE again."
        raise ConfigError(str(DamagedFileError.of(path, error.__cause__ or error, remedy))) from error


def _built(cfg: dict[str, Any], tensors: dict[str, Tensor], folder: Path) -> SparseAutoencoder:
    about = describe(cfg, repr(str(folder / CFG)), _fields_of)
    path = repr(str(folder / WEIGHTS))
    # Before an SAE of the sizes in cfg.json is made: they may be anything.
    W_dec = tensors.get("W_dec")
    if W_dec is None or tuple(W_dec.shape) != (about.d_sae, about.d_in):
        got = "none" if W_dec is None else f"one of shape {list(W_dec.shape)}"
        raise ConfigError(
            f"'W_dec' of an SAE must have the shape [d_sae, d_in] of its cfg.json, but got {got} in {path} and "
            f"d_sae={shown(about.d_sae)}, d_in={shown(about.d_in)}. Put back a copy, or export the SAE again."
        )
    shapes = {name: tuple(tensor.shape) for name, tensor in _empty(about, about.fields, folder).state_dict().items()}
    state, fields = folded(checked_tensors(tensors, shapes, about, path), about)
    sae = _empty(about, fields, folder)
    sae.load_state_dict(state, strict=True, assign=True)
    sae.layer_norm = about.layer_norm
    sae.float().eval().check_finite()
    return sae


def _fields_of(architecture: str) -> Collection[str]:
    """Fields of the config of an architecture that only we know."""
    if architecture not in ARCHITECTURES:
        raise UnknownNameError.of(
            "`architecture` of an SAE's cfg.json", architecture, ARCHITECTURES, "Transcoders and others are not read."
        )
    cls = ARCHITECTURES[architecture]
    if cls.saelens_architecture is not None:
        raise ConfigError(
            f"an SAE must be in inference form to be loaded, but got architecture={architecture!r}, which is for training: at inference "
            f"it is {cls.saelens_architecture!r}. Export what training ends with, not a checkpoint."
        )
    return list(cls.Config.model_fields)


def _empty(about: Description, fields: dict[str, Any], folder: Path) -> SparseAutoencoder:
    """An SAE without weights."""
    cls = ARCHITECTURES[about.architecture]
    try:
        config = cls.Config.model_validate(fields)
    except ValidationError as error:
        lines = []
        for detail in error.errors():
            name = ".".join(str(part) for part in detail["loc"]) or about.architecture
            rule = str(detail.get("ctx", {}).get("error") or detail["msg"])
            lines.append(f"`{name}` of an SAE's cfg.json must be valid, but got {shown(detail['input'])} in {str(folder / CFG)!r}: {rule}.")
        raise ConfigError("\n".join(lines)) from error
    with torch.device("meta"):
        sae: SparseAutoencoder = cls(config, about.d_in)
    return sae
