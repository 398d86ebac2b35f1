"""A plain Hugging Face model, read and changed at places in it, or resumed from there.

The blocks below a replaced activation need not run again, which is most of the cost of measuring many SAEs on one text. Whether that
makes a difference is tried once, on made-up text that is the same on every worker, and not done where it does. The model is run up to
what enters the unembedding; logits are computed from that, for some positions at a time, so that a large vocabulary takes little memory.
Shape letters: W windows, T positions in a window, N positions, V vocabulary, d_in width of the hook point, d_model of the residual stream.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sae_core.activations.language_model.direct import DirectPath, direct_path
from sae_core.activations.language_model.places import Change, Layout, Place, hooked
from sae_core.errors import ConfigError
from sae_core.watchdog import beat

logger = logging.getLogger(__name__)

RESUME_TOLERANCE = 1e-4
"""Largest difference allowed between resuming at the hook point and running the whole model, as a fraction of the largest value. Likewise
for computing logits as a product."""
SUM_TOLERANCE = 2.0
"""Largest difference allowed between what a block returns and the sum that it should be, in units of the precision's epsilon."""
PROBE_TOKENS = 64
"""Most tokens of the made-up text."""


@dataclass(frozen=True, slots=True)
class CleanRun:
    """What an unchanged run of some windows leaves behind at one place."""

    place: Place
    tokens: Int[Tensor, "W T"]
    x: Float[Tensor, "W T d_in"]
    """Activations there, in the model's precision."""
    below: Float[Tensor, "W T d_model"] | None
    """Residual stream entering the block of the place; None where `x` replaces all of it, or no block is left out."""


@dataclass(frozen=True, slots=True)
class Unembedding:
    """The last layer of a model whose logits are h @ W_U + bias."""

    W_U: Float[Tensor, "d_model V"]
    bias: Float[Tensor, " V"] | None
    """None where it is 0, as in most models."""

    def logits(self, h: Float[Tensor, "N d_model"]) -> Float[Tensor, "N V"]:
        """h @ W_U + bias."""
        return h @ self.W_U if self.bias is None else torch.addmm(self.bias, h, self.W_U)


class _Reached(Exception):  # noqa: N818 - not an error: all places are read
    pass


