"""What a finished run leaves behind: `RunRecord`, written atomically as JSON. No torch.

A record is the truth about a run: the table, the plots and the report are made from records alone. NaN and infinity are
never written as numbers: they become null. `schema_version` lets later code read records made years ago.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from sae_core.errors import ConfigError, DamagedFileError
from sae_core.files import read_json, write_json

SCHEMA_VERSION = 1

Status = Literal["trained", "finished", "pruned", "failed"]
STATUSES: tuple[str, ...] = get_args(Status)


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """How a metric is named, drawn and ranked; written into every record, so that analysis needs no list of metrics."""

    name: str
    """Column name, e.g. `fvu`."""
    label: str
    """Axis label a reader understands, e.g. "Fraction of variance unexplained"."""
    unit: str
    """Unit, e.g. "nats per token"; empty for dimensionless."""
    direction: Literal["min", "max", "none"]
    """Which way is better; "none" for descriptive quantities."""


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One run: what was asked, what came out, and where it came from."""

    run_id: str
    status: Status
    """`trained`: exported but not yet evaluated. `finished`: evaluated. `pruned`: stopped early, on purpose. `failed`: see `error`."""
    config: dict[str, Any]
    """The whole RunConfig, as JSON."""
    architecture: str
    sparsity_parameter: str
    """Name of the field that sets sparsity, e.g. `k` or `l1_coefficient`."""
    sparsity_value: float | None
    seed: int
    d_in: int | None = None
    metrics: dict[str, float | None] = field(default_factory=dict)
    """Metric name -> value on held-out text; null where undefined."""
    metric_specs: list[dict[str, str]] = field(default_factory=list)
    """`MetricSpec`s of `metrics`, as dicts."""
    train_tokens: int | None = None
    eval_tokens: int | None = None
    """Held-out tokens the metrics are means over (special tokens excluded)."""
    train_seconds: float | None = None
    """Seconds spent in this run's own training steps."""
    tokens_per_second: float | None = None
    activations_hash: str | None = None
    """Content hash of the training activations: model weights, hook point, text, tokenizer, context size, dtype."""
    eval_hash: str | None = None
    """Content hash of the evaluation set: model weights, hook point and held-out token windows."""
    activation_facts: dict[str, float | None] = field(default_factory=dict)
    """Numbers about the activations that a reader may have to be warned of: `d_vocab`, `outlier_rows`, `outlier_share`; see
    `ActivationSource.facts` and `shards.Manifest`."""
    launch: int | None = None
    """Number of the launch that trained it, from 1; its definition is `definitions/<launch>.yaml` of the sweep."""
    versions: dict[str, str] = field(default_factory=dict)
    """Version of this package (`sae_sweep`), its git commit where known (`commit`), and of python, torch, ray ..., where it was trained."""
    hardware: str | None = None
    """Of the node that trained it."""
    eval_versions: dict[str, str] = field(default_factory=dict)
    """As `versions`, where it was evaluated."""
    eval_hardware: str | None = None
    """Of the nodes that evaluated it."""
    kernels: str | None = None
    """`fast` where the sparse work of training was done by kernels made for the device, `reference` where by plain PyTorch."""
    finished_at: str | None = None
    """UTC, ISO 8601."""
    error: dict[str, str] | None = None
    """For failed and pruned runs: `type`, `message`, `traceback`."""
    history_checksum: str | None = None
    """Of `history.jsonl`, as `files.write_json_lines` returns it."""
    schema_version: int = SCHEMA_VERSION

    def write(self, path: Path) -> None:
        """Write as JSON, atomically."""
        write_json(path, dataclasses.asdict(self))

    @classmethod
    def read(cls, path: Path) -> "RunRecord":
        """Read a record.

        Raises:
            FileNotFoundError: there is no such file.
            DamagedFileError: it is not a record, or not the one that was written.
            ConfigError: it was written by a newer version.
        """
        raw = read_json(path)
        version = raw.get("schema_version")
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise ConfigError(
                f"record schema_version must be <= {SCHEMA_VERSION}, but {str(path)!r} has {version}. Install a newer sae-sweep to read it."
            )
        wrong = [name for name, kind in _KINDS.items() if name in raw and not kind(raw[name])]
        missing = [name for name in _REQUIRED if name not in raw]
        if wrong or missing:
            reason = f"{[*wrong, *missing]} {'are' if len([*wrong, *missing]) > 1 else 'is'} missing or of the wrong type"
            raise DamagedFileError.of(path, ValueError(reason), "Delete it: the same launch makes it again.")
        return cls(**{field.name: raw[field.name] for field in dataclasses.fields(cls) if field.name in raw})


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _or_none(kind: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or kind(value)


def _dict_of(kind: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(kind(item) for item in value.values())


def _is_config(value: Any) -> bool:
    """Whether it has the shape that readers rely on: sections are mappings."""
    return isinstance(value, dict) and all(isinstance(value.get(name, {}), dict) for name in ("activations", "sae", "train"))


def _is_spec(value: Any) -> bool:
    names = [spec.name for spec in dataclasses.fields(MetricSpec)]
    return isinstance(value, dict) and all(_is_text(value.get(name)) for name in names) and value["direction"] in ("min", "max", "none")


_REQUIRED = ("run_id", "status", "config", "architecture", "sparsity_parameter", "sparsity_value", "seed", "schema_version")
_KINDS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("run_id", "architecture", "sparsity_parameter"), _is_text),
    **dict.fromkeys(
        ("activations_hash", "eval_hash", "hardware", "eval_hardware", "kernels", "finished_at", "history_checksum"), _or_none(_is_text)
    ),
    **dict.fromkeys(("sparsity_value", "train_seconds", "tokens_per_second"), _or_none(_is_number)),
    **dict.fromkeys(("d_in", "train_tokens", "eval_tokens", "launch"), _or_none(_is_whole)),
    **dict.fromkeys(("seed", "schema_version"), _is_whole),
    **dict.fromkeys(("metrics", "activation_facts"), _dict_of(_or_none(_is_number))),
    **dict.fromkeys(("versions", "eval_versions"), _dict_of(_is_text)),
    "status": lambda value: value in STATUSES,
    "config": _is_config,
    "metric_specs": lambda value: isinstance(value, list) and all(_is_spec(spec) for spec in value),
    "error": _or_none(_dict_of(_is_text)),
}
"""Field of a record -> whether a value read from a file can be one."""


def flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The fields of a config by their paths, e.g. "train.lr"."""
    fields: dict[str, Any] = {}
    for name, value in nested.items():
        fields |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return fields
