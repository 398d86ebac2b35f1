"""SAEBench's result files (0.6.0): one JSON per SAE and evaluation, `..._eval_results.json`, put together per SAE.

A column is "<evaluation>.<category>.<metric>", e.g. "core.sparsity.l0", or a field of the file such as "sae_cfg_dict.d_sae". Only what
means the same there as here is read as ours without being asked. Its explained variance is not: until 2026-03 it was taken about zero,
and before 2025-03 it was a mean of ratios per token (docs/formulas.md). Its `mse` depended on the size of batches.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis.foreign.cells import Missing
from sae_core.errors import ConfigError
from sae_core.records import flat

NO_VALUE = -1.0
"""What SAEBench writes in place of NaN in `core`, and for accuracies that were not measured."""
_ACCURACIES = ("accuracy", "auc", "f1")
_ABOUT = ("sae_lens_release_id", "sae_lens_id", "sae_bench_commit_hash", "sae_lens_version")
_NEEDED = {"eval_type_id", "eval_result_metrics", "sae_cfg_dict"}

OURS = {
    "run_id": "name",
    "architecture": "sae_cfg_dict.architecture",
    "model": "sae_cfg_dict.metadata.model_name",
    "hook_point": "sae_cfg_dict.metadata.hook_name",
    "context_size": "core.config.context_size",
    "dataset": "core.config.dataset",
    "d_in": "sae_cfg_dict.d_in",
    "d_sae": "sae_cfg_dict.d_sae",
    "eval_tokens": "core.token_stats.total_tokens_eval_reconstruction",
    "l0": "core.sparsity.l0",
    "cosine": "core.reconstruction_quality.cossim",
    "reconstruction_bias": "core.shrinkage.relative_reconstruction_bias",
    "ce_loss_clean": "core.model_performance_preservation.ce_loss_without_sae",
    "ce_loss_spliced": "core.model_performance_preservation.ce_loss_with_sae",
    "ce_loss_zero_ablated": "core.model_performance_preservation.ce_loss_with_ablation",
    "ce_loss_recovered": "core.model_performance_preservation.ce_loss_score",
    "kl": "core.model_behavior_preservation.kl_div_with_sae",
}
"""Our column -> SAEBench's, where both are the same number."""
OLDER = {"sae_cfg_dict.metadata.model_name": "sae_cfg_dict.model_name", "sae_cfg_dict.metadata.hook_name": "sae_cfg_dict.hook_name"}
"""Fields that files of SAELens before 6 have in another place."""


def is_result(content: Mapping[str, Any]) -> bool:
    """Whether a JSON object is one of SAEBench's results."""
    return set(content) >= _NEEDED


def read_directory(directory: Path) -> tuple[list[dict[str, Any]], list[str], dict[str, str]]:
    """Every result below a directory: see `rows_of`.

    Raises:
        ConfigError: it holds no result, or a file that is not one.
    """
    files = sorted(directory.rglob("*.json"))
    contents = [(file.relative_to(directory).as_posix(), json.loads(file.read_text(encoding="utf-8-sig"))) for file in files]
    if other := [name for name, content in contents if not (isinstance(content, Mapping) and is_result(content))]:
        raise ConfigError(
            f"a directory must hold result files of SAEBench and no other JSON, but {str(directory)!r} has {other[:5]}. "
            "Move them away, or give one file."
        )
    if not contents:
        raise ConfigError(f"a directory must hold result files of SAEBench, but {str(directory)!r} has none. Give one that has.")
    return rows_of(contents)


def rows_of(contents: Sequence[tuple[str, Mapping[str, Any]]]) -> tuple[list[dict[str, Any]], list[str], dict[str, str]]:
    """Results -> a row per SAE, what to call each, and which of its columns are ours.

    SAEs are told apart by release and id, and where a directory holds an evaluation of one several times, by the directory too.

    Args:
        contents: (name of the file, content).
    """
    keys = [(str(content.get("sae_lens_release_id")), str(content.get("sae_lens_id"))) for _, content in contents]
    times = Counter((*key, str(content["eval_type_id"])) for key, (_, content) in zip(keys, contents, strict=True))
    repeated = {key[:2] for key, number in times.items() if number > 1}
    rows: dict[tuple[str, ...], dict[str, Any]] = defaultdict(dict)
    seen: dict[tuple[str, ...], str] = {}
    for key, (name, content) in zip(keys, contents, strict=True):
        folder = [part for part in name.split("/")[:-1] if part != content["eval_type_id"]] if key in repeated else []
        row, kind = rows[(*key, *folder)], str(content["eval_type_id"])
        if before := seen.get((*key, *folder, kind)):
            raise ConfigError(
                f"an SAE must have one result per evaluation, but got two of {kind!r} for {key[1]!r} of {key[0]!r}: {before!r} and "
                f"{name!r}. Remove one, or put them into different directories."
            )
        seen[*key, *folder, kind] = name
        row |= {"name": "/".join([key[0], key[1], *folder]), **{field: content.get(field) for field in _ABOUT}}
        row |= {f"sae_cfg_dict.{field}": value for field, value in flat(content["sae_cfg_dict"] or {}).items()}
        row |= {f"{kind}.config.{field}": value for field, value in flat(content.get("eval_config") or {}).items()}
        row |= {f"{kind}.{field}": _value(kind, field, value) for field, value in flat(content["eval_result_metrics"]).items()}
    for row in rows.values():
        row |= {new: row[old] for new, old in OLDER.items() if row.get(new) is None and row.get(old) is not None}
    columns = {name for row in rows.values() for name in row}
    return (
        list(rows.values()),
        [f"SAE {row['name']!r}" for row in rows.values()],
        {ours: name for ours, name in OURS.items() if name in columns},
    )


def metrics_in(columns: Sequence[str]) -> list[str]:
    """Columns that are metrics of an evaluation: "<evaluation>.<category>.<metric>"."""
    return [name for name in columns if name.count(".") >= 2 and not name.startswith("sae_cfg_dict.") and ".config." not in name]


def _value(kind: str, field: str, value: Any) -> Any:
    unmeasured = value == NO_VALUE and not isinstance(value, bool) and (kind == "core" or field.endswith(_ACCURACIES))
    return Missing(f"was {NO_VALUE:g}, which stands for no value") if unmeasured else value
