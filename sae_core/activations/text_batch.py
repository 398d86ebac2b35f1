"""What a KL stage is given of its text: a batch of training tokens in their windows.

Shape letters: N tokens, d_in width of the activations, d_out that of what is reconstructed from them.
"""

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, slots=True)
class TextRows:
    """Some of the tokens of a training shard that count, in the order of its windows, not in that of `ActivationSource.shard`."""

    shard: int
    start: int
    """Number of the first one."""
    stop: int
    """Number of the one after the last."""


@dataclass(frozen=True)
class TextBatch:
    """A batch of training tokens in their windows, for a loss on what the language model makes of reconstructions."""

    x: Float[Tensor, "N d_in"]
    """As `EvalChunk.x`."""
    kl: Callable[[Float[Tensor, "N d_out"]], tuple[Float[Tensor, ""], Float[Tensor, "N d_out"]]]
    """KL(clean || spliced) in nats, mean over the tokens, with these rows in place of `y`; and its gradient with respect to them."""
    target: Float[Tensor, "N d_out"] | None = None
    """As `EvalChunk.target`."""
