"""What a `cfg.json` of SAELens, of any age, and the tensors beside it say, in terms of our architectures. Plain data; no SAE is imported.

A key that is absent means what it meant when the file was written. What a key changes is undone exactly, folded into the weights, or
refused by name; a key that is not known is refused, too, because it could change what the SAE computes.
Formats: sae-lens 2 to 6.54.12. Versions below 6 put training settings and the model beside the fields that compute; from 6 on the latter
are alone, and the rest lies in `metadata`.
Letters: d = d_in, m = d_sae.
"""

import reprlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sae_core.errors import ConfigError

SAELENS_FIELDS: dict[str, tuple[str, ...]] = {
    "standard": (),
    "gated": (),
    "jumprelu": (),
    "topk": ("k", "rescale_acts_by_decoder_norm"),
}
"""Architectures that SAELens and we know -> fields that they need at inference beside `d_sae`."""

_DTYPES = tuple(f"{prefix}{name}" for prefix in ("", "torch.") for name in ("float32", "float64", "float16", "bfloat16"))
_READ = """
    architecture d_in d_sae apply_b_dec_to_input normalize_activations reshape_activations finetuning_scaling_factor noise_scale
    dtype activation_fn activation_fn_str activation_fn_kwargs hook_name hook_point hook_name_out metadata sae_lens_version
"""
_NOT_COMPUTING = """
    device act_store_device llm_device model_name model_class_name model_kwargs model_from_pretrained_kwargs hook_layer hook_eval
    hook_head_index hook_head_index_out hook_point_layer hook_point_eval hook_point_head_index hf_hook_name hf_hook_name_out
    neuronpedia_id sae_lens_training_version dataset_path dataset_name dataset_trust_remote_code is_dataset_tokenized streaming
    context_size prepend_bos exclude_special_tokens seqpos_slice disable_concat_sequences sequence_separator_token begin_batch_token
    begin_sequence_token use_cached_activations cached_activations_path n_batches_in_buffer buffer_size_gb tokens_per_buffer
    store_batch_size store_batch_size_prompts training_tokens total_training_tokens total_training_samples total_training_steps
    finetuning_tokens shuffle seed

    expansion_factor from_pretrained_path lr lr_end lr_scheduler_name lr_warm_up_steps lr_decay_steps n_restart_cycles adam_beta1
    adam_beta2 train_batch_size train_batch_size_tokens train_batch_size_samples l1_coefficient lp_norm l1_warm_up_steps
    l0_coefficient l0_warm_up_steps mse_loss_normalization scale_sparsity_penalty_by_decoder_norm normalize_sae_decoder
    b_dec_init_method decoder_init_norm decoder_orthogonal_init decoder_heuristic_init decoder_heuristic_init_norm
    init_encoder_as_decoder_transpose jumprelu_init_threshold jumprelu_bandwidth jumprelu_sparsity_loss_mode jumprelu_tanh_scale
    jumprelu_ste_to_input pre_act_loss_coefficient target_l0 aux_loss_coefficient use_sparse_activations use_ghost_grads
    finetuning_method feature_sampling_method feature_sampling_window feature_reinit_scale resample_batches dead_feature_window
    dead_feature_threshold autocast autocast_lm compile_llm llm_compilation_mode compile_sae sae_compilation_mode n_checkpoints
    checkpoint_path save_final_checkpoint resume resume_from_checkpoint output_path verbose logger log_to_wandb
    log_activations_store_to_wandb log_optimizer_state_to_wandb wandb_project wandb_id wandb_entity wandb_log_frequency run_name
    eval_every_n_wandb_logs n_eval_batches n_eval_seqs eval_batch_size_prompts
"""
"""Keys of SAELens' versions that do not change what a finished SAE computes: about model, data and file; about training."""
_CORRECT = "Correct it, or export the SAE again."

_short = reprlib.Repr()
_short.maxlevel, _short.maxstring, _short.maxother = 3, 100, 100


def shown(value: Any) -> str:
    """A value of a file in a message: one line, and not a long one."""
    return _short.repr(value)


