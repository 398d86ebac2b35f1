"""A language model cut at one hook point: read the activations there, or resume from others.

The blocks below a replaced activation need not run again, which is most of the cost of measuring many SAEs on one text. A component of a
TransformerBridge does in steps what the model's own module does in one (attention as products, mask and softmax; norms as means and
roots), so that a hook may lie between any two. Where no wanted hook lies within, the module itself runs, and attention is PyTorch's fused
one. Each shortcut is compared once with the plain run, on made-up text that is the same on every worker, and not taken where it differs.
Shape letters: W windows, T positions in a window, N positions, V vocabulary, d_in width of the hook point, d_model of the residual stream.
"""

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_core.activations.language_model.direct import DirectPath, direct_path
from sae_core.activations.language_model.model_spec import HookPoint
from sae_core.watchdog import beat

logger = logging.getLogger(__name__)

RESUME_TOLERANCE = 1e-4
"""Largest difference allowed between resuming at the hook point and running the whole model, as a fraction of the largest value. Likewise
for computing logits outside of the model."""
UNHOOKED_TOLERANCE = 1e-5
"""Largest difference allowed between a run without the hooks that are not needed and one with all, as a fraction of the largest value."""
PROBE_TOKENS = 64
"""Most tokens of the made-up text."""


@dataclass(frozen=True, slots=True)
class CleanRun:
    """What an unchanged run of some windows leaves behind."""

    tokens: Int[Tensor, "W T"]
    x: Float[Tensor, "W T d_in"]
    """Activations at the hook point, in the model's precision."""
    below: Float[Tensor, "W T d_model"] | None
    """Residual stream entering the block of the hook point; None where `x` replaces all of it."""


@dataclass(frozen=True, slots=True)
class Unembedding:
    """The last layer of a model whose logits are h @ W_U + bias."""

    W_U: Float[Tensor, "d_model V"]
    bias: Float[Tensor, " V"] | None
    """None where it is 0, as in most models."""

    def logits(self, h: Float[Tensor, "N d_model"]) -> Float[Tensor, "N V"]:
        """h @ W_U + bias."""
        return h @ self.W_U if self.bias is None else torch.addmm(self.bias, h, self.W_U)


class _Reached(Exception):  # noqa: N818 - not an error: it carries the value out of the model
    def __init__(self, value: Tensor) -> None:
        self.value = value


def activations_at(bridge: Any, hook_point: str, tokens: Int[Tensor, "W T"]) -> Tensor:
    """The value at `hook_point`, as it is there; nothing above it is run.

    Raises:
        ValueError: the hook point never fires.
    """

    def stop(value: Tensor, hook: Any) -> None:
        raise _Reached(value)

    try:
        beat()
        bridge.run_with_hooks(tokens, fwd_hooks=[(hook_point, stop)], return_type=None, use_cache=False)
    except _Reached as reached:
        return reached.value
    raise ValueError(f"{hook_point} is not reached by a forward pass.")


