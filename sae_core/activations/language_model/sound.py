"""Whether what a language model gives can be trained on and scored. What is wrong is blamed on the model, with its place in the text.

Shape letters: W windows, T positions in a window, N tokens that are not special, d_in width of the hook point.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_core.activations.language_model.bridge import ModelConfig
from sae_core.activations.source import NextToken
from sae_core.errors import ConfigError


def check_activations(x: Float[Tensor, "N d_in"], keep: Bool[Tensor, "W T"], model: ModelConfig, part: str, first: int) -> None:
    """Make sure that activations are finite and not all 0.

    Args:
        keep: the positions whose activations these are.
        part: which text, for the message.
        first: number of the first of the windows in it.

    Raises:
        ConfigError: with the first place where they are not.
    """
    where = f"at {model.hook_point} of {model.name!r}"
    if bool(torch.isfinite(x.sum(dtype=torch.float64))):  # in float64 it is finite if and only if every value is
        if len(x) and not bool(x.any()):
            raise ConfigError(
                f"activations must not all be 0, but got 0 in each of {len(x)} rows from {part} window {first} on, {where}. "
                "Choose another hook point, or check the model's weights."
            )
        return
    row = int((~x.isfinite().all(dim=1)).nonzero()[0])
    window, position = keep.nonzero()[row].tolist()
    value = float(x[row][~x[row].isfinite()][0])
    raise ConfigError(
        f"activations must be finite, but got {value} in {part} window {first + window}, position {position}, {where}. {_remedy(model)}"
    )


def check_logits(logits: Float[Tensor, "W T V"], model: ModelConfig) -> None:
    """Make sure that logits of the unchanged model are finite.

    Raises:
        ConfigError: they are not.
    """
    broken = (~logits.isfinite()).nonzero()
    if len(broken):
        value = float(logits[tuple(broken[0].tolist())])
        raise ConfigError(
            f"logits of the language model must be finite, but got {value} at position {int(broken[0][1])} of the first training window, "
            f"from {model.name!r}. {_remedy(model)}"
        )


def check_predictions(clean: NextToken, model: ModelConfig, where: str) -> None:
    """Make sure that the logits of the unchanged model are finite.

    Raises:
        ConfigError: they are not.
    """
    broken = clean.ce[~clean.ce.isfinite()]
    if len(broken):
        raise ConfigError(
            f"logits of the language model must be finite, but got a cross-entropy of {float(broken[0])} at {len(broken)} of "
            f"{len(clean.ce)} positions of {where}, from {model.name!r}. {_remedy(model)}"
        )


def _remedy(model: ModelConfig) -> str:
    if model.dtype == "float32":
        return "Check the model's weights."
    return f"Set `model.dtype: float32`: {model.dtype} may be too narrow for this model."
