"""Language models through TransformerLens: the model itself, and an outline of it without weights.

TransformerBridge runs the published weights as they are: nothing is folded or centred.
"""

import difflib
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import nn

from sae_core.activations.files import hash_files
from sae_core.activations.language_model import loading
from sae_core.activations.language_model.hook_points import PROBE_POSITIONS, PROBE_WINDOWS, HookPlace, Probe, probe
from sae_core.config.run import Config
from sae_core.errors import ConfigError, UnknownNameError, reason_of

logger = logging.getLogger(__name__)

MOST_PROBES = 6
"""Hook points that are tried to name one that can be used in place of one that cannot."""


class ModelConfig(Config):
    """Which language model, and where in it."""

    name: str
    """A local directory in Hugging Face layout, or the name of a model on the Hub."""
    hook_point: str
    """TransformerLens name, e.g. `blocks.2.hook_resid_post`."""
    context_size: Annotated[int, Field(ge=2)] = 128
    """Tokens in a window, BOS included."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision the language model runs in."""
    prepend_bos: bool = True
    """Whether every window starts with the tokenizer's BOS token."""


@dataclass(frozen=True, slots=True)
class Outline:
    """What can be known of a language model without its weights."""

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
        found = self._probe(hook_point)
        if found.problem:
            raise ConfigError(
                "`model.hook_point` must be one with a vector per position that can be read and replaced, but got "
                f"{hook_point!r}: {found.problem}. {self._remedy(hook_point)}"
            )
        return found.width

    def flops_below(self, hook_point: str) -> float:
        """Floating-point operations per token of the blocks up to the hook point: two per weight."""
        layer = HookPlace.of(hook_point).layer
        blocks = () if layer is None else self.bridge.blocks[: layer + 1]
        # Beside a fused projection, TransformerLens has its three parts.
        weights = (weight for block in blocks for name, weight in block.named_parameters() if ".qkv." not in name)
        return 2.0 * sum(weight.numel() for weight in weights)

    def check_runs(self) -> None:
        """Run the model without weights.

        Raises:
            Exception: whatever the model raises where it cannot be run so.
        """
        with self.tracing(), torch.no_grad():
            self.bridge(torch.zeros(PROBE_WINDOWS, self._n_positions, dtype=torch.long), return_type="logits", use_cache=False)

    @property
    def _n_positions(self) -> int:
        return min(PROBE_POSITIONS, self.n_ctx)

    def _probe(self, hook_point: str) -> Probe:
        try:
            with self.tracing():
                return probe(self.bridge, hook_point, self._n_positions)
        except Exception as error:  # the model itself can be run: `outline` has tried
            return Probe(0, reason_of(error))

    def _remedy(self, hook_point: str) -> str:
        """Name the hook point most like this one, of those few that are tried, that can be used."""
        layer, last = HookPlace.of(hook_point).layer or 0, hook_point.rpartition(".")[2]
        near = [name for name in self.hook_points if name.startswith(f"blocks.{layer}.") and not name.endswith(f".{last}")]
        names = difflib.get_close_matches(hook_point, near, n=MOST_PROBES, cutoff=0.0)
        if "unembed" in hook_point and "ln_final.hook_out" in self.hook_points:
            names.insert(0, "ln_final.hook_out")
        usable = next((name for name in names if not self._probe(name).problem), None)
        return f"Choose {usable!r} or another." if usable else "Choose another."


def outline(name: str) -> Outline:
    """Build a model without reading its weights: about a second and no memory, however large it is.

    Some models cannot be built of tensors without content: they are built of random weights, in full size.

    Raises:
        ConfigError: no such model, or none that TransformerLens knows.
    """
    try:
        return _outline(name, _faking())
    except ConfigError as error:
        if error.__cause__ is None or isinstance(error.__cause__, OSError):  # it is not there, or no model
            raise
        reason = error
    # Either it needs real tensors, or something is wrong with it: then this raises again, and says what.
    found = _outline(name, nullcontext)
    logger.info("%s cannot be built without weights (%s): it is built of random ones.", name, reason_of(reason))
    return found


def _faking() -> Callable[[], AbstractContextManager[Any]]:
    """The context in which tensors have shapes and no content."""
    # Not the meta device, which TransformerLens refuses where it splits fused QKV weights.
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


def _outline(name: str, tracing: Callable[[], AbstractContextManager[Any]]) -> Outline:
    with tracing():
        bridge = loading.boot(name, dtype=torch.float32, device="cpu", load_weights=False)
    with loading.reading(name):
        bridge.requires_grad_(False)
        found = Outline(tuple(bridge.hook_dict), int(bridge.cfg.n_ctx), int(bridge.cfg.d_vocab), bridge, tracing)
        if min(found.n_ctx, found.d_vocab) < 2 or getattr(bridge, "unembed", None) is None:
            raise ValueError(f"it has {found.n_ctx} positions and {found.d_vocab} tokens, and is no model of the next token")
        found.check_runs()
    return found


def load_model(config: ModelConfig, *, device: str = "cpu") -> Any:
    """The model with its weights, as a TransformerBridge.

    Raises:
        ConfigError: no such model, none that TransformerLens knows, or one whose weights do not all load.
    """
    bridge = loading.boot(config.name, dtype=getattr(torch, config.dtype), device=device, load_weights=True)
    loading.check_weights(config.name, bridge.original_model)
    _fuse_gelu(bridge.original_model)
    return bridge


def content_hash(name: str) -> str:
    """Hash of the files of a local model that are loaded; the commit of one on the Hub.

    Raises:
        ConfigError: no such model.
    """
    where = Path(loading.local_or_hub(name))
    with loading.reading(name):
        if where.is_dir():
            return hash_files(loading.model_files(where), where)
        from huggingface_hub import hf_hub_download

        # The cache keeps a snapshot in a directory named after its commit, and finds it without a network too.
        return Path(hf_hub_download(name, "config.json")).parent.name


def _fuse_gelu(model: nn.Module) -> None:
    """Replace GPT-2's GELU, eight passes over the widest tensor of a block, by PyTorch's kernel of the same formula.

    It takes a third of a small model's time on CPU; the activations change by 3e-7 of their norm.
    """
    from transformers.activations import NewGELUActivation

    for module in model.modules():
        for name, child in module.named_children():
            if type(child) is NewGELUActivation:
                setattr(module, name, nn.GELU(approximate="tanh"))
