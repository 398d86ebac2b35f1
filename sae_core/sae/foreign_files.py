"""What the readers of other programs' files share: shapes of a file before they are believed, thresholds, and what is refused."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from sae_core.errors import ConfigError


def check_shapes(tensors: Mapping[str, Tensor], wanted: Mapping[str, tuple[int, ...]], directory: Path) -> None:
    """Compare names and shapes with those of the format.

    Raises:
        ConfigError: a tensor is missing, of another shape, not a number, or not known.
    """
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if found != dict(wanted):
        raise ConfigError(
            f"tensors of an SAE's file must have the names and shapes {dict(wanted)}, but got {found} in {str(directory)!r}. "
            "Put back a copy, or correct the config beside it."
        )
    if bad := [name for name, tensor in tensors.items() if not bool(tensor.float().isfinite().all())]:
        raise ConfigError(f"tensors of an SAE must be finite, but got others in {bad} of {str(directory)!r}. Put back a copy.")


def check_thresholds(threshold: Tensor, directory: Path) -> None:
    """Raise a ConfigError for a threshold below 0: every latent with a positive pre-activation would be active."""
    if bool((threshold < 0).any()):
        raise ConfigError(
            f"thresholds of an SAE must be at least 0, but got {float(threshold.min()):g} in {str(directory)!r}: dictionary_learning "
            "saves -1 where none was measured (runs of up to 1000 steps). Measure it, write it into the file, and read the SAE again."
        )


def refuse(problems: list[str], directory: Path, remedy: str) -> None:
    """Raise one ConfigError with every problem on a line of its own, if there is one."""
    if problems:
        raise ConfigError("\n".join(f"{problem}, in {str(directory)!r}. {remedy}" for problem in problems))


def width(tensor: Tensor) -> int:
    """Length of a vector, or 0 where it is none, so that a comparison of shapes says what is wrong."""
    return tensor.shape[0] if tensor.ndim == 1 else 0


def as_float(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Float32 and contiguous: a view of a transposed matrix would be slower in every product."""
    return {name: tensor.to(torch.float32).contiguous() for name, tensor in tensors.items()}
