"""Hook points: where in a model they are, what is there, and whether an SAE can be trained and evaluated there.

No library is imported here: a bridge is a TransformerBridge, with or without weights.
"""

import math
import re
import warnings
from dataclasses import dataclass
from typing import Any

import torch

PROBE_WINDOWS, PROBE_POSITIONS = 2, 11
"""Shape of the text that shows the shape at a hook point: sizes that no other dimension of a model is likely to have."""


@dataclass(frozen=True, slots=True)
class HookPlace:
    """Where in a model a hook point is, as its name says."""

    layer: int | None
    """The block; None outside of the blocks."""
    place: str
    """The rest of the name, within the block."""

    @classmethod
    def of(cls, hook_point: str) -> "HookPlace":
        in_block = re.fullmatch(r"blocks\.(\d+)\.(.+)", hook_point)
        return cls(int(in_block[1]), in_block[2]) if in_block else cls(None, "")

    @property
    def ends_block(self) -> bool:
        """Whether it is the residual stream that leaves the block."""
        return self.place in ("hook_resid_post", "hook_out")

    @property
    def n_before(self) -> int:
        """Blocks that have ended there."""
        return (self.layer or 0) + self.ends_block


@dataclass(frozen=True, slots=True)
class Probe:
    """What a forward pass showed of a hook point."""

    width: int
    """Of the activations; heads are concatenated. 0 where there is a problem."""
    problem: str
    """Why no SAE can be trained or evaluated there, as the end of a sentence; empty where one can."""


class _Reached(Exception):  # noqa: N818 - not an error: it carries the value out of the model
    def __init__(self, value: torch.Tensor) -> None:
        self.value = value


def reach(bridge: Any, hook_point: str, tokens: torch.Tensor) -> torch.Tensor:
    """The value at `hook_point`, as it is there; nothing above it is run.

    Raises:
        ValueError: the hook point never fires.
    """

    def stop(value: torch.Tensor, hook: Any) -> None:
        raise _Reached(value)

    try:
        bridge.run_with_hooks(tokens, fwd_hooks=[(hook_point, stop)], return_type=None, use_cache=False)
    except _Reached as reached:
        return reached.value
    raise ValueError(f"{hook_point} is not reached by a forward pass.")


def probe(bridge: Any, hook_point: str, n_positions: int = PROBE_POSITIONS) -> Probe:
    """Run a made-up text, with other values put in at the hook point, and see what is there and whether logits depend on it.

    Whether they do, autograd knows, without any values: fake tensors do. Parameters must not require gradients.

    Args:
        n_positions: length of the windows, at most what the model has.
    """
    if _lies_in(bridge.unembed, bridge.hook_dict[hook_point]):
        return Probe(0, "it lies in the unembedding, which no block follows")
    if hook_point.endswith("hook_resid_mid"):
        return Probe(0, "TransformerLens replaces it only on the way into the MLP, and not in the residual stream")
    seen: list[torch.Tensor] = []

    def replace(value: torch.Tensor, hook: Any) -> torch.Tensor:
        seen.append(value)
        return torch.zeros_like(value).requires_grad_() if value.is_floating_point() else value

    tokens = torch.zeros(PROBE_WINDOWS, n_positions, dtype=torch.long)
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TransformerLens warns where it drops what a hook returns; that is found here
        logits = bridge.run_with_hooks(tokens, fwd_hooks=[(hook_point, replace)], return_type="logits", use_cache=False)
    return _judged(seen, logits.requires_grad, n_positions)


def _judged(seen: list[torch.Tensor], decides_logits: bool, n_positions: int) -> Probe:
    """What the values seen at a hook point in one forward pass say of it."""
    if len(seen) != 1:
        return Probe(0, f"a forward pass reaches it {len(seen)} times, not once")
    (value,) = seen
    shape = list(value.shape)
    if not value.is_floating_point():
        return Probe(0, f"its values are {str(value.dtype).removeprefix('torch.')}, not floating-point numbers")
    width = math.prod(shape[2:])
    if len(shape) not in (3, 4) or shape[:2] != [PROBE_WINDOWS, n_positions] or width < 2:
        text = f"{PROBE_WINDOWS} windows of {n_positions} tokens"
        wanted = "[window, position, d_in] with d_in > 1 or [window, position, head, d_head]"
        return Probe(0, f"its values have shape {shape} for {text}, not {wanted}")
    if not decides_logits:
        return Probe(0, "other values put in there change no logit")
    return Probe(width, "")


def _lies_in(component: Any, hook: Any) -> bool:
    return any(module is hook for module in component.modules())
