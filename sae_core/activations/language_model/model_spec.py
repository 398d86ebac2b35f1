"""What can be known of a language model without its weights: its sizes, its hook points, and which of them can have an SAE.

A hook point is a module's input or output, by its path (`model.layers.3.mlp@input`), or by the name that TransformerLens has for it
(`blocks.3.hook_resid_post`). TransformerBridge wraps the modules of the plain model one by one: the module that a named hook lies at is
found once, by identity, and nothing else of the bridge is used. A model that TransformerLens does not know has paths only.
"""

import fnmatch
import logging
import math
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

import torch
from torch import nn

from sae_core.activations.language_model import loading
from sae_core.activations.language_model.places import SIDES, Layout, Place, hooked, path_and_side
from sae_core.errors import ConfigError, UnknownNameError, reason_of

logger = logging.getLogger(__name__)

PROBE_WINDOWS, PROBE_POSITIONS = 2, 11
"""Shape of the text that shows the shape at a hook point: sizes that no other dimension of a model is likely to have."""
ADDED = ("hook_attn_out", "hook_mlp_out")
"""TransformerLens' places in a block whose value is added to the residual stream."""
ADDED_WITHOUT_NORM = ("attn.hook_out", "attn.o.hook_out", "mlp.hook_out", "mlp.out.hook_out")
"""Places whose value is that of ADDED where no norm follows attention and MLP."""
IN_STREAM = "hook_resid_mid"
"""TransformerLens' place between attention and MLP. The value is also what the MLP's norm reads; replaced is the residual stream."""

Names = Mapping[str, tuple[str, str]]
"""TransformerLens' name -> path of a module, and its side."""