class HookedModel:
    """A TransformerBridge and a hook point with one vector (or one per head) for each position.

    Args:
        bridge: the model, with its weights.
        hook_point: TransformerLens name.
    """

    def __init__(self, bridge: Any, hook_point: str) -> None:
        self._bridge = bridge
        self._hook_point = hook_point
        self._where = HookPoint.of(hook_point)
        self._below = f"blocks.{self._where.layer or 0}.hook_in"

    @property
    def d_vocab(self) -> int:
        """Size of the vocabulary."""
        return int(self._bridge.cfg.d_vocab)

    @torch.no_grad()
    def read(self, tokens: Int[Tensor, "W T"]) -> Float[Tensor, "W T d_in"]:
        """Activations at the hook point; the model stops there. Heads are concatenated."""
        with _unhooked(self._components):
            return activations_at(self._bridge, self._hook_point, tokens).flatten(2).to(tokens.device)

    @torch.no_grad()
    def run(self, tokens: Int[Tensor, "W T"]) -> tuple[CleanRun, Float[Tensor, "W T V"]]:
        """Run the whole model unchanged; its logits come second.

        Within `before_unembedding`, what enters the unembedding comes in place of logits, here and in `run_from`.
        """
        with _unhooked(self._components):
            return self._run(tokens)

    @torch.no_grad()
    def run_from(self, clean: CleanRun, x: Float[Tensor, "W T d_in"]) -> Float[Tensor, "W T V"]:
        """Logits with `x` at the hook point. Only blocks that `x` reaches are run."""
        n_skipped = self._n_skipped
        with _unhooked(self._components):
            return self._run_from(clean, x, n_skipped)

    @torch.no_grad()
    def run_changed(
        self, tokens: Int[Tensor, "W T"], change: Callable[[Float[Tensor, "W T d_in"]], Float[Tensor, "W T d_in"]]
    ) -> Float[Tensor, "W T V"]:
        """Logits with `change(x)` in place of the activations x at the hook point; x is float32, heads concatenated."""

        def replace(value: Tensor, hook: Any) -> Tensor:
            return change(value.flatten(2).float().to(tokens.device)).to(value).view(value.shape)

        with _unhooked(self._components):
            return self._logits(tokens, [(self._hook_point, replace)])

    def direct_path(self, windows: Int[Tensor, "W T"]) -> DirectPath | None:
        """From the hook point straight to the logits, with the scale of the final norm as it is on these windows.

        None where what is at the hook point is not added to the residual stream.
        """
        return direct_path(self._bridge, self._where, windows)

    @contextmanager
    def before_unembedding(self) -> Iterator[None]:
        """Let runs return what enters the unembedding, [W, T, d_model], in place of logits."""
        with _forward_is(self._bridge.unembed, lambda h, **kwargs: h):
            yield

    @cached_property
    @torch.no_grad()
    def unembedding(self) -> Unembedding | None:
        """The last layer, where logits are no more than that (capped ones are more) and float32.

        In half precision None, too: logits are then rounded to three digits, and what is computed around them is not what the model says.
        """
        W_U, bias = (weights.detach().to(self._probe.device) for weights in (self._bridge.unembed.W_U, self._bridge.unembed.b_U))
        if W_U.dtype != torch.float32:
            return None
        unembedding = Unembedding(W_U, bias if bool(bias.any()) else None)
        logits = self._logits(self._probe).flatten(0, 1)
        with self.before_unembedding():
            h = self._logits(self._probe).flatten(0, 1)
        if h.shape[-1] == len(W_U) and _agree([unembedding.logits(h)], [logits], RESUME_TOLERANCE):
            return unembedding
        logger.info("logits of this model are not a linear function of what enters the unembedding: the model computes them.")
        return None

    @cached_property
    @torch.no_grad()
    def _components(self) -> list[Any]:
        """The components to run without hooks: none where that makes a difference, or in half precision, which hides one."""
        bridge = self._bridge
        if next(bridge.parameters()).dtype != torch.float32:
            return []
        hook_points = [self._hook_point, self._below] if self._where.n_before else [self._hook_point]
        components = _without_hooks(bridge, hook_points)
        hooked = self._values()
        if _may_fuse_attention(bridge, components):
            _use_attention(bridge, "sdpa")
        with _unhooked(components):
            values = self._values()
        if len(values) == len(hooked) and _agree(values, hooked, UNHOOKED_TOLERANCE):
            return components
        logger.info("runs of this model without the hooks that are not needed differ: all hooks are kept, which is slower.")
        _use_attention(bridge, "eager")
        return []

    @cached_property
    @torch.no_grad()
    def _n_skipped(self) -> int:
        """Blocks that a resumed run leaves out; 0 where that makes a difference."""
        with _unhooked(self._components):
            clean, _ = self._run(self._probe)
            x = clean.x * 0.5 + 0.1
            resumed, whole = self._run_from(clean, x, self._where.n_before), self._run_from(clean, x, 0)
        if _agree([resumed], [whole], RESUME_TOLERANCE):
            return self._where.n_before
        logger.warning("resuming at %s differs from running the full model: full runs are used, which is slower.", self._hook_point)
        return 0

    @cached_property
    def _blocks_return_tuples(self) -> bool:
        """Whether they do: that differs between model families."""
        outputs: list[Any] = []
        handle = self._bridge.blocks[0].register_forward_hook(lambda block, inputs, output: outputs.append(output))
        try:
            self._logits(self._probe)
        finally:
            handle.remove()
        return isinstance(outputs[0], tuple)

    @cached_property
    def _probe(self) -> Int[Tensor, "1 T"]:
        """A made-up text."""
        length = min(PROBE_TOKENS, self._bridge.cfg.n_ctx)
        tokens = torch.randint(self.d_vocab, (1, length), generator=torch.Generator().manual_seed(0))
        return tokens.to(next(self._bridge.parameters()).device)  # of the embedding, where the model is spread over GPUs

    def _values(self) -> list[Tensor]:
        """Logits of the made-up text, and the activations at the hook point if it is reached."""
        seen: list[Tensor] = []
        logits = self._logits(self._probe, [(self._hook_point, lambda value, hook: seen.append(value))])
        return [logits, *seen]

    def _logits(self, tokens: Tensor, hooks: Sequence[tuple[str, Callable[..., Any]]] = ()) -> Tensor:
        beat()
        logits: Tensor = self._bridge.run_with_hooks(tokens, fwd_hooks=list(hooks), return_type="logits", use_cache=False)
        return logits

    def _run(self, tokens: Tensor) -> tuple[CleanRun, Tensor]:
        seen: dict[str, Tensor] = {}
        names = [self._hook_point, self._below] if self._where.n_before and not self._where.is_stream else [self._hook_point]

        def save(value: Tensor, hook: Any, name: str) -> None:
            seen[name] = value.to(tokens.device)

        logits = self._logits(tokens, [(name, lambda value, hook, name=name: save(value, hook, name)) for name in names])
        return CleanRun(tokens, seen[self._hook_point].flatten(2), seen.get(self._below) if len(names) > 1 else None), logits

    def _run_from(self, clean: CleanRun, x: Tensor, n_skipped: int) -> Tensor:
        x = x.to(clean.x.dtype)
        replace = [(self._hook_point, lambda value, hook: x.view(value.shape).to(value.device))]
        if not n_skipped:
            return self._logits(clean.tokens, replace)
        stream = x if clean.below is None else clean.below
        output = (stream, None) if self._blocks_return_tuples else stream
        with ExitStack() as stack:
            for block in self._bridge.blocks[:n_skipped]:
                stack.enter_context(_forward_is(block, lambda *args, **kwargs: output))
            return self._logits(clean.tokens, () if self._where.is_stream else replace)


