"""A language model cut at one hook point: read the activations there, or go on from others.

The blocks below a replaced activation need not run again, which is most of the cost of measuring many SAEs on one text.
Shape letters: W windows, T positions in a window, N positions, V vocabulary, d_in width of the hook point, d_model of the residual stream.
"""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_core.activations.language_model.hook_points import HookPlace, reach
from sae_core.activations.language_model.unhooked import FUSED, forward_is, may_fuse_attention, unhooked, use_attention, without_hooks

logger = logging.getLogger(__name__)

RESUME_TOLERANCE = 1e-4
"""Largest difference allowed between going on from the hook point and running the whole model, as a fraction of the largest value. Likewise
for computing logits outside of the model."""
UNHOOKED_TOLERANCE = 1e-5
"""Largest difference allowed between a run without the hooks that are not needed and one with all, as a fraction of the largest value."""
PROBE = (1, 64)
"""Windows and most positions of the made-up text on which the two are compared: on every worker the same, so that all decide alike."""


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


class HookedModel:
    """A TransformerBridge and a hook point with one vector (or one per head) for each position.

    Args:
        bridge: the model, with its weights.
        hook_point: TransformerLens name.
    """

    def __init__(self, bridge: Any, hook_point: str) -> None:
        self._bridge = bridge
        self._hook_point = hook_point
        where = HookPlace.of(hook_point)
        self._is_stream = where.ends_block or where.place in ("hook_resid_pre", "hook_in")
        self._below_hook = f"blocks.{where.layer or 0}.hook_in"
        self._n_skipped = where.n_before
        self._blocks_return_tuples = False
        self._resume_verified = False
        self._unembedding: Unembedding | None = None
        self._unembedding_verified = False
        self._unhooked: list[Any] | None = None

    @property
    def d_vocab(self) -> int:
        """Size of the vocabulary."""
        return int(self._bridge.cfg.d_vocab)

    @torch.no_grad()
    def read(self, tokens: Int[Tensor, "W T"]) -> Float[Tensor, "W T d_in"]:
        """Activations at the hook point; the model stops there. Heads are concatenated."""
        with self._running():
            return reach(self._bridge, self._hook_point, tokens).flatten(2)

    @torch.no_grad()
    def run(self, tokens: Int[Tensor, "W T"]) -> tuple[CleanRun, Float[Tensor, "W T V"]]:
        """Run the whole model unchanged; its logits come second.

        Within `before_unembedding`, what enters the unembedding comes in place of logits, here and in `run_from`.
        """
        seen: dict[str, Tensor] = {}

        def save(name: str) -> Any:
            return lambda value, hook: seen.__setitem__(name, value)

        hooks = [(self._hook_point, save("x"))]
        if self._n_skipped and not self._is_stream:
            hooks.append((self._below_hook, save("below")))
        with self._running(), self._watching_blocks():
            logits = self._bridge.run_with_hooks(tokens, fwd_hooks=hooks, return_type="logits", use_cache=False)
        return CleanRun(tokens, seen["x"].flatten(2), seen.get("below")), logits

    @torch.no_grad()
    def run_from(self, clean: CleanRun, x: Float[Tensor, "W T d_in"]) -> Float[Tensor, "W T V"]:
        """Logits with `x` at the hook point. Only blocks that `x` reaches are run.

        The first call is compared with a run of the whole model; where they differ, whole runs are used from then on.
        """
        x = x.to(clean.x.dtype)
        with self._running():
            if not self._n_skipped:
                return self._replaced(clean.tokens, x)
            logits: Tensor
            with self._skipping_blocks(x if clean.below is None else clean.below):
                if self._is_stream:
                    logits = self._bridge(clean.tokens, return_type="logits", use_cache=False)
                else:
                    logits = self._replaced(clean.tokens, x)
            if not self._resume_verified:
                logits = self._verified(logits, self._replaced(clean.tokens, x))
            return logits

    @torch.no_grad()
    def unembedding(self, tokens: Int[Tensor, "W T"]) -> Unembedding | None:
        """The last layer, where logits are no more than that (capped ones are more) and float32.

        In half precision None, too: logits are then rounded to three digits, and what is computed around them is not what the model says.

        Args:
            tokens: the first call compares logits made outside of the model with the model's own on these.
        """
        if not self._unembedding_verified:
            self._unembedding_verified = True
            self._unembedding = self._verified_unembedding(tokens)
        return self._unembedding

    def _verified_unembedding(self, tokens: Tensor) -> Unembedding | None:
        bridge = self._bridge
        W_U, bias = bridge.unembed.W_U.detach(), bridge.unembed.b_U.detach()
        if W_U.dtype != torch.float32:
            return None
        found = Unembedding(W_U, bias if bool(bias.any()) else None)
        with self.before_unembedding():
            h = bridge(tokens, return_type="logits", use_cache=False)
        logits = bridge(tokens, return_type="logits", use_cache=False).flatten(0, 1)
        if h.shape[-1] != len(W_U) or not _difference(found.logits(h.flatten(0, 1)), logits) <= RESUME_TOLERANCE:
            logger.info("logits of this model are not a linear function of what enters the unembedding: they are computed by the model.")
            return None
        return found

    def _replaced(self, tokens: Tensor, x: Tensor) -> Tensor:
        """Logits of the whole model with `x` at the hook point."""

        def replace(value: Tensor, hook: Any) -> Tensor:
            return x.view(value.shape)

        hooks = [(self._hook_point, replace)]
        logits: Tensor = self._bridge.run_with_hooks(tokens, fwd_hooks=hooks, return_type="logits", use_cache=False)
        return logits

    def _verified(self, resumed: Tensor, whole: Tensor) -> Tensor:
        difference = _difference(resumed, whole)
        self._resume_verified = True
        if difference > RESUME_TOLERANCE:
            logger.warning(
                "going on from %s differs from running the whole model by %.1e of the largest value: whole runs are used, which is slower.",
                self._hook_point,
                difference,
            )
            self._n_skipped = 0
        return whole

    @contextmanager
    def _running(self) -> Iterator[None]:
        """Run what no wanted hook lies in without hooks, if that gives the same."""
        if self._unhooked is None:
            self._unhooked = self._verified_unhooked()
        with unhooked(self._unhooked):
            yield

    def _verified_unhooked(self) -> list[Any]:
        """The components to run without hooks: none where made-up text shows a difference, or in half precision, which hides one."""
        if next(self._bridge.parameters()).dtype != torch.float32:
            return []
        hook_points = {self._hook_point, self._below_hook} if self._n_skipped else {self._hook_point}
        components = without_hooks(self._bridge, hook_points)
        before, hooked = self._bridge.original_model.config._attn_implementation, self._probe()
        if may_fuse_attention(self._bridge, components):
            use_attention(self._bridge, FUSED)
        with unhooked(components):
            differences = [_difference(value, reference) for value, reference in zip(self._probe(), hooked, strict=False)]
        if len(differences) == len(hooked) and all(one <= UNHOOKED_TOLERANCE for one in differences):
            return components
        logger.info(
            "runs of this model without the hooks that are not needed differ by %s of the largest value: all are kept.", differences
        )
        use_attention(self._bridge, before)
        return []

    def _probe(self) -> list[Tensor]:
        """Logits of made-up text, and the activations at the hook point if it is reached."""
        seen: list[Tensor] = []
        n_windows, length = PROBE
        tokens = torch.randint(self.d_vocab, (n_windows, min(length, self._bridge.cfg.n_ctx)), generator=torch.Generator().manual_seed(0))
        hooks = [(self._hook_point, lambda value, hook: seen.append(value))]
        device = self._bridge.unembed.W_U.device
        seen.insert(0, self._bridge.run_with_hooks(tokens.to(device), fwd_hooks=hooks, return_type="logits", use_cache=False))
        return seen

    @contextmanager
    def before_unembedding(self) -> Iterator[None]:
        """Let runs return what enters the unembedding, [W, T, d_model], in place of logits."""
        with forward_is(self._bridge.unembed, lambda h, **kwargs: h):
            yield

    @contextmanager
    def _watching_blocks(self) -> Iterator[None]:
        """Note whether blocks return tuples: that differs between model families."""
        if not self._n_skipped:
            yield
            return

        def note(block: Any, inputs: Any, output: Any) -> None:
            self._blocks_return_tuples = isinstance(output, tuple)

        handle = self._bridge.blocks[self._n_skipped - 1].register_forward_hook(note)
        try:
            yield
        finally:
            handle.remove()

    @contextmanager
    def _skipping_blocks(self, stream: Tensor) -> Iterator[None]:
        """Let the blocks below the cut return `stream` at once."""
        output = (stream, None) if self._blocks_return_tuples else stream
        with ExitStack() as stack:
            for block in list(self._bridge.blocks)[: self._n_skipped]:
                stack.enter_context(forward_is(block, lambda *args, **kwargs: output))
            yield


def _difference(value: Tensor, reference: Tensor) -> float:
    """Largest difference, as a fraction of the largest value of `reference`."""
    return float((value - reference).abs().max() / reference.abs().max())