def layer_of(hook_point: str) -> int | None:
    """The block that a hook point lies in, as its name says; None outside of the blocks."""
    numbers = re.search(r"\.(\d+)(?=[.@]|$)", hook_point)
    return int(numbers[1]) if numbers else None


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A language model without its weights."""

    model: Any
    """The Hugging Face model, without weights."""
    layout: Layout
    names: Names
    unmapped: frozenset[str]
    """TransformerLens' names of places that are neither the input nor the output of a module."""
    n_ctx: int
    """Positions the model has."""
    d_vocab: int
    tracing: Callable[[], AbstractContextManager[Any]]
    """Context in which `model` can be run."""

    @property
    def hook_points(self) -> tuple[str, ...]:
        """Every hook point that has a name in TransformerLens and is at a module."""
        return tuple(self.names)

    @property
    def paths(self) -> tuple[str, ...]:
        """Paths of all modules."""
        return tuple(name for name, _ in self.model.named_modules() if name)

    def place(self, hook_point: str) -> Place:
        """Where a hook point is.

        Raises:
            UnknownNameError: the model has no such hook point.
            ConfigError: TransformerLens has one of this name, and it is at no module.
        """
        if hook_point in self.unmapped:
            raise ConfigError(
                f"`model.hook_point` must be the input or the output of a module, but got {hook_point!r}, which lies within one. Choose "
                f"{self._nearest(hook_point)!r} or another."
            )
        if hook_point in self.names:
            path, side = self.names[hook_point]
        else:
            path, side = path_and_side(hook_point)
            if path not in self.paths or side not in SIDES:
                raise self._unknown(hook_point)
        return self._placed(hook_point, path, side)

    def is_same(self, hook_point: str, other: str) -> bool:
        """Whether the same values lie at a hook point of the model and at another, which may be none, or lack the beginning of its path.

        The residual stream has a place at either end of each block: what leaves one enters the next.
        """
        path, at, side = other.partition("@")
        names = [other, *(name + at + side for name in self.paths if name.endswith(f".{path}"))]
        here = self.place(hook_point)
        for name in names:
            with suppress(ConfigError):
                there = self.place(name)
                return here == there or (here.is_stream and there.is_stream and here.n_before == there.n_before)
        return False

    def matching(self, pattern: str) -> list[str]:
        """The hook points that a pattern stands for, in the model's order; `*` is one part of a name, or of a part.

        Those of TransformerLens' names where it matches some, else paths of modules, with the pattern's side.
        """
        path, at, side = pattern.partition("@")
        named = [] if at else [name for name in self.names if _matches(name, path)]
        return named or [name + at + side for name in self.paths if _matches(name, path)]

    def _placed(self, hook_point: str, path: str, side: str) -> Place:
        blocks = self.layout.blocks
        in_block = re.match(rf"{re.escape(blocks)}\.(\d+)(\.|$)", path)
        layer = int(in_block[1]) if in_block else None
        if layer is None:
            return Place(path, side)
        is_stream = path == f"{blocks}.{layer}"
        place = Place(path, side, layer, layer + (is_stream and side == "output"), is_stream)
        if hook_point.endswith(IN_STREAM):
            branch, branch_side = self.names.get(f"blocks.{layer}.{ADDED[1]}", ("", "input"))
            if branch_side != "output":
                raise ConfigError(
                    f"`model.hook_point` must be one that can be replaced, but got {hook_point!r}, where this model adds to the residual "
                    f"stream what no module returns. Choose 'blocks.{layer}.hook_resid_post' or another."
                )
            return replace(place, adds=(f"{blocks}.{layer}", branch))
        normed = any(f"blocks.{layer}.{norm}.hook_out" in self.names for norm in ("ln1_post", "ln2_post"))
        added = (*ADDED, *(() if normed else ADDED_WITHOUT_NORM))
        return replace(place, adds_to_stream=(path, side) in [self.names.get(f"blocks.{layer}.{name}") for name in added])

    def _unknown(self, hook_point: str) -> UnknownNameError:
        names = self.hook_points if "hook" in hook_point and self.names else self.paths
        return UnknownNameError.of("`model.hook_point`", hook_point, names)

    def _usual(self, layer: int) -> str:
        """The hook point that every block has."""
        return f"blocks.{layer}.hook_resid_post" if self.names else f"{self.layout.blocks}.{layer}"

    def _nearest(self, hook_point: str) -> str:
        return get_close_matches(hook_point, self.hook_points, n=1, cutoff=0.0)[0]

    def d_in(self, hook_point: str) -> int:
        """Width of the activations at `hook_point`; heads are concatenated.

        Raises:
            UnknownNameError: the model has no such hook point.
            ConfigError: the hook point has no vector per position, or cannot be read or replaced.
        """
        place = self.place(hook_point)
        try:
            with self.tracing():
                return self._width(place)
        except Exception as error:  # the model itself can be run: `model_spec` has tried
            problem = str(error) if type(error) is ValueError else reason_of(error)
            raise ConfigError(
                "`model.hook_point` must be one with a vector per position that can be read and replaced, but got "
                f"{hook_point!r}: {problem}. Choose {self._usual(layer_of(hook_point) or 0)!r} or another."
            ) from error

    @property
    def n_weights(self) -> int:
        """Numbers in the weights of the model."""
        return sum(weight.numel() for weight in self.model.parameters())

    def flops_below(self, hook_point: str) -> float:
        """Floating-point operations per token of the blocks up to the hook point: two per weight."""
        layer = self.place(hook_point).layer
        blocks = () if layer is None else list(self.model.get_submodule(self.layout.blocks))[: layer + 1]
        return 2.0 * sum(weight.numel() for block in blocks for weight in block.parameters())

    def run(self) -> torch.Tensor:
        """Logits of a made-up text."""
        tokens = torch.zeros(PROBE_WINDOWS, min(PROBE_POSITIONS, self.n_ctx), dtype=torch.long)
        logits: torch.Tensor = self.model(input_ids=tokens, use_cache=False).logits
        return logits

    def _width(self, place: Place) -> int:
        """Put other values in at the hook point, and see what is there and whether logits depend on it; if not, a ValueError says so.

        Whether they do, autograd knows, without any values: fake tensors do. Parameters must not require gradients.
        """
        if self.model.get_submodule(place.module) is self.model.get_output_embeddings():
            raise ValueError("it lies in the unembedding, which no block follows")
        seen: list[torch.Tensor] = []

        def put_in(value: torch.Tensor) -> torch.Tensor:
            seen.append(value)
            return torch.zeros_like(value).requires_grad_() if value.is_floating_point() else value

        with torch.enable_grad(), hooked(self.model, {place: put_in}):
            logits = self.run()
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