@dataclass(frozen=True, slots=True)
class Description:
    """What a cfg.json says."""

    architecture: str
    """Name here."""
    fields: dict[str, Any]
    """Of the architecture's config, not validated."""
    d_in: int
    d_sae: int
    layer_norm: bool
    subtracts_b_dec: bool
    """From the input of the encoder."""
    scales_latents: bool
    """By a factor each before they are decoded."""

    @property
    def is_saelens(self) -> bool:
        """Whether SAELens knows the architecture."""
        return self.architecture in SAELENS_FIELDS


class _Cfg:
    """A cfg.json in reading: its content, and everything that is wrong with it, one line each."""

    def __init__(self, content: Mapping[str, Any], path: str) -> None:
        self.content = content
        self.path = path
        self.problems: list[str] = []
        self.is_old = self._is_old()

    def __getitem__(self, key: str) -> Any:
        return self.content.get(key)

    def refuse(self, key: str, rule: str, remedy: str = _CORRECT) -> None:
        got = f"{key}={shown(self[key])}" if key in self.content else "none"
        self.problems.append(f"`{key}` of an SAE's cfg.json must {rule}, but got {got} in {self.path}. {remedy}")

    def raise_problems(self) -> None:
        if self.problems:
            raise ConfigError("\n".join(self.problems))

    def one_of(self, key: str, default: Any, *allowed: Any, remedy: str = _CORRECT) -> Any:
        """The value of a key; `default` where it is absent or refused."""
        value = self.content.get(key, default)
        if any(type(value) is type(other) and value == other for other in (default, *allowed)):
            return value
        self.refuse(key, f"be one of {sorted({default, *allowed}, key=str)}", remedy)
        return default

    def size(self, key: str) -> int:
        if type(self[key]) is not int or self[key] < 1:
            self.refuse(key, "be a whole number of at least 1")
            return 1
        return int(self[key])

    def _is_old(self) -> bool:
        """Whether a version below 6 wrote it; earlier ones did not say which."""
        if self["metadata"] is not None and not isinstance(self["metadata"], Mapping):
            self.refuse("metadata", "be an object")
            return False
        version = self["sae_lens_version"] or (self["metadata"] or {}).get("sae_lens_version")
        if version is None:
            return True
        major = version.split(".")[0] if isinstance(version, str) else ""
        if not (major.isascii() and major.isdigit()):
            self.problems.append(
                f"`sae_lens_version` must be a version such as '6.0.0', but got {shown(version)} in {self.path}. {_CORRECT}"
            )
            return False
        return int(major) < 6


def describe(content: Mapping[str, Any], path: str, fields_of: Callable[[str], Collection[str]]) -> Description:
    """Read a cfg.json.

    Args:
        path: what messages call the file.
        fields_of: names of the fields of an architecture's config, for those that SAELens does not know; refuses an unknown name.

    Raises:
        ConfigError: with everything that is wrong, one line each.
    """
    cfg = _Cfg(content, path)
    d_in, d_sae = cfg.size("d_in"), cfg.size("d_sae")
    architecture, k = _architecture(cfg)
    cfg.raise_problems()  # what follows from them is no problem of its own
    own = SAELENS_FIELDS.get(architecture)
    if own is None:
        own = tuple(fields_of(architecture))
    fields = {key: content[key] for key in own if key in content} | {"d_sae": d_sae} | ({} if k is None else {"k": k})
    if architecture == "topk":
        _check_topk(cfg, fields, d_sae)
    normalize_activations = cfg.one_of(
        "normalize_activations",
        "none",
        "layer_norm",
        *(None, False),
        remedy="Other normalisations are folded into the weights when SAELens finishes training; do that and write 'none'.",
    )
    cfg.one_of("reshape_activations", "none", "hook_z")  # our activations are flat already
    cfg.one_of("noise_scale", 0, 0.0, None)
    cfg.one_of("dtype", "float32", *_DTYPES)
    subtracts_b_dec = cfg.one_of("apply_b_dec_to_input", True, False)
    scales_latents = bool(cfg.one_of("finetuning_scaling_factor", False, True, None))
    if not subtracts_b_dec and architecture not in SAELENS_FIELDS:
        cfg.refuse("apply_b_dec_to_input", f"be true for the architecture {architecture!r}")
    if scales_latents and (architecture not in SAELENS_FIELDS or fields.get("rescale_acts_by_decoder_norm")):
        cfg.refuse("finetuning_scaling_factor", f"be false for the architecture {architecture!r} (topk: where latents are rescaled)")
    _check_hooks(cfg)
    _check_keys(cfg, own)
    cfg.raise_problems()
    return Description(architecture, fields, d_in, d_sae, normalize_activations == "layer_norm", subtracts_b_dec, scales_latents)


