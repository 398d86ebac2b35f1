"""What can be known of a language model without its weights: its sizes, its hook points, and which of them can have an SAE."""

import logging
import math
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from sae_core.activations.language_model import loading
from sae_core.errors import ConfigError, UnknownNameError, reason_of

logger = logging.getLogger(__name__)

PROBE_WINDOWS, PROBE_POSITIONS = 2, 11
"""Shape of the text that shows the shape at a hook point: sizes that no other dimension of a model is likely to have."""
ADDED_TO_STREAM = frozenset({"hook_attn_out", "attn.hook_out", "attn.o.hook_out", "hook_mlp_out", "mlp.hook_out", "mlp.out.hook_out"})
"""Places in a block whose value is added to the residual stream."""


@dataclass(frozen=True, slots=True)
class HookPoint:
    """Where in a model a hook point is, as its name says."""

    layer: int | None
    """The block; None outside of the blocks."""
    place: str
    """The rest of the name, within the block."""

    @classmethod
    def of(cls, name: str) -> "HookPoint":
        in_block = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
        return cls(int(in_block[1]), in_block[2]) if in_block else cls(None, "")

    @property
    def ends_block(self) -> bool:
        """Whether it is the residual stream that leaves the block."""
        return self.place in ("hook_resid_post", "hook_out")

    @property
    def is_stream(self) -> bool:
        """Whether it is the residual stream that enters or leaves a block."""
        return self.ends_block or self.place in ("hook_resid_pre", "hook_in")

    @property
    def adds_to_stream(self) -> bool:
        """Whether it is the output of attention or of an MLP, which is added to the residual stream."""
        return self.place in ADDED_TO_STREAM

    @property
    def n_before(self) -> int:
        """Blocks that have ended there."""
        return (self.layer or 0) + self.ends_block


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A language model without its weights."""

    hook_points: tuple[str, ...]
    n_ctx: int
    """Positions the model has."""
    d_vocab: int
    bridge: Any
    """A TransformerBridge without weights."""
    tracing: Callable[[], AbstractContextManager[Any]]
    """Context in which `bridge` can be run."""

    def d_in(self, hook_point: str) -> int:
        """Width of the activations at `hook_point`; heads are concatenated.

        Raises:
            UnknownNameError: the model has no such hook point.
            ConfigError: the hook point has no vector per position, or cannot be read or replaced.
        """
        if hook_point not in self.hook_points:
            raise UnknownNameError.of("`model.hook_point`", hook_point, self.hook_points)
        try:
            with self.tracing():
                return self._width(hook_point)
        except Exception as error:  # the model itself can be run: `model_spec` has tried
            problem = str(error) if type(error) is ValueError else reason_of(error)
            raise ConfigError(
                "`model.hook_point` must be one with a vector per position that can be read and replaced, but got "
                f"{hook_point!r}: {problem}. Choose 'blocks.{HookPoint.of(hook_point).layer or 0}.hook_resid_post' or another."
            ) from error

    @property
    def n_weights(self) -> int:
        """Numbers in the weights of the model."""
        return sum(weight.numel() for weight in self.bridge.original_model.parameters())

    def flops_below(self, hook_point: str) -> float:
        """Floating-point operations per token of the blocks up to the hook point: two per weight."""
        layer = HookPoint.of(hook_point).layer
        blocks = () if layer is None else self.bridge.blocks[: layer + 1]
        # Beside a fused projection, TransformerLens has its three parts.
        weights = (weight for block in blocks for name, weight in block.named_parameters() if ".qkv." not in name)
        return 2.0 * sum(weight.numel() for weight in weights)

    def run(self, hooks: list[tuple[str, Callable[..., Any]]]) -> torch.Tensor:
        """Logits of a made-up text."""
        tokens = torch.zeros(PROBE_WINDOWS, min(PROBE_POSITIONS, self.n_ctx), dtype=torch.long)
        logits: torch.Tensor = self.bridge.run_with_hooks(tokens, fwd_hooks=hooks, return_type="logits", use_cache=False)
        return logits

    def _width(self, hook_point: str) -> int:
        """Put other values in at the hook point, and see what is there and whether logits depend on it; if not, a ValueError says so.

        Whether they do, autograd knows, without any values: fake tensors do. Parameters must not require gradients.
        """
        if any(module is self.bridge.hook_dict[hook_point] for module in self.bridge.unembed.modules()):
            raise ValueError("it lies in the unembedding, which no block follows")
        if hook_point.endswith("hook_resid_mid"):
            raise ValueError("TransformerLens replaces it only on the way into the MLP, and not in the residual stream")
        seen: list[torch.Tensor] = []

        def replace(value: torch.Tensor, hook: Any) -> torch.Tensor:
            seen.append(value)
            return torch.zeros_like(value).requires_grad_() if value.is_floating_point() else value

        with torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TransformerLens warns where it drops what a hook returns; that is found here
            logits = self.run([(hook_point, replace)])
        if len(seen) != 1:
            raise ValueError(f"a forward pass reaches it {len(seen)} times, not once")
        shape, dtype = list(seen[0].shape), seen[0].dtype
        width = math.prod(shape[2:])
        if not dtype.is_floating_point:
            raise ValueError(f"its values are {str(dtype).removeprefix('torch.')}, not floating-point numbers")
        if len(shape) not in (3, 4) or shape[:2] != list(logits.shape[:2]) or width < 2:
            raise ValueError(
                f"its values have shape {shape} for {logits.shape[0]} windows of {logits.shape[1]} tokens, not [window, position, d_in] "
                "with d_in > 1 or [window, position, head, d_head]"
            )
        if not logits.requires_grad:
            raise ValueError("other values put in there change no logit")
        return width


def model_spec(name: str) -> ModelSpec:
    """Build a model without reading its weights: about a second and no memory, however large it is.

    Some models cannot be built of tensors without content: they are built of random weights, in full size.

    Raises:
        ConfigError: no such model, none that TransformerLens knows, or none that predicts the next token.
    """
    try:
        return _spec(name, _faking())
    except ConfigError as error:
        if error.__cause__ is None or isinstance(error.__cause__, OSError):  # it is not there, or no model
            raise
        reason = error
    # Either it needs real tensors, or something is wrong with it: then this raises again, and says what.
    spec = _spec(name, nullcontext)
    logger.info("%s cannot be built without weights (%s): it is built of random ones.", name, reason_of(reason))
    return spec


def _spec(name: str, tracing: Callable[[], AbstractContextManager[Any]]) -> ModelSpec:
    with tracing():
        bridge = loading.boot(name, dtype=torch.float32, device="cpu", load_weights=False)
    architectures = bridge.original_model.config.architectures or []
    if any("MaskedLM" in str(architecture) for architecture in architectures):
        raise ConfigError(
            f"`model.name` must be a model that predicts the next token from those before it, but got {architectures[0]!r} in {name!r}. "
            "Choose a causal language model."
        )
    with loading.reading(name):
        bridge.requires_grad_(False)
        spec = ModelSpec(tuple(bridge.hook_dict), int(bridge.cfg.n_ctx), int(bridge.cfg.d_vocab), bridge, tracing)
        if min(spec.n_ctx, spec.d_vocab) < 2 or getattr(bridge, "unembed", None) is None:
            raise ValueError(f"it has {spec.n_ctx} positions and {spec.d_vocab} tokens, and is no model of the next token")
        with tracing(), torch.no_grad():
            spec.run([])
    return spec


def _faking() -> Callable[[], AbstractContextManager[Any]]:
    """The context in which tensors have shapes and no content."""
    # Not the meta device, which TransformerLens refuses where it splits fused QKV weights. PyTorch documents no other import of this mode.
    from torch._subclasses.fake_tensor import FakeTensorMode

    fake_mode = FakeTensorMode()
    log = logging.getLogger(FakeTensorMode.__module__)

    @contextmanager
    def faking() -> Iterator[None]:
        level = log.level
        log.setLevel(logging.CRITICAL)  # what it cannot do it logs, with a traceback, and raises: that is handled here
        try:
            with fake_mode:
                yield
        finally:
            log.setLevel(level)

    return faking