class HookedModel:
    """A language model, and places in it with one vector (or one per head) for each position. All of them are read in one pass.

    Args:
        model: a Hugging Face causal language model, with its weights.
        place: one place, or several.
    """

    def __init__(self, model: Any, layout: Layout, *places: Place) -> None:
        self._model = model
        self._layout = layout
        self.places = places
        self._skipped: dict[Place, int] = {}
        for place in places:
            self._check_sum(place)

    def at(self, places: Sequence[Place]) -> "HookedModel":
        """The same model, at other places."""
        return self if tuple(places) == self.places else HookedModel(self._model, self._layout, *places)

    @property
    def d_vocab(self) -> int:
        """Size of the vocabulary."""
        return int(self._model.get_output_embeddings().weight.shape[0])

    def read(self, tokens: Int[Tensor, "W T"]) -> list[Float[Tensor, "W T d_in"]]:
        """Activations at each place; the model stops when all are read. Heads are concatenated."""
        seen: dict[Place, Tensor] = {}

        def save(place: Place, value: Tensor) -> None:
            seen[place] = value.flatten(2).to(tokens.device)
            if len(seen) == len(set(self.places)):
                raise _Reached

        try:
            self._trunk(tokens, _each(self.places, save))
        except _Reached:
            return [seen[place] for place in self.places]
        raise ValueError(f"a forward pass must reach {[str(place) for place in self.places if place not in seen]}.")

    def run(self, tokens: Int[Tensor, "W T"]) -> tuple[list[CleanRun], Float[Tensor, "W T d_model"]]:
        """Run the model unchanged. What enters the unembedding comes second."""
        seen: dict[Place, Tensor] = {}
        below = {
            place: Place(f"{self._layout.blocks}.{place.layer}", "input") for place in self.places if place.n_before and not place.is_stream
        }

        def save(place: Place, value: Tensor) -> None:
            seen[place] = value.to(tokens.device)

        h = self._trunk(tokens, _each({*self.places, *below.values()}, save))
        runs = [CleanRun(place, tokens, seen[place].flatten(2), seen[below[place]] if place in below else None) for place in self.places]
        return runs, h

    def run_from(self, clean: CleanRun, x: Float[Tensor, "W T d_in"]) -> Float[Tensor, "W T d_model"]:
        """What enters the unembedding with `x` at the place of `clean`. Only blocks that `x` reaches are run.

        It has a gradient where `x` requires one.
        """
        return self.run_from_all([clean], [x])

    def run_from_all(self, cleans: Sequence[CleanRun], xs: Sequence[Float[Tensor, "W T _"]]) -> Float[Tensor, "W T d_model"]:
        """What enters the unembedding with each of `xs` at the place of one of `cleans`, all at once."""
        lowest = min(cleans, key=lambda clean: (clean.place.n_before, not clean.place.is_stream))
        return self._run_from(cleans, xs, lowest, self._n_skipped(lowest.place))

    def run_changed(
        self, tokens: Int[Tensor, "W T"], change: Callable[[Float[Tensor, "W T d_in"]], Float[Tensor, "W T d_in"]]
    ) -> Float[Tensor, "W T d_model"]:
        """What enters the unembedding with `change(x)` in place of x at the first place; x is float32, heads concatenated."""

        def put_in(value: Tensor) -> Tensor:
            return change(value.flatten(2).float().to(tokens.device)).to(value).view(value.shape)

        return self._trunk(tokens, {self.places[0]: put_in})

    def logits(self, h: Float[Tensor, "N d_model"]) -> Float[Tensor, "N V"]:
        """What the model makes of what enters the unembedding, capped or scaled as it does; float32.

        They have a gradient where `h` requires one.
        """
        beat()
        output = self._output_kind(last_hidden_state=h[None])
        tokens = torch.zeros(1, len(h), dtype=torch.long, device=h.device)
        with _gradients_for(h), _forward_is(self._model.base_model, lambda *args, **kwargs: output):
            logits: Tensor = self._model(input_ids=tokens, use_cache=False).logits[0]
        return logits.float().to(h.device)

    def direct_path(self, windows: Int[Tensor, "W T"]) -> DirectPath | None:
        """From the first place straight to the logits, with the scale of the final norm as it is on these windows.

        None where what is there is not added to the residual stream.
        """
        place = self.places[0]
        if not (self._layout.is_named and (place.is_stream or place.adds_to_stream or place.adds)):
            return None
        if self._layout.final_norm is None:
            return direct_path(self._model, None, self.read(windows)[0])
        norm = self._model.get_submodule(self._layout.final_norm)
        return direct_path(self._model, norm, self.at([Place(self._layout.final_norm, "input")]).read(windows)[0])

    @cached_property
    @torch.no_grad()
    def unembedding(self) -> Unembedding | None:
        """The last layer, where logits are no more than that (capped ones are more) and float32.

        In half precision None, too: logits are then rounded to three digits, and what is computed around them is not what the model says.
        """
        layer = self._model.get_output_embeddings()
        device = self._probe.device
        if layer.weight.dtype != torch.float32 or type(layer) is not nn.Linear or layer.weight.is_meta:
            return None
        bias = None if layer.bias is None else layer.bias.detach().to(device)
        unembedding = Unembedding(layer.weight.detach().to(device).T, bias if bias is not None and bool(bias.any()) else None)
        h = self._trunk(self._probe).flatten(0, 1)
        if _agree(unembedding.logits(h), self.logits(h), RESUME_TOLERANCE):
            return unembedding
        logger.info("logits of this model are not a linear function of what enters the unembedding: the model computes them.")
        return None

    def _n_skipped(self, place: Place) -> int:
        """Blocks that a resumed run leaves out; 0 where that makes a difference."""
        if place not in self._skipped:
            self._skipped[place] = place.n_before if not place.n_before or self._may_resume(place) else 0
        return self._skipped[place]

    def _may_resume(self, place: Place) -> bool:
        clean = self.at([place]).run(self._probe)[0][0]
        x = clean.x * 0.5 + 0.1
        resumed, whole = (self._run_from([clean], [x], clean, n_skipped) for n_skipped in (place.n_before, 0))
        if _agree(resumed, whole, RESUME_TOLERANCE):
            return True
        logger.warning("resuming at %s differs from running the full model: full runs are used, which is slower.", place)
        return False

    def _check_sum(self, place: Place) -> None:
        """Make sure that a block returns the stream at a place within it plus what the branch returns.

        Raises:
            ConfigError: it does not, as where it scales what it adds.
        """
        if place.adds is None:
            return
        block, branch = (Place(path, "output") for path in place.adds)
        seen: dict[Place, Tensor] = {}
        self._trunk(self._probe, _each([place, block, branch], seen.__setitem__))
        stream, added, out = (seen[one].to(self._probe.device) for one in (place, branch, block))
        if not _agree(stream + added, out, SUM_TOLERANCE * torch.finfo(out.dtype).eps):
            raise ConfigError(
                f"`model.hook_point` must be one that can be replaced, but got {str(place)!r} as the residual stream within "
                f"{block.module!r}, which does not add to it what its MLP returns. Choose the residual stream before or after the block."
            )

    @cached_property
    @torch.no_grad()
    def _output_kind(self) -> Any:
        """Class of what the model without its last layer returns: fields that are not given are None."""
        return type(self._model.base_model(input_ids=self._probe, use_cache=False))

    @cached_property
    def _blocks_return_tuples(self) -> bool:
        """Whether they do: that differs between model families."""
        outputs: list[Any] = []
        block = self._model.get_submodule(self._layout.blocks)[0]
        handle = block.register_forward_hook(lambda block, inputs, output: outputs.append(output))
        try:
            self._trunk(self._probe)
        finally:
            handle.remove()
        return isinstance(outputs[0], tuple)

    @cached_property
    def _probe(self) -> Int[Tensor, "1 T"]:
        """A made-up text."""
        length = min(PROBE_TOKENS, getattr(self._model.config.get_text_config(), "max_position_embeddings", None) or PROBE_TOKENS)
        tokens = torch.randint(self.d_vocab, (1, length), generator=torch.Generator().manual_seed(0))
        return tokens.to(self._model.get_input_embeddings().weight.device)  # where the model is spread over GPUs, the first

    def _trunk(self, tokens: Tensor, changes: Mapping[Place, Change] | None = None, *changed: Tensor) -> Tensor:
        """What enters the unembedding.

        Args:
            changed: what `changes` put in, where gradients may be wanted for it.
        """
        beat()
        with _gradients_for(*changed), hooked(self._model, changes or {}):
            h: Tensor = self._model.base_model(input_ids=tokens, use_cache=False).last_hidden_state
            return h.to(tokens.device)

    def _run_from(self, cleans: Sequence[CleanRun], xs: Sequence[Tensor], lowest: CleanRun, n_skipped: int) -> Tensor:
        values = {clean.place: x.to(clean.x.dtype) for clean, x in zip(cleans, xs, strict=True)}
        # Hooks run in this order: what a block adds to the stream within it is seen changed, and what it returns is changed last.
        places = sorted(values, key=lambda place: (place.adds is not None) + 2 * place.is_stream)
        put_in: dict[Place, Change] = {place: lambda value, x=values[place]: x.view(value.shape).to(value.device) for place in places}
        if not n_skipped:
            return self._trunk(lowest.tokens, put_in, *values.values())
        stream = values[lowest.place] if lowest.below is None else lowest.below
        output = (stream, None) if self._blocks_return_tuples else stream
        if len(values) == 1 and lowest.place.is_stream:  # it is in the output already
            put_in = {}
        with ExitStack() as stack:
            for block in self._model.get_submodule(self._layout.blocks)[:n_skipped]:
                stack.enter_context(_forward_is(block, lambda *args, **kwargs: output))
            return self._trunk(lowest.tokens, put_in, *values.values())


def _each(places: Sequence[Place] | set[Place], save: Callable[[Place, Tensor], None]) -> dict[Place, Change]:
    """Changes that save what is at each place, and change nothing."""
    return {place: lambda value, place=place: save(place, value) for place in places}


def _gradients_for(*values: Tensor) -> torch.set_grad_enabled:
    """A context in which gradients are kept only where one of these values requires them, whatever the model's weights do."""
    return torch.set_grad_enabled(torch.is_grad_enabled() and any(value.requires_grad for value in values))


def _agree(value: Tensor, expected: Tensor, tolerance: float) -> bool:
    """Whether values differ by at most this fraction of the largest expected one."""
    return bool((value - expected).abs().max() <= tolerance * expected.abs().max())


@contextmanager
def _forward_is(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Replace what a module computes."""
    own = vars(module)  # Accelerate, too, replaces `forward` there
    before = own.get("forward")
    own["forward"] = forward
    try:
        yield
    finally:
        if before is None:
            del own["forward"]
        else:
            own["forward"] = before
