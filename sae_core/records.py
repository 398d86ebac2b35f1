"""What a finished run leaves behind: `RunRecord`, written atomically as JSON. Standard library only.

A record is the truth about a run: the table, the plots and the report are made from records alone. NaN and infinity are
never written as numbers: they become null. `schema_version` lets later code read records made years ago.
"""

import dataclasses
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

SCHEMA_VERSION = 1

Status = Literal["trained", "finished", "pruned", "failed"]


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
    versions: dict[str, str] = field(default_factory=dict)
    """Version of this package (`sae_sweep`), its git commit where known (`commit`), and of python, torch, ray ..."""
    hardware: str | None = None
    kernels: str | None = None
    """`fast` where the sparse work of training was done by kernels made for the device, `reference` where by plain PyTorch."""
    finished_at: str | None = None
    """UTC, ISO 8601."""
    error: dict[str, str] | None = None
    """For failed and pruned runs: `type`, `message`, `traceback`."""
    schema_version: int = SCHEMA_VERSION

    def write(self, path: Path) -> None:
        """Write as JSON, atomically."""
        write_json(path, dataclasses.asdict(self))

    @classmethod
    def read(cls, path: Path) -> "RunRecord":
        """Read a record.

        Raises:
            ValueError: the file was written by a newer schema, or is not a record.
        """
        raw = json.loads(Path(path).read_text())
        version = raw.get("schema_version") if isinstance(raw, dict) else None
        if not isinstance(version, int) or version > SCHEMA_VERSION:
            raise ValueError(
                f"record schema_version must be <= {SCHEMA_VERSION}, but {path} has {version}. Install a newer sae-sweep to read it."
            )
        known = {f.name for f in dataclasses.fields(cls)}
        return cls(**{key: value for key, value in raw.items() if key in known})


def finite_or_none(value: Any) -> Any:
    """`value` with every NaN or infinite float inside dicts, lists and tuples replaced by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite_or_none(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_none(item) for item in value]
    return value


def flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The fields of a config by their paths, e.g. "train.lr"."""
    fields: dict[str, Any] = {}
    for name, value in nested.items():
        fields |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return fields


def write_json(path: Path, content: Any) -> None:
    """Write `content` as JSON so that a reader sees the old file or the new one, never half of it. NaN becomes null."""
    write_text(path, json.dumps(finite_or_none(content), indent=2, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to. It takes the place of `path` once it is whole and on disk; after an error it is gone."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
