"""What a finished run leaves behind: `RunRecord`, written atomically as JSON. No torch.

A record is the truth about a run: the table, the plots and the report are made from records alone. NaN and infinity are
never written as numbers: they become null. `schema_version` lets later code read records made years ago.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, TypeAdapter

from sae_core.errors import ConfigError, DamagedFileError
from sae_core.files import read_json, read_json_lines, write_json
from sae_core.layout import RunPaths
from sae_core.validation import ConfigDump, Number, Whole, at, first_problem, printable, tabular, wrong_in_sweep

SCHEMA_VERSION = 1
DENSITY_EDGES = tuple(10 ** (quarter / 4 - 8) for quarter in range(33))
"""Ends of the 32 bins of `RunRecord.latent_densities`: four per decade, from 1e-8 to 1. A density that is an end belongs to the bin above
it, 1 to the last bin, and one below 1e-8 to the first."""
_N_DENSITIES = len(DENSITY_EDGES)  # one more than bins: latents that are never active are counted, too
_Densities = Annotated[list[Annotated[Whole, Field(ge=0)]], Field(min_length=_N_DENSITIES, max_length=_N_DENSITIES)]
LONGEST_ERROR = 500
"""Characters of an error that tables and commands show; the record has all of them."""

Status = Literal["trained", "finished", "pruned", "failed"]
RunState = Literal["finished", "trained", "pruned", "failed", "missing"]
"""What became of a run, best first: the status of its record, or `missing` where there is none."""
STATES: tuple[RunState, ...] = get_args(RunState)
VariantKind = Literal["snapshot", "form"]
VARIANTS: tuple[VariantKind, ...] = get_args(VariantKind)
"""What is measured beside a run: `snapshot`, its SAE at an earlier step; `form`, its SAE in another form, as with a smaller k. In the table
this is their status, so that they never count as finished runs."""


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
    config: ConfigDump
    """The whole RunConfig, as JSON."""
    architecture: str
    sparsity_parameter: str
    """Name of the field that sets sparsity, e.g. `k` or `l1_coefficient`."""
    seed: Whole | None
    """None where it is not known."""
    sparsity_value: Number | None = None
    d_in: Whole | None = None
    d_out: Whole | None = None
    """Of transcoders: width of what they reconstruct."""
    published: str | None = None
    """Of an SAE that was not trained here: its directory, or its name on the Hugging Face Hub with the commit. Its config has the
    activations that it was measured on, and `sae` in inference form."""
    metrics: dict[str, Number | None] = field(default_factory=dict)
    """Metric name -> value on held-out text; null where undefined."""
    metric_specs: list[MetricSpec] = field(default_factory=list)
    """Of `metrics`."""
    train_tokens: Whole | None = None
    eval_tokens: Whole | None = None
    """Held-out tokens the metrics are means over (special tokens excluded)."""
    train_seconds: Number | None = None
    """Seconds spent in this run's own training steps."""
    tokens_per_second: Number | None = None
    activations_hash: str | None = None
    """Content hash of the training activations: model weights, hook point, text, tokenizer, context size, dtype."""
    eval_hash: str | None = None
    """Content hash of the evaluation set: model weights, hook point and held-out token windows."""
    activation_facts: dict[str, Number | None] = field(default_factory=dict)
    """Numbers about the activations that a reader may have to be warned of: `d_vocab`, `outlier_rows`, `outlier_share`; see
    `ActivationSource.facts` and `shards.Manifest`."""
    launch: Whole | None = None
    """Number of the launch that trained it, from 1; its definition is `definitions/<launch>.yaml` of the sweep."""
    attempts: Whole | None = None
    """Times its training was started in that launch: 1 unless its process died or its group failed."""
    versions: dict[str, str] = field(default_factory=dict)
    """Version of this package (`sae_sweep`), its git commit where known (`commit`), and of python, torch, ray ..., where it was trained."""
    hardware: str | None = None
    """Of the node that trained it."""
    eval_versions: dict[str, str] = field(default_factory=dict)
    """As `versions`, where it was evaluated."""
    eval_hardware: str | None = None
    """Of the nodes that evaluated it."""
    kernels: str | None = None
    """What was asked for: `fast`, `triton` or `reference`; what was used is in `arithmetic`."""
    arithmetic: dict[str, str] = field(default_factory=dict)
    """Kernels, device and precisions of training: `arithmetic.arithmetic`."""
    eval_arithmetic: dict[str, str] = field(default_factory=dict)
    """As `arithmetic`, of evaluation, with the precision of the language model."""
    eval_plugins: dict[str, str] = field(default_factory=dict)
    """Name -> checksum of the plugins whose metrics and evaluators are among `metrics`."""
    evaluator_errors: dict[str, str] = field(default_factory=dict)
    """Evaluator -> why its columns have no value."""
    finished_at: str | None = None
    """UTC, ISO 8601."""
    error: dict[str, str] | None = None
    """For failed and pruned runs: `type`, `message`, `traceback`."""
    history_checksum: str | None = None
    """Of `history.jsonl`, as `files.write_json_lines` returns it."""
    documents_checksum: str | None = None
    """Of `documents.parquet`, as `documents.write_documents` returns it."""
    latent_densities: _Densities | None = None
    """How many latents are active on which share of the held-out tokens: first those that are active on none, then one number per bin of
    `DENSITY_EDGES`. Together d_sae."""
    variant_of: str | None = None
    """Run that this is a variant of; None: it is a run."""
    variant_kind: VariantKind | None = None
    """What kind of variant. `train_tokens` are those seen by then; `sparsity_value` is that of the form."""
    schema_version: Whole = SCHEMA_VERSION

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
        try:
            tabular(raw)
            return _RECORD.validate_python(raw)
        except ValueError as error:
            raise DamagedFileError.of(
                path, ValueError(first_problem(error)), "Delete it: the same command trains the run again."
            ) from error