def _architecture(cfg: _Cfg) -> tuple[str, Any]:
    """Name here, and k where it lies elsewhere than under `k`."""
    architecture = cfg.content.get("architecture", "standard" if cfg.is_old else None)
    if not isinstance(architecture, str):
        cfg.refuse("architecture", "be a name")
        return "standard", None
    names = {str(cfg[key]): key for key in ("activation_fn", "activation_fn_str") if key in cfg.content}
    kwargs = cfg.content.get("activation_fn_kwargs", {})
    if len(names) > 1:
        cfg.refuse("activation_fn", f"agree with activation_fn_str={shown(cfg['activation_fn_str'])}")
    function, key = next(iter(names.items()), ("relu", "activation_fn"))
    if cfg.is_old and (function == "topk" or architecture == "topk") and function in ("topk", "relu") and kwargs:
        if architecture not in ("standard", "topk"):
            cfg.refuse(key, f"be 'relu' for the architecture {architecture!r}")
        elif not isinstance(kwargs, Mapping) or kwargs.keys() != {"k"} or cfg.content.get("k", kwargs["k"]) != kwargs["k"]:
            cfg.refuse("activation_fn_kwargs", f"hold `k` alone, equal to any `k` beside it (k={shown(cfg['k'])})")
        else:
            return "topk", kwargs["k"]
    elif function != "relu" and not (function == architecture == "topk" and cfg.is_old):
        cfg.refuse(key, "be 'relu', or 'topk' with its `k` in a file of SAELens below 6")
    elif kwargs not in ({}, None):
        cfg.refuse("activation_fn_kwargs", "be empty for the function 'relu'")
    return architecture, None


def _check_topk(cfg: _Cfg, fields: Mapping[str, Any], d_sae: int) -> None:
    k, rescales = fields.get("k"), fields.get("rescale_acts_by_decoder_norm", False)
    if type(k) is not int or not 1 <= k <= d_sae:
        got = f"k={shown(k)}" if "k" in fields else "none"
        cfg.problems.append(f"`k` must be a whole number from 1 to d_sae={shown(d_sae)}, but got {got} in {cfg.path}. {_CORRECT}")
    if not isinstance(rescales, bool):
        cfg.refuse("rescale_acts_by_decoder_norm", "be true or false")


def _check_hooks(cfg: _Cfg) -> None:
    """What an SAE reconstructs is what it reads; other than that it is a transcoder."""
    metadata = cfg["metadata"] if isinstance(cfg["metadata"], Mapping) else {}
    read = {
        content.get(key) for content in (cfg.content, metadata) for key in ("hook_name", "hook_point") if isinstance(content.get(key), str)
    }
    for content in (cfg.content, metadata):
        if content.get("hook_name_out") is not None and content["hook_name_out"] not in read:
            got = f"hook_name_out={shown(content['hook_name_out'])} beside {shown(sorted(read))}"
            cfg.problems.append(
                f"`hook_name_out` must be the hook that the SAE reads, but got {got} in {cfg.path}. Transcoders are not read."
            )


def _check_keys(cfg: _Cfg, own: Collection[str]) -> None:
    known = {*_READ.split(), *_NOT_COMPUTING.split(), *own}
    for key in cfg.content:
        if key not in known:
            got = f"{shown(key)}: {shown(cfg[key])}"
            remedy = "If it does not change what the SAE computes, move it into `metadata`."
            cfg.problems.append(f"keys of an SAE's cfg.json must be known, but got {got} in {cfg.path}. {remedy}")