def is_pattern(hook_point: object) -> bool:
    """Whether a hook point stands for several."""
    return isinstance(hook_point, str) and any(character in hook_point for character in "*?[")


def _matches(name: str, pattern: str) -> bool:
    parts, wanted = name.split("."), pattern.split(".")
    return len(parts) == len(wanted) and all(map(fnmatch.fnmatchcase, parts, wanted))


def model_spec(name: str) -> ModelSpec:
    """Build a model without reading its weights: about a second and no memory, however large it is.

    Some models cannot be built of tensors without content: they are built of random weights, in full size.

    Raises:
        ConfigError: no such model, or none that predicts the next token.
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
        layout, names, unmapped, n_ctx, d_vocab = _translated(name)
        model = loading.build(name)
    architectures = model.config.architectures or []
    if any("MaskedLM" in str(architecture) for architecture in architectures):
        raise ConfigError(
            f"`model.name` must be a model that predicts the next token from those before it, but got {architectures[0]!r} in {name!r}. "
            "Choose a causal language model."
        )
    with loading.reading(name):
        model.requires_grad_(False).eval()
        spec = ModelSpec(model, layout, names, unmapped, n_ctx, d_vocab, tracing)
        if min(n_ctx, d_vocab) < 2 or model.get_output_embeddings() is None:
            raise ValueError(f"it has {n_ctx} positions and {d_vocab} tokens, and is no model of the next token")
        with tracing(), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            spec.run()
    return spec


def _translated(name: str) -> tuple[Layout, Names, frozenset[str], int, int]:
    """The layout of a model, the modules at TransformerLens' hook points, hook points at none, positions and vocabulary."""
    model = loading.build(name)
    paths: dict[int, str] = {id(module): path for path, module in model.named_modules()}
    if not loading.is_in_bridge(model):
        return _unnamed(name, model)
    with loading.reading(name):
        bridge = loading.bridge_of(name, model)
        sides: dict[int, tuple[str, str]] = {}
        for component in bridge.modules():
            if (path := paths.get(id(getattr(component, "original_component", None)))) is not None:
                sides |= {id(component.hook_in): (path, "input"), id(component.hook_out): (path, "output")}
        names = {hook_point: sides[id(hook)] for hook_point, hook in bridge.hook_dict.items() if id(hook) in sides}
        if getattr(bridge, "unembed", None) is None or not len(bridge.blocks):
            raise ValueError("it has no blocks or no unembedding, and is no model of the next token")
        blocks = names["blocks.0.hook_in"][0].rpartition(".")[0]
        layout = Layout(blocks, names["ln_final.hook_in"][0] if "ln_final.hook_in" in names else None)
        return layout, names, frozenset(bridge.hook_dict.keys() - names.keys()), int(bridge.cfg.n_ctx), int(bridge.cfg.d_vocab)


def _unnamed(name: str, model: Any) -> tuple[Layout, Names, frozenset[str], int, int]:
    """The same of a model that TransformerLens does not know: as its config and its modules say."""
    config = model.config.get_text_config()
    with loading.reading(name):
        n_layers, n_ctx = getattr(config, "num_hidden_layers", None), getattr(config, "max_position_embeddings", None)
        lists = [path for path, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module) == n_layers]
        if not lists or model.get_output_embeddings() is None:
            raise ValueError("it has no list of blocks or no unembedding, and is no model of the next token")
        return Layout(lists[0], None, is_named=False), {}, frozenset(), n_ctx or sys.maxsize, int(config.vocab_size)


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
