"""Language models and tokenizers from what a user named, or one ConfigError: the border to transformers and TransformerLens.

The plain Hugging Face model runs, with the published weights as they are. A model is refused unless all its weights load.
transformers fills in what is missing with random numbers; whether it did, it says itself: `from_pretrained(device_map="meta",
output_loading_info=True)` compares names and shapes and reads no weights.
"""

import copy
import importlib.util
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_serializer, model_validator
from torch import nn

from sae_core.activations.files import hash_files, is_hub_name
from sae_core.activations.language_model.rows import LFS_POINTER
from sae_core.config.base import Config, require
from sae_core.errors import ConfigError, border
from sae_core.files import existing

MODEL_FILES = ("config.json", "*.safetensors", "*.bin")
TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges*")
VOCABULARY_FILES = ("tokenizer.json", "vocab*", "merges*", "*.model", "*.tiktoken")
"""Files of which a tokenizer has one at least, but for those of bytes."""
NOT_WEIGHTS = frozenset({"training_args.bin", "optimizer.bin", "scheduler.bin"})
"""What trainers leave beside a model."""
NOT_WANTED = re.compile(r"(^|\.)((self_)?(attn|attention)\.(bias|masked_bias)|rotary_emb\.[^.]+|inv_freq|position_ids)$")
"""Buffers that older versions of transformers saved beside the weights: masks and tables that are computed now."""

BESIDE = " + "
"""What joins the hook points of a crosscoder."""


class ModelConfig(Config):
    """Which language model, and where in it."""

    other_names: ClassVar[Mapping[str, str]] = {"hook_in": "hook_point"}

    name: str
    """A local directory in Hugging Face layout, or the name of a model on the Hub."""
    hook_point: str
    """TransformerLens name, e.g. `blocks.2.hook_resid_post`, or the path of a module, its output or input: `model.layers.3.mlp@input`.
    Several, joined by " + ", are read and reconstructed together, by a crosscoder."""
    hook_out: str | None = None
    """Of transcoders: where they write, e.g. `blocks.2.hook_mlp_out`; `hook_point` is where they read. None: an SAE, which writes where it
    reads."""
    context_size: Annotated[int, Field(ge=2)] = 128
    """Tokens in a window, BOS included."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision the language model runs in."""
    prepend_bos: bool = True
    """Whether every window starts with the tokenizer's BOS token."""
    device_map: Literal["auto", "balanced", "balanced_low_0", "sequential"] | None = None
    """How transformers spreads the model over the GPUs of a slot, and over memory and disk where they are too small; None: over the GPUs
    alone, equally."""
    quantization: Literal["8bit", "4bit"] | None = None
    """Precision that bitsandbytes stores the weights in; `dtype` is then that of the activations."""

    @model_serializer(mode="wrap")
    def _without_what_is_not_given(self, serialize: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        # Run ids and hashes of activations stay those of configs without these fields.
        return {name: value for name, value in serialize(self).items() if value is not None}

    @model_validator(mode="after")
    def _hook_points_differ(self) -> Self:
        names = self.read_at
        require(
            all(names) and len(set(names)) == len(names),
            f"`hook_point` must name each hook point of a crosscoder once, joined by {BESIDE!r}, but got {self.hook_point!r}. Correct it.",
        )
        require(
            len(names) == 1 or self.hook_out is None,
            f"`hook_out` must be left out of crosscoders, which reconstruct what they read, but got {self.hook_out!r} beside "
            f"{self.hook_point!r}. Leave it out, or read one hook point.",
        )
        require(
            self.hook_out != self.hook_point,
            f"`hook_out` must be another hook point than the one that is read, but got {self.hook_out!r} for both. Leave `hook_out` out to "
            "train SAEs.",
        )
        return self

    @property
    def read_at(self) -> list[str]:
        """The hook points that the SAE reads: one, of a crosscoder several."""
        return self.hook_point.split(BESIDE)

    @property
    def hook_points(self) -> list[str]:
        """Where activations are read: at `read_at`, and at `hook_out` where there is one."""
        return [*self.read_at, *([self.hook_out] if self.hook_out else [])]

    @property
    def bytes_per_weight(self) -> float:
        """Memory that a weight takes, about."""
        stored = {"8bit": 1.0, "4bit": 0.5}.get(self.quantization or "")
        return stored or float(getattr(torch, self.dtype).itemsize)


def load_model(config: ModelConfig, *, device: str = "cpu", n_gpus: int = 1) -> Any:
    """The Hugging Face model with its weights.

    Args:
        n_gpus: GPUs that its blocks are spread over, where there are several.

    Raises:
        ConfigError: no such model, or one whose weights do not all load.
    """
    from transformers import AutoModelForCausalLM

    check_packages(config)
    where = local_or_hub(config.name)
    with reading(config.name):
        _check_files(_directory(config.name))
        model = AutoModelForCausalLM.from_pretrained(
            where,
            dtype=getattr(torch, config.dtype),
            trust_remote_code=False,
            **_attention(_config(where)),
            **_quantization(config),
            **placement(config, device, n_gpus),
        )
        if not hasattr(model, "hf_device_map"):
            model = nn.Module.to(model, device)
    check_weights(config.name, model)
    _fuse_gelu(model)
    return model.eval().requires_grad_(False)


def placement(config: ModelConfig, device: str, n_gpus: int) -> dict[str, Any]:
    """What transformers is told of where a model goes; nothing where it is one device."""
    is_cuda = torch.device(device).type == "cuda"
    spread = config.device_map or ("balanced" if is_cuda and n_gpus > 1 else None)
    if spread is None:
        return {"device_map": {"": device}} if config.quantization else {}
    if not is_cuda:
        return {"device_map": spread}
    # Some memory is left for activations; GPUs of other slots are not touched.
    gpus = {index: int(0.9 * torch.cuda.get_device_properties(index).total_memory) for index in range(max(1, n_gpus))}
    return {"device_map": spread, "max_memory": gpus if config.device_map is None else {**gpus, "cpu": _memory()}}


def check_packages(config: ModelConfig) -> None:
    """Make sure that the packages which some settings need are installed.

    Raises:
        ConfigError: one is missing.
    """
    needs = {"device_map": ("accelerate",), "quantization": ("accelerate", "bitsandbytes")}
    for field, packages in needs.items():
        missing = [package for package in packages if importlib.util.find_spec(package) is None]
        if (value := getattr(config, field)) is not None and missing:
            raise ConfigError(
                f"`model.{field}` needs the package {missing[0]!r}, but got {value!r} and no such package. Install it (`pip install "
                f"{missing[0]}`), or leave `model.{field}` out."
            )


def build(name: str) -> Any:
    """The Hugging Face model with random weights; within a context of fake tensors, with none.

    Raises:
        ConfigError: no such model.
    """
    from transformers import AutoModelForCausalLM

    where = local_or_hub(name)
    with reading(name):
        _check_files(_directory(name))
        return AutoModelForCausalLM.from_config(
            _config(where), attn_implementation="eager", experts_implementation="batched_mm", trust_remote_code=False
        )


def is_in_bridge(model: Any) -> bool:
    """Whether TransformerLens has names for the modules of this architecture."""
    from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES

    return any(architecture in SUPPORTED_ARCHITECTURES for architecture in model.config.architectures or [])


def bridge_of(name: str, model: Any) -> Any:
    """A TransformerBridge around the modules of a model. The model is then no longer the plain one.

    It raises whatever TransformerLens raises: to be called within `reading`.
    """
    from tokenizers import Tokenizer, models
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedTokenizerFast

    # Tokens are given as numbers, so that the bridge's tokenizer is never used; a model need not have one.
    words = models.WordLevel({"<unk>": 0}, unk_token="<unk>")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), unk_token="<unk>")
    return TransformerBridge.boot_transformers(local_or_hub(name), dtype=torch.float32, hf_model=model, tokenizer=tokenizer, device="cpu")


