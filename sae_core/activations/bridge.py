"""Language models through TransformerLens: the model itself, its tokenizer, and an outline of it without weights.

TransformerBridge runs the published weights as they are: nothing is folded or centred.
"""

import gc
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import nn

from sae_core.activations.files import hash_files, is_hub_name
from sae_core.config import Config
from sae_core.errors import ConfigError, UnknownNameError

PROBE_POSITIONS = 11
"""Length of the window that shows the shape at a hook point: a size that no other dimension of a model is likely to have."""


WEIGHT_FILES = ("config.json", "*.safetensors", "*.bin", "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges*")
"""Files of a model directory that decide its activations, or the tokens it is given."""


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
    """A TransformerBridge whose weights take no memory."""
    fake_mode: Any
    """Context in which `bridge` can be run."""

    def d_in(self, hook_point: str) -> int:
        """Width of the activations at `hook_point`; heads are concatenated.

        Raises:
            UnknownNameError: the model has no such hook point.
            ConfigError: the hook point has no vector per position, or cannot be read or replaced.
        """
        if hook_point not in self.hook_points:
            raise UnknownNameError.of("`model.hook_point`", hook_point, self.hook_points)
        if hook_point.endswith("hook_resid_mid"):
            raise ConfigError(
                "`model.hook_point` must be one that TransformerLens replaces for the whole model (hook_resid_mid only on the way into the "
                f"MLP), but got {hook_point!r}. Choose hook_resid_pre or hook_resid_post."
            )
        try:
            with self.fake_mode, torch.no_grad():
                value = reach(self.bridge, hook_point, torch.zeros(1, PROBE_POSITIONS, dtype=torch.long))
        except ValueError as error:
            raise ConfigError(
                f"`model.hook_point` must be one that TransformerLens computes by default, but got {hook_point!r} ({error}) "
                "Choose another, e.g. blocks.0.hook_resid_post."
            ) from error
        shape = list(value.shape)
        if len(shape) not in (3, 4) or shape[:2] != [1, PROBE_POSITIONS]:
            raise ConfigError(
                f"`model.hook_point` must have shape [batch, position, d_in] or [batch, position, head, d_head], but got {hook_point!r} "
                f"with shape {shape} for {PROBE_POSITIONS} tokens. Choose another, e.g. blocks.0.hook_resid_post."
            )
        return math.prod(shape[2:])


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


def outline(name: str) -> Outline:
    """Build a model without reading its weights: about a second and no memory, however large it is.

    Raises:
        ConfigError: no such model, or none that TransformerLens knows.
    """
    # Fake tensors and not the meta device, which TransformerLens refuses where it splits fused QKV weights.
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode() as fake_mode:
        bridge = _boot(name, dtype=torch.float32, device="cpu", load_weights=False)
    return Outline(tuple(bridge.hook_dict), bridge.cfg.n_ctx, bridge.cfg.d_vocab, bridge, fake_mode)


def load_model(config: ModelConfig, *, device: str = "cpu") -> Any:
    """The model with its weights, as a TransformerBridge.

    Raises:
        ConfigError: no such model, or none that TransformerLens knows.
    """
    bridge = _boot(config.name, dtype=getattr(torch, config.dtype), device=device, load_weights=True)
    _fuse_gelu(bridge.original_model)
    return bridge


def load_tokenizer(name: str) -> Any:
    """The model's tokenizer.

    Raises:
        ConfigError: there is none.
    """
    from transformers import AutoTokenizer

    with _as_config_error(name):
        return AutoTokenizer.from_pretrained(local_or_hub(name))


def local_or_hub(name: str) -> str:
    """`name` as an absolute path where it is a local directory, else unchanged: a Hub name.

    Raises:
        ConfigError: it is a path, and there is no such directory.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return str(path.resolve())
    if not is_hub_name(name):
        raise ConfigError(f"`model.name` must be an existing directory or a Hugging Face Hub name, but got {name!r}. Correct the path.")
    return name


def content_hash(name: str) -> str:
    """Hash of a local model's files; the commit of one on the Hub.

    Raises:
        ConfigError: no such model.
    """
    where = Path(local_or_hub(name))
    if where.is_dir():
        return hash_files(sorted({path for pattern in WEIGHT_FILES for path in where.glob(pattern)}), where)
    from huggingface_hub import hf_hub_download

    with _as_config_error(name):
        # The cache keeps a snapshot in a directory named after its commit, and finds it without a network too.
        return Path(hf_hub_download(name, "config.json")).parent.name


def _boot(name: str, *, dtype: torch.dtype, device: str, load_weights: bool) -> Any:
    with _no_garbage_collection():
        from transformer_lens.model_bridge import TransformerBridge

    with _as_config_error(name), _no_progress_bars():
        return TransformerBridge.boot_transformers(local_or_hub(name), dtype=dtype, device=device, load_weights=load_weights)


@contextmanager
def _as_config_error(name: str) -> Iterator[None]:
    """Turn what Hugging Face and TransformerLens raise for a bad name into a ConfigError."""
    try:
        yield
    except ConfigError:
        raise
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(
            f"`model.name` must be a local directory or a reachable Hugging Face Hub name of a language model with its tokenizer, "
            f"but got {name!r}: {reason} Check the name and the network, or download the model and give its directory."
        ) from error


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """For imports: 4,000 modules, all of which stay. Looking among their objects for some that do not takes a quarter of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    from transformers.utils import logging as transformers_logging

    enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            transformers_logging.enable_progress_bar()


def _fuse_gelu(model: nn.Module) -> None:
    """Replace GPT-2's GELU, eight passes over the widest tensor of a block, by PyTorch's kernel of the same formula.

    It takes a third of a small model's time on CPU; the activations change by 3e-7 of their norm.
    """
    from transformers.activations import NewGELUActivation

    for module in model.modules():
        for name, child in module.named_children():
            if type(child) is NewGELUActivation:
                setattr(module, name, nn.GELU(approximate="tanh"))