def _agree(values: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float) -> bool:
    """Whether values differ by at most this fraction of the largest expected one."""
    pairs = zip(values, expected, strict=True)
    return all(bool((value - reference).abs().max() <= tolerance * reference.abs().max()) for value, reference in pairs)


def _without_hooks(bridge: Any, hook_points: Collection[str]) -> list[Any]:
    """The components of a bridge that none of these hook points lies in; the unembedding is not among them."""
    from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent

    hooks = {id(bridge.hook_dict[name]) for name in hook_points}
    components = [one for one in bridge.modules() if isinstance(one, GeneralizedComponent) and one.original_component is not None]
    return [one for one in components if one is not bridge.unembed and not any(id(part) in hooks for part in one.modules())]


@contextmanager
def _unhooked(components: Collection[Any]) -> Iterator[None]:
    """Let these components of a bridge run as the modules they are made of: no hook within fires."""
    with ExitStack() as stack:
        for one in components:
            stack.enter_context(_forward_is(one, one.original_component))
        yield


@contextmanager
def _forward_is(component: Any, forward: Callable[..., Any]) -> Iterator[None]:
    """Replace what a component of a bridge computes."""
    # Not by assignment: a bridge component passes that on to the module it wraps.
    own = vars(component)
    before = own.get("forward")
    own["forward"] = forward
    try:
        yield
    finally:
        if before is None:
            del own["forward"]
        else:
            own["forward"] = before


def _may_fuse_attention(bridge: Any, components: Collection[Any]) -> bool:
    """Whether all attention of the model runs in its own modules, and is no more than the fused one computes."""
    from transformer_lens.model_bridge.generalized_components.attention import AttentionBridge

    in_modules = {id(one) for one in components}
    # Hugging Face leaves a cap on attention scores out of the fused one without a word.
    is_capped = getattr(bridge.original_model.config, "attn_logit_softcapping", None) is not None
    return not is_capped and all(id(one) in in_modules for one in bridge.modules() if isinstance(one, AttentionBridge))


def _use_attention(bridge: Any, implementation: str) -> None:
    """Choose Hugging Face's implementation of attention; a model that does not have it keeps its own."""
    try:
        bridge.original_model.set_attn_implementation(implementation)
    except ValueError:
        return