def checked_tensors(
    tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], about: Description, path: str
) -> dict[str, Tensor]:
    """The tensors of a file in float32, if they are what the architecture needs.

    Args:
        shapes: of the architecture's tensors.

    Raises:
        ConfigError: with everything that is wrong, one line each.
    """
    named, shapes = dict(tensors), dict(shapes)
    if about.architecture == "jumprelu" and "log_threshold" in named and "threshold" not in named:
        shapes["log_threshold"] = shapes.pop("threshold")
    factors = [name for name in ("scaling_factor", "finetuning_scaling_factor") if name in named][:1]
    if about.is_saelens and (factors or about.scales_latents):
        shapes[factors[0] if factors else "scaling_factor"] = (about.d_sae,)
    problems = [f"must hold a tensor {name!r} of shape {list(shapes[name])}, but has none" for name in sorted(shapes.keys() - named.keys())]
    problems += [
        f"must hold no other tensors than {sorted(shapes)}, but has {shown(name)}" for name in sorted(named.keys() - shapes.keys())
    ]
    problems += [problem for name in sorted(shapes.keys() & named.keys()) if (problem := _problem(name, named[name], shapes[name]))]
    if not problems and factors and not about.scales_latents and not bool((named[factors[0]] == 1).all()):
        problems.append(f"must hold a {factors[0]} of ones where `finetuning_scaling_factor` is false, but it has others")
    if problems:
        what = f"an SAE's weights of architecture {about.architecture!r}"
        raise ConfigError("\n".join(f"{what} {problem}, in {path}. Put back a copy, or export the SAE again." for problem in problems))
    return {name: tensor.float() for name, tensor in named.items()}


def _problem(name: str, tensor: Tensor, shape: tuple[int, ...]) -> str | None:
    if tuple(tensor.shape) != shape:
        transposed = ", its transpose" if tuple(tensor.shape) == shape[::-1] else ""
        return f"must hold {name!r} of shape {list(shape)}, but it has {list(tensor.shape)}{transposed}"
    if not tensor.is_floating_point():
        return f"must hold {name!r} in a floating-point precision, but it has {tensor.dtype}"
    broken = tensor.numel() - int(tensor.float().isfinite().sum())
    return f"must hold finite numbers, but {broken} of {tensor.numel()} in {name!r} are not (in float32)" if broken else None


def folded(tensors: Mapping[str, Tensor], about: Description) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and fields of the equivalent SAE that subtracts b_dec, scales nothing, and selects by pre-activations alone.

    Factors of latents f: W_dec <- f W_dec, latents as they were. b_dec that is not subtracted: b <- b + b_dec W_enc for every bias b of
    pre-activations. Rescaling by n = ||W_dec_i||: W_enc n, b_enc n, W_dec / n. Thresholds below 0 let nothing more through than 0, since
    SAELens applies a ReLU as well. Sums in float64.
    """
    new, fields = dict(tensors), dict(about.fields)
    for name in ("scaling_factor", "finetuning_scaling_factor"):
        if (factor := new.pop(name, None)) is not None:
            new["W_dec"] = new["W_dec"] * factor[:, None]
    if (log_threshold := new.pop("log_threshold", None)) is not None:
        new["threshold"] = log_threshold.exp()
    if not about.subtracts_b_dec:
        shift = new["b_dec"].double() @ new["W_enc"].double()
        shifts = {"b_enc": shift} if "b_enc" in new else {"b_gate": shift, "b_mag": shift * new["r_mag"].double().exp()}
        new |= {name: (new[name].double() + shift).float() for name, shift in shifts.items()}
    if about.architecture == "topk" and fields.get("rescale_acts_by_decoder_norm"):
        norms = new["W_dec"].norm(dim=1)
        new |= {"W_enc": new["W_enc"] * norms, "b_enc": new["b_enc"] * norms}
        new["W_dec"] = new["W_dec"] / torch.where(norms > 0, norms, 1.0)[:, None]
    if about.architecture == "topk":
        fields["rescale_acts_by_decoder_norm"] = False
    if about.architecture == "jumprelu":
        new["threshold"] = new["threshold"].clamp(min=0)
    return new, fields