_RECORD = TypeAdapter(RunRecord)


def read_history(file: Path) -> list[dict[str, Any]]:
    """Rows of a `history.jsonl`, oldest first; empty where there is none.

    Raises:
        DamagedFileError: it is not the one that the record beside it was written with.
    """
    try:
        checksum = RunRecord.read(RunPaths(file.parent).record).history_checksum
    except (ConfigError, OSError):
        checksum = None
    return read_json_lines(file, checksum)


def read_sweep_file(file: Path) -> dict[str, Any]:
    """Content of a `sweep.json`.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedFileError: it is not what was written.
    """
    facts = read_json(file)
    if problem := wrong_in_sweep(facts):
        raise DamagedFileError.of(file, ValueError(problem), "The next launch writes it again.")
    return facts


def reason(error: Mapping[str, str]) -> str:
    """Why a run failed or was pruned, in one line: type and message, or the cause that Ray wrapped."""
    kind, message = error.get("type", "error"), error.get("message", "no message was recorded")
    lines = [line for line in message.splitlines() if line.strip()]
    if len(lines) > 1 and "ray::" in message:  # a traceback of another process, which ends in the cause
        return printable(lines[-1])[:LONGEST_ERROR]
    return printable(f"{kind}: {message}")[:LONGEST_ERROR]


def flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The fields of a config by their paths, e.g. "train.lr"."""
    fields: dict[str, Any] = {}
    for name, value in nested.items():
        fields |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return fields


def field_name(path: str) -> str:
    """What a reader calls a field of a flat config: "lr" for "train.lr", "kl_stage.tokens" for "train.kl_stage.tokens"."""
    section, _, name = path.partition(".")
    return name if section in ("sae", "train") else path.rpartition(".")[2]


LEFT_OUT: Mapping[str, Any] = {
    "sae.aligned": False,
    "sae.skip_connection": False,
    "sae.lp_norm": 1.0,
    "sae.normalize_decoder": False,
    "sae.frequency_scale": None,
    "train.tokens": None,
    "train.init_from": None,
    "init_hash": None,
    "train.kl_stage.tokens": None,
    "train.kl_stage.weight": None,
    "activations.model.hook_out": None,
    "activations.model.device_map": None,
    "activations.model.quantization": None,
    "activations.data.chat_column": None,
    "activations.data.chat_template": None,
    "activations.data.train_on": "all",
    "activations.data.positions": None,
    "activations.data.packing": "packed",
    "activations.data.exclude_high_norm": None,
}
"""Fields that the JSON of a RunConfig lacks where they have these values, so that a run keeps the id that it had before there were such."""


def tokens_asked(config: Mapping[str, Any]) -> int | None:
    """Training tokens that the config of a run, as JSON, asks for; None where it does not say."""
    own = at(config, "train.tokens")
    return at(config, "activations.train_tokens") if own is None else own


def completed(configs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Flat configs, each with the fields of `LEFT_OUT` that another one of them has."""
    given = [name for name in LEFT_OUT if any(name in config for config in configs)]
    return [{**config, **{name: config.get(name, LEFT_OUT[name]) for name in given}} for config in configs]