def _config(where: str) -> Any:
    """The config in a model's files."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(where, trust_remote_code=False)


def _attention(config: Any) -> dict[str, str]:
    """Which attention: the model's own choice, the fused one as a rule."""
    # Hugging Face leaves a cap on attention scores out of the fused one without a word.
    is_capped = getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None
    return {"attn_implementation": "eager"} if is_capped else {}


def _quantization(config: ModelConfig) -> dict[str, Any]:
    from transformers import BitsAndBytesConfig

    if config.quantization is None:
        return {}
    dtype = getattr(torch, config.dtype)
    bits: dict[str, Any] = (
        {"load_in_8bit": True} if config.quantization == "8bit" else {"load_in_4bit": True, "bnb_4bit_compute_dtype": dtype}
    )
    return {"quantization_config": BitsAndBytesConfig(**bits)}


def _memory() -> int:
    """Memory of this machine that is free."""
    import psutil

    return int(psutil.virtual_memory().available)


def check_weights(name: str, model: Any) -> None:
    """Make sure that all weights of a model load. One on the Hub is checked once it is in the cache, a quantized one is not.

    Args:
        model: the Hugging Face model, with or without weights: its class and config are used.

    Raises:
        ConfigError: weights are missing, left over or of another shape, or a file cannot be read.
    """
    if getattr(model.config, "quantization_config", None) is not None:  # its names and shapes are the quantizer's
        return
    is_local = _directory(name) is not None
    options: dict[str, Any] = {"config": copy.deepcopy(model.config), "device_map": "meta", "ignore_mismatched_sizes": True}
    with reading(name):
        try:
            _, info = type(model).from_pretrained(local_or_hub(name), output_loading_info=True, local_files_only=not is_local, **options)
        except OSError:
            if is_local:
                raise
            return
    groups = {
        "missing": sorted(info["missing_keys"]),
        "that are not the model's": sorted(key for key in info["unexpected_keys"] if not NOT_WANTED.search(key)),
        "of another shape": [f"{key} {list(stored)} instead of {list(wanted)}" for key, stored, wanted in sorted(info["mismatched_keys"])],
    }
    if problems := [f"{len(names)} {what} ({', '.join(names[:3])})" for what, names in groups.items() if names]:
        raise ConfigError(
            f"`model.name` must be a model whose weights all load, but got {name!r} with weights {', '.join(problems)}. "
            "Save it again with `save_pretrained`, from the model itself and not from a wrapper that renames its weights."
        )


