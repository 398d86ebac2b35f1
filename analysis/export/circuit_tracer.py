"""Sets of transcoders, one per layer, that circuit-tracer loads: `config.yaml` and `layer_<i>.safetensors`.

The layout is that of decoderesearch/circuit-tracer v0.5.0. What its loader does not check, so that a wrong set would load and compute
something else, is checked or avoided here:
- W_enc is [d_sae, d_in] there, and stored transposed. Nothing is subtracted from the input, so the SAE must subtract nothing.
- A set in a folder runs as ReLU, whatever `activation` and `k` say; only a threshold in the file makes it JumpReLU. Inference forms have
  thresholds, also those trained as TopK. It applies no ReLU besides, as SAELens does: thresholds are at least 0.
- Whether there is a skip connection is asked of layer 0 alone, and every layer must have as many latents: all layers must agree.
- Tensors that it does not know are errors, and every `layer_*.safetensors` of the folder is a layer: nothing else is written.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from analysis.export.choice import Chosen
from analysis.export.folders import new_directory
from sae_core.errors import ConfigError, DamagedFileError
from sae_core.files import CHECKSUM, NO_CHECKSUM_YET, check_tensors, read_json, seal_tensors
from sae_core.layout import CFG, WEIGHTS

TENSORS = {
    "transcoder": (),
    "skip_transcoder": ("W_skip",),
    "jumprelu_transcoder": ("threshold",),
    "jumprelu_skip_transcoder": ("threshold", "W_skip"),
}
"""SAELens' architectures of transcoders -> tensors beyond W_enc, b_enc, W_dec and b_dec."""
SHOWN = ("l0", "fvu", "delta_ce")
"""Metrics that config.yaml keeps of each layer, for readers: no loader uses them."""


@dataclass(frozen=True, slots=True)
class Hooks:
    """Where a set reads and writes, named from within a block, e.g. `mlp.hook_in` and `hook_mlp_out`."""

    input: str
    output: str


def write_set(layers: Sequence[Chosen], to: Path, hooks: Hooks, model: str, *, repo: str | None = None) -> list[Path]:
    """Write a set.

    Args:
        layers: the transcoder of each layer, from layer 0 on.
        hooks: of all layers.
        model: name of the model, for readers.
        repo: repository on the Hub that the directory will be, where the set's own files are then named; None: it stays on disk.

    Returns:
        The files.

    Raises:
        ConfigError: a run is not a transcoder of the residual stream's width, the layers do not agree, or there is something at `to`; all
            that is wrong with the layers in one message.
        DamagedFileError: a file is not what was written.
    """
    _check([_cfg_of(run) for run in layers], layers)
    with new_directory(to) as temporary:
        for number, run in enumerate(layers):
            _write_layer(run, temporary / f"layer_{number}.safetensors")
        (temporary / "config.yaml").write_text(_config(layers, hooks, model, repo), encoding="utf-8")
    return [to / "config.yaml", *(to / f"layer_{number}.safetensors" for number in range(len(layers)))]


def _cfg_of(run: Chosen) -> dict[str, Any]:
    return read_json(run.directory / CFG)


def _check(cfgs: Sequence[Mapping[str, Any]], layers: Sequence[Chosen]) -> None:
    problems = []
    for number, (cfg, run) in enumerate(zip(cfgs, layers, strict=True)):
        where = f"layer {number}, run {run.run_id}"
        if cfg.get("architecture") not in TENSORS:
            problems.append(f"architecture must be one of {sorted(TENSORS)}, but got {cfg.get('architecture')!r} for {where}")
            continue
        if cfg.get("d_out") != cfg.get("d_in"):
            problems.append(f"input and output must be as wide, but got d_in={cfg.get('d_in')} and d_out={cfg.get('d_out')} for {where}")
        if cfg.get("apply_b_dec_to_input", True) is not False or cfg.get("normalize_activations", "none") != "none":
            problems.append(f"nothing may be done to the input before it is encoded, but got {_done_before(cfg)} for {where}")
    if not problems:
        problems = [*_disagreement(cfgs, layers, "d_sae"), *_disagreement(cfgs, layers, "d_in")]
        has_skip = [{"skip connection": "W_skip" in TENSORS[str(cfg["architecture"])]} for cfg in cfgs]
        problems += _disagreement(has_skip, layers, "skip connection")
    if problems:
        remedy = "Choose other runs with `--run`, one per layer."
        raise ConfigError("\n".join(f"transcoders of a set for circuit-tracer: {problem}. {remedy}" for problem in problems))


def _done_before(cfg: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={cfg.get(key)!r}" for key in ("apply_b_dec_to_input", "normalize_activations"))


def _disagreement(cfgs: Sequence[Mapping[str, Any]], layers: Sequence[Chosen], key: str) -> list[str]:
    values = {cfg[key] for cfg in cfgs}
    if len(values) == 1:
        return []
    got = ", ".join(f"{cfg[key]} for layer {number} (run {run.run_id})" for number, (cfg, run) in enumerate(zip(cfgs, layers, strict=True)))
    return [f"{key} must be the same in all layers, but got {got}"]


def _write_layer(run: Chosen, file: Path) -> None:
    from safetensors.numpy import save_file

    tensors = _renamed(_tensors_of(run), run)
    save_file(tensors, file, metadata={"run_id": run.run_id, CHECKSUM: NO_CHECKSUM_YET})
    seal_tensors(file)
    file.chmod(0o644)  # safetensors makes files for their owner alone


def _tensors_of(run: Chosen) -> dict[str, NDArray[Any]]:
    from safetensors.numpy import load_file

    file = run.directory / WEIGHTS
    check_tensors(file)
    try:
        return load_file(file)
    except Exception as error:
        raise DamagedFileError.of(file, error) from error


def _renamed(tensors: Mapping[str, NDArray[Any]], run: Chosen) -> dict[str, NDArray[np.float32]]:
    """The tensors of SAELens' transcoder as circuit-tracer has them, float32."""
    cfg = _cfg_of(run)
    d, m = cfg["d_in"], cfg["d_sae"]
    shapes = {"W_enc": (d, m), "b_enc": (m,), "W_dec": (m, d), "b_dec": (d,), "threshold": (m,), "W_skip": (d, d)}
    wanted = {name: shapes[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec", *TENSORS[cfg["architecture"]])}
    got = {name: tensor.shape for name, tensor in tensors.items()}
    if got != wanted:
        error = ValueError(f"a {cfg['architecture']} has tensors {wanted}, not {got}")
        raise DamagedFileError.of(run.directory / WEIGHTS, error, "Put back a copy, or train the run again.")
    new = {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
    new["W_enc"] = np.ascontiguousarray(new["W_enc"].T)
    if "threshold" in new:
        new["activation_function.threshold"] = np.maximum(new.pop("threshold"), 0)
    return new


def _config(layers: Sequence[Chosen], hooks: Hooks, model: str, repo: str | None) -> str:
    files = [f"hf://{repo}/layer_{number}.safetensors" for number in range(len(layers))]
    content = {
        "model_kind": "transcoder_set",
        "model_name": model,
        "feature_input_hook": hooks.input,
        "feature_output_hook": hooks.output,
        **({"scan": repo, "transcoders": files} if repo else {}),
        "runs": [
            {
                "layer": number,
                "run_id": run.run_id,
                "architecture": run.architecture,
                **{name: run.metrics[name] for name in SHOWN if run.metrics.get(name) is not None},
            }
            for number, run in enumerate(layers)
        ],
    }
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
