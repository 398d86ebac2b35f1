"""SAELens' files, `cfg.json` and `sae_weights.safetensors`, as plain data: what is written, and what files of any age mean to us.

A key that is absent means what it meant when the file was written. What a key changes is undone exactly, folded into the weights, or
refused by name; a key that is not known is refused too, because it could change what the SAE computes.
Format facts: sae-lens 2 to 6.54.12. Versions below 6 put training settings and the model beside the fields that compute; from 6 on the
latter are alone, and the rest lies in `metadata`. 6.54.12 reads `dtype`, `architecture` and `metadata.sae_lens_version` as mandatory, and
tensor names exactly; it ignores the checksums that both files carry.
"""

import reprlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae_core import plugins
from sae_core.activations.files import load_tensors, save_tensors
from sae_core.errors import ConfigError, UnknownNameError
from sae_core.files import read_json, write_json
from sae_core.layout import CFG, PARTS, WEIGHTS

FORMAT_VERSION = "6.54.12"
"""SAELens version whose format is written; below 6.0.0 its loader drops the metadata."""
SAELENS_FIELDS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("standard", "gated", "jumprelu"), ()),
    **dict.fromkeys(("topk", "abstopk"), ("k",)),
    "matching_pursuit": ("max_iterations", "residual_threshold", "stop_on_duplicate_support"),
}
"""Architectures that SAELens and we know -> fields of their configs that inference needs, beside `d_sae`."""
RESCALED = ("topk", "abstopk")
"""Those of them that may multiply pre-activations by decoder norms."""
MATCHING_PURSUIT: dict[str, Any] = {"max_iterations": None, "residual_threshold": 1e-2, "stop_on_duplicate_support": True}
"""What absent fields of matching pursuit mean; no most iterations: as many as d_in."""
TRANSCODERS = {
    "transcoder": ("standard", False),
    "skip_transcoder": ("standard", True),
    "jumprelu_transcoder": ("jumprelu", False),
    "jumprelu_skip_transcoder": ("jumprelu", True),
}
"""SAELens' names of transcoders -> name of the architecture here, and whether there is a skip connection."""
DEFAULT_D_OUT = 768
"""What SAELens takes for the width of a transcoder's output where the file does not say."""

_VALUES: dict[str, tuple[Any, ...]] = {
    "normalize_activations": ("none", "layer_norm", None, False),
    "reshape_activations": ("none", "hook_z"),  # our activations are flat already
    "noise_scale": (0, 0.0, None),
    "dtype": tuple(f"{prefix}{name}" for prefix in ("", "torch.") for name in ("float32", "float64", "float16", "bfloat16")),
    "apply_b_dec_to_input": (True, False),
    "finetuning_scaling_factor": (False, True, None),
    "rescale_acts_by_decoder_norm": (False, True),
}
"""Keys that decide what an SAE computes -> values that are read; the first is what an absent key means."""
_SCALES_TOKENS = ", which divides each token by its norm at run time: of such norms only layer_norm is read"
_OTHER_KEYS = """
    architecture d_in d_sae activation_fn activation_fn_str activation_fn_kwargs hook_name hook_point hook_name_out metadata
    sae_lens_version

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
"""Keys of SAELens' versions that are read elsewhere, or do not change what a finished SAE computes: model, data and file; training."""

_short = reprlib.Repr()
_short.maxlevel, _short.maxstring, _short.maxother = 3, 100, 100


@dataclass(frozen=True, slots=True)
class StoredSAE:
    """An SAE or transcoder in inference form as its files describe it, in terms of our architectures: an SAE subtracts b_dec; neither
    scales anything."""

    architecture: str
    fields: dict[str, Any]
    """Of the architecture's config, not validated."""
    d_in: int
    d_out: int | None
    """Width of a transcoder's output; None for an SAE."""
    layer_norm: bool
    tensors: dict[str, Tensor]
    """Float32; names and shapes are not validated."""
    parts: Mapping[str, int] = field(default_factory=dict)
    """Of a crosscoder: hook point -> width."""