def tokenizer_or_none(name: str) -> Any | None:
    """The model's tokenizer; None where it has none.

    Raises:
        ConfigError: it cannot be read.
    """
    from transformers import AutoTokenizer

    where, directory = local_or_hub(name), _directory(name)
    _check_files(directory)
    try:
        with border(f"`model.name` must have a readable tokenizer, but got {name!r}", "Check its files, or give another model."), _quiet():
            tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=False)
            tokenizer(["some text"], add_special_tokens=False, verbose=False)  # wrong settings show only there
    except ConfigError:
        if directory is None or any(True for pattern in VOCABULARY_FILES for _ in directory.glob(pattern)):
            raise
        return None
    # Of some families transformers makes one without a vocabulary where files are missing.
    return tokenizer if len(tokenizer) > len(set(tokenizer.all_special_ids)) else None


def content_hash(name: str) -> str:
    """Hash of the files of a local model that are loaded; the commit of one on the Hub.

    Raises:
        ConfigError: no such model.
    """
    where = Path(local_or_hub(name))
    with reading(name):
        if where.is_dir():
            return hash_files(_model_files(where), where)
        from huggingface_hub import hf_hub_download

        # The cache keeps a snapshot in a directory named after its commit, and finds it without a network too.
        return Path(hf_hub_download(name, "config.json")).parent.name


def local_or_hub(name: str) -> str:
    """`name` as an absolute path where it is a local directory, else unchanged: a Hub name.

    Raises:
        ConfigError: it is a path, and there is no such directory.
    """
    directory = _directory(name)
    if directory is None and not is_hub_name(name):
        raise ConfigError(f"`model.name` must be an existing directory or a Hugging Face Hub name, but got {name!r}. Correct the path.")
    return name if directory is None else str(directory)


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Whatever the libraries raise while they read a model becomes one ConfigError, and their reports and progress bars are not shown."""
    must, remedy = "a readable causal language model", "Check its files, or give another model."
    if _directory(name) is None:
        must = "a local directory or a reachable Hugging Face Hub name"
        remedy = "Check the name and the network, or download the model and give its directory."
    with border(f"`model.name` must be {must}, but got {name!r}", remedy), _quiet():
        yield


def _directory(name: str) -> Path | None:
    """The local directory of this name; None where there is none."""
    path = existing(name)
    return path.resolve() if path is not None and path.is_dir() else None


def _model_files(directory: Path) -> list[Path]:
    """Files of a model directory that are loaded, and decide its activations or the tokens it is given."""
    files = {path for pattern in (*MODEL_FILES, *TOKENIZER_FILES) for path in directory.glob(pattern)}
    files = {path for path in files if not path.name.startswith(".") and path.name not in NOT_WEIGHTS and path.is_file()}
    if any(path.suffix == ".safetensors" for path in files):  # then nothing else is loaded
        files = {path for path in files if path.suffix != ".bin"}
    return sorted(files)


def _check_files(directory: Path | None) -> None:
    """Name what is wrong with a local model's files where a library would read on, or say something that does not help."""
    for path in [] if directory is None else _model_files(directory):
        with path.open("rb") as file:
            if file.read(len(LFS_POINTER)) == LFS_POINTER:
                raise ConfigError(f"files of a model must be complete, but got {str(path)!r}, a git-lfs pointer. Run `git lfs pull` there.")
    if directory is not None and (directory / "adapter_config.json").is_file():
        raise ConfigError(
            f"`model.name` must be a complete model, but got {str(directory)!r} with 'adapter_config.json', whose adapter would not be "
            "applied. Merge it with peft's `merge_and_unload` and save the model, or remove it."
        )


def _fuse_gelu(model: nn.Module) -> None:
    """Replace GPT-2's GELU, eight passes over the widest tensor of a block, by PyTorch's kernel of the same formula.

    It takes a third of a small model's time on CPU; the activations change by 3e-7 of their norm.
    """
    from transformers.activations import NewGELUActivation

    for module in model.modules():
        for name, child in module.named_children():
            if type(child) is NewGELUActivation:
                setattr(module, name, nn.GELU(approximate="tanh"))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the reports and progress bars of transformers: what matters of them is in our messages."""
    from transformers.utils import logging as transformers_logging

    bars, verbosity = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