def cfg_of(architecture: str, fields: Mapping[str, Any], d_in: int, d_out: int | None, *, d_sae: int, skips: bool) -> dict[str, Any]:
    """What cfg.json says of an SAE or transcoder, beside what is the same for all of them.

    Args:
        architecture: name here of the inference form. SAELens has names of its own for transcoders.
        fields: beyond the common ones, that inference needs.
    """
    sizes = {"d_in": d_in, "d_sae": d_sae}
    if d_out is None:
        return {"architecture": architecture, **sizes, **fields}
    names = {ours: name for name, ours in TRANSCODERS.items()}
    theirs = names.get((architecture, skips))
    skip = {"skip_connection": True} if skips and not theirs else {}
    return {"architecture": theirs or architecture, **sizes, "d_out": d_out, "apply_b_dec_to_input": False, **skip, **fields}


def write(directory: Path, cfg: Mapping[str, Any], tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write an SAE in inference form, float32.

    Args:
        cfg: what `cfg_of` returns, and `normalize_activations`.
        metadata: `model_name`, `hook_name`, `context_size`, ... and anything else worth keeping; SAELens accepts any key.
    """
    is_z = str(metadata.get("hook_name", "")).endswith("hook_z")
    common = {
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        # SAELens flattens (heads, d_head) itself, when told to; our activations are flat already.
        "reshape_activations": "hook_z" if is_z and "d_out" not in cfg and PARTS not in metadata else "none",
    }
    directory.mkdir(parents=True, exist_ok=True)
    save_tensors(directory / WEIGHTS, {name: tensor.detach().float().cpu().contiguous() for name, tensor in tensors.items()})
    write_json(directory / CFG, {**common, **cfg, "metadata": {"sae_lens_version": FORMAT_VERSION, **metadata}})


def read(directory: Path, ours: Mapping[str, Collection[str]]) -> StoredSAE:
    """Read what `write` or SAELens wrote.

    Args:
        ours: architectures that SAELens does not know -> the fields of their configs.

    Raises:
        ConfigError: the files say something that is not known here, with everything that is wrong, one line each.
        Exception: whatever reading what is not such a file raises.
    """
    cfg, tensors = read_json(directory / CFG), load_tensors(directory / WEIGHTS)[0]
    value = {key: cfg.get(key, values[0]) for key, values in _VALUES.items()}
    stored_name = cfg.get("architecture")
    is_transcoder = stored_name in TRANSCODERS or (stored_name in ours and "d_out" in cfg)
    architecture, fields = _architecture(cfg, {**SAELENS_FIELDS, **dict.fromkeys(TRANSCODERS, ()), **ours})
    problems = _problems(cfg, architecture, fields, is_transcoder=is_transcoder)
    if broken := [name for name, tensor in tensors.items() if not (tensor.is_floating_point() and bool(tensor.float().isfinite().all()))]:
        problems.append(f"tensors of an SAE must be finite floating-point numbers, in float32 too, but got others in {broken}")
    scales = bool(value["finetuning_scaling_factor"])
    factors = [tensors.pop(name) for name in ("scaling_factor", "finetuning_scaling_factor") if name in tensors][:1]
    if scales != bool(factors) and not (factors and bool((factors[0] == 1).all())):
        problems.append(f"`finetuning_scaling_factor` must say whether there is a scaling factor other than 1, but got {scales}")
    parts, widths_fit = _parts(cfg)
    if not widths_fit:
        problems.append(f"`{PARTS}` of an SAE's cfg.json must be widths that add up to d_in={shown(cfg['d_in'])}, but got {shown(parts)}")
    if problems:
        raise ConfigError("\n".join(f"{problem}, in {str(directory)!r}. Put back a copy, or export the SAE again." for problem in problems))
    tensors_as_ours = folded(
        {name: tensor.float() for name, tensor in tensors.items()},
        factor=factors[0].float() if factors else None,
        add_b_dec=not (value["apply_b_dec_to_input"] or is_transcoder),
        rescale=architecture in RESCALED and value["rescale_acts_by_decoder_norm"],
    )
    architecture, skips = TRANSCODERS.get(architecture, (architecture, False))
    fields |= {"skip_connection": True} if skips else {}
    if architecture == "matching_pursuit":
        fields = {**MATCHING_PURSUIT, **fields}
        most = fields.pop("max_iterations")
        fields["k"] = cfg["d_in"] if most is None else most
    d_out = cfg.get("d_out", DEFAULT_D_OUT) if is_transcoder else None
    return StoredSAE(architecture, fields, cfg["d_in"], d_out, value["normalize_activations"] == "layer_norm", tensors_as_ours, parts)


def _parts(cfg: Mapping[str, Any]) -> tuple[Any, bool]:
    """Hook points of a crosscoder and their widths, and whether they are such."""
    parts = (cfg.get("metadata") or {}).get(PARTS, {})
    widths: list[Any] = list(parts.values()) if isinstance(parts, dict) else [None]
    are_counts = all(type(width) is int and width > 0 for width in widths)
    return parts, are_counts and (not widths or sum(widths) == cfg["d_in"])


def plugins_needed(directory: Path, known: Collection[str]) -> list[str]:
    """Plugins that cfg.json names, where its architecture is none of `known` and none of SAELens'.

    Raises:
        ConfigError: one is a file in the SAE's own directory, so that it may have come with a download.
    """
    cfg = read_json(directory / CFG)
    metadata = cfg.get("metadata")
    if cfg.get("architecture") in {*known, *SAELENS_FIELDS, *TRANSCODERS} or not isinstance(metadata, dict):
        return []
    needed = [location for location in metadata.get("plugins") or () if isinstance(location, str)]
    for location in needed:
        if plugins.is_file(location) and Path(location).resolve().is_relative_to(directory.resolve()):
            raise ConfigError(
                f"a plugin named in an SAE's cfg.json must be outside the SAE's directory, but got {location!r}, which is not imported "
                "unless you name it. Read it first, then pass `from_pretrained(..., plugins=[...])`."
            )
    return needed


def _architecture(cfg: Mapping[str, Any], known: Mapping[str, Collection[str]]) -> tuple[str, dict[str, Any]]:
    """Name here, and the fields of its config."""
    version = cfg.get("sae_lens_version") or (cfg.get("metadata") or {}).get("sae_lens_version")
    is_old = version is None or int(version.split(".")[0]) < 6  # earlier versions did not say which they were
    architecture = cfg.get("architecture", "standard" if is_old else None)
    functions = {cfg[key] for key in ("activation_fn", "activation_fn_str") if key in cfg} or {"relu"}
    kwargs = cfg.get("activation_fn_kwargs") or {}
    is_topk = is_old and "topk" in (architecture, *functions) and architecture in ("standard", "topk")
    if is_topk and kwargs.keys() == {"k"} and cfg.get("k", kwargs["k"]) == kwargs["k"] and functions in ({"topk"}, {"relu"}):
        architecture = "topk"
    elif kwargs or functions != ({"topk"} if is_old and architecture == "topk" and "relu" not in functions else {"relu"}):
        raise ConfigError(
            "`activation_fn` of an SAE's cfg.json must be 'relu', or 'topk' with the `k` of the SAE in a file of SAELens below 6, but got "
            f"{shown(sorted(functions))} with {shown(kwargs)} for architecture={shown(architecture)}. Correct it, or export the SAE again."
        )
    if architecture not in known:
        raise UnknownNameError.of(
            "`architecture` of an SAE's cfg.json",
            str(architecture),
            known,
            "Export the inference form; others are not read.",
        )
    content = {**kwargs, **cfg}
    fields = {key: content[key] for key in known[architecture] if key in content} | {"d_sae": cfg["d_sae"]}
    return architecture, fields | ({"rescale_acts_by_decoder_norm": False} if architecture in RESCALED else {})


def _problems(cfg: Mapping[str, Any], architecture: str, fields: Collection[str], *, is_transcoder: bool) -> list[str]:
    """What is said that is not read."""
    problems = [
        f"`{key}` of an SAE's cfg.json must be one of {list(values)}, but got {key}={shown(cfg[key])}"
        f"{_SCALES_TOKENS if cfg[key] == 'constant_norm_rescale' else ''}"
        for key, values in _VALUES.items()
        if key in cfg and not any(type(cfg[key]) is type(value) and cfg[key] == value for value in values)
    ]
    of_others = {"rescale_acts_by_decoder_norm"} - set(fields)
    known = {*_VALUES, *_OTHER_KEYS.split(), *fields, *(["d_out"] if is_transcoder else [])} - of_others
    problems += [
        f"keys of an SAE's cfg.json must be known or be in `metadata`, but got {shown(key)}: {shown(cfg[key])}"
        for key in cfg
        if key not in known
    ]
    may_scale = architecture in {*SAELENS_FIELDS} - {"matching_pursuit"} and not cfg.get("rescale_acts_by_decoder_norm")
    if cfg.get("finetuning_scaling_factor") and not may_scale:
        problems.append(f"`finetuning_scaling_factor` must be false for the architecture {architecture!r}, or where latents are rescaled")
    if is_transcoder:
        return problems + _problems_of_transcoder(cfg, architecture)
    if cfg.get("apply_b_dec_to_input") is False and architecture not in SAELENS_FIELDS:
        problems.append(f"`apply_b_dec_to_input` must be true for the architecture {architecture!r}, but got False")
    content = {**(cfg.get("metadata") or {}), **cfg}
    read_at = [content.get(key) for key in ("hook_name", "hook_point")]
    if (out := content.get("hook_name_out")) is not None and out not in read_at:  # else it is a transcoder
        problems.append(f"`hook_name_out` must be the hook that the SAE reads, but got {shown(out)} beside {shown(read_at)}")
    return problems


def _problems_of_transcoder(cfg: Mapping[str, Any], architecture: str) -> list[str]:
    """What is said that SAELens refuses, or that would make another output: b_dec is the output's alone, and nothing is un-normalized."""
    wanted: dict[str, tuple[Any, ...]] = {"apply_b_dec_to_input": (False,), "normalize_activations": ("none", None, False)}
    wanted |= {"reshape_activations": ("none",), "finetuning_scaling_factor": (False, None)}
    given = {key: cfg.get(key, _VALUES[key][0]) for key in wanted}
    problems = [
        f"`{key}` of a transcoder's cfg.json must be {wanted[key][0]!r}, but got {key}={shown(value)} for architecture={architecture!r}"
        for key, value in given.items()
        if value not in wanted[key]
    ]
    d_out = cfg.get("d_out", DEFAULT_D_OUT)
    if type(d_out) is not int or d_out < 1:
        problems.append(f"`d_out` of a transcoder's cfg.json must be a whole number above 0, but got d_out={shown(d_out)}")
    return problems


def folded(tensors: dict[str, Tensor], *, factor: Tensor | None, add_b_dec: bool, rescale: bool) -> dict[str, Tensor]:
    """Tensors of the equivalent SAE that subtracts b_dec, scales nothing, and selects by pre-activations alone.

    Factors of latents f: W_dec <- f W_dec, latents as they were. b_dec that is not subtracted: b <- b + b_dec W_enc for every bias b of
    pre-activations. Rescaling by n = ||W_dec_i||: W_enc n, b_enc n, W_dec / n. Thresholds below 0 let nothing more through than 0, since
    SAELens applies a ReLU as well. Sums in float64.
    """
    new = dict(tensors)
    if factor is not None:
        new["W_dec"] = new["W_dec"] * factor[:, None]
    if "log_threshold" in new:
        new["threshold"] = new.pop("log_threshold").exp()
    if "threshold" in new:
        new["threshold"] = new["threshold"].clamp(min=0)
    if add_b_dec and "W_enc" not in new:  # matching pursuit: then SAELens does not add it to the output either
        new["b_dec"] = torch.zeros_like(new["b_dec"])
    elif add_b_dec:
        shift = new["b_dec"].double() @ new["W_enc"].double()
        shifts = {"b_enc": shift} if "b_enc" in new else {"b_gate": shift, "b_mag": shift * new["r_mag"].double().exp()}
        new |= {name: (new[name].double() + shift).float() for name, shift in shifts.items()}
    if rescale:
        norms = new["W_dec"].norm(dim=1)
        new |= {"W_enc": new["W_enc"] * norms, "b_enc": new["b_enc"] * norms}
        new["W_dec"] = new["W_dec"] / torch.where(norms > 0, norms, 1.0)[:, None]
        # A tensor that is left as it is in the file would keep the whole file in memory, beside the new ones.
        new |= {name: tensor.clone() for name, tensor in new.items() if tensor is tensors.get(name)}
    return new


def shown(value: Any) -> str:
    """A value of a file in a message: one line, and not a long one."""
    return _short.repr(value)
