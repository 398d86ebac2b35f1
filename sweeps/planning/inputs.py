"""The activations that some runs of a sweep share: their source, their cache, and those runs."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sae_core.activations.shards import cache_directory, shard_path
from sae_core.activations.source import ActivationSource
from sae_core.config.run import SOURCES, ActivationsConfig, RunConfig
from sae_core.errors import ConfigError, DamagedFileError
from sae_core.evaluation import is_to_evaluate
from sae_core.records import RunRecord
from sae_core.training.init_from import check_start
from sae_core.training.transcoders import check_kind
from sae_core.validation import at
from sweeps.definition.local_data import locate
from sweeps.storage.store import Store, may_recover

PASS_BYTES = 2**33
"""Most memory for the rows of one shard at all hook points that are read in one pass, in float32: others are read in another."""
_BACKWARD_COPIES = 3
"""Per token of a KL stage, in sizes of the model / d_in: a block keeps about 34 numbers per token and width for its backward pass, and
has 12 weights per width squared."""
_SHARDS_IN_MEMORY = 5
"""In float32: those that `Stream` keeps, and copies of the one that is made."""


@dataclass(slots=True)
class SharedActivations:
    """The activations that some runs of a sweep share."""

    source: ActivationSource
    cache: Path
    activations_hash: str
    metadata: dict[str, object]
    """Where exported SAEs say they belong: names as the definition gives them, not where they were found."""
    runs: list[RunConfig] = field(default_factory=list)
    published: list[str] = field(default_factory=list)
    """Ids of published SAEs that are to be measured on them."""
    facts: dict[str, float | None] = field(default_factory=dict)
    """For the records: `RunRecord.activation_facts`."""
    d_in: int = 0
    """Width, once the source was asked."""
    d_out: int | None = None
    """Width of what transcoders reconstruct, once the source was asked; None: the runs are SAEs."""
    parts: dict[str, int] = field(default_factory=dict)
    """Hook point -> width, once the source was asked, where the runs are crosscoders."""
    model_bytes: int = 0
    """Memory of the source's model, once the source was asked."""
    n_stored: int | None = None
    """Training shards to store: the first ones. The others are made again by each group that reads them. None: all."""

    @property
    def config(self) -> dict[str, Any]:
        """The config of the activations, in JSON, as the runs have it."""
        return self.runs[0].activations.model_dump(mode="json")

    @property
    def arguments(self) -> tuple[dict[str, Any], str]:
        """What the jobs of `sweeps.execution.workers.SourceWorker` take: the source's config, in JSON, and its cache."""
        return self.source.config.model_dump(mode="json"), str(self.cache)

    @property
    def row_width(self) -> int:
        """Numbers per token: those of both activations, where there are pairs."""
        return self.d_in + (self.d_out or 0)

    @property
    def mean_width(self) -> int:
        """Width that memory and time of training are computed with: the mean of what is read and what is written."""
        return -(-(self.d_in + (self.d_out or self.d_in)) // 2)

    @property
    def n_shards(self) -> int:
        """Training shards; before `prepare`, about as many."""
        try:
            return self.source.n_shards(self.cache)
        except (FileNotFoundError, DamagedFileError):
            return -(-self.source.config.train_tokens // self.source.shard_tokens)

    @property
    def n_streamed(self) -> int:
        """Training shards that are made again by each group that reads them: neither stored now nor to be stored."""
        first = self.n_shards if self.n_stored is None else self.n_stored
        return sum(not shard_path(self.cache, index).exists() for index in range(first, self.n_shards))

    @property
    def shard_bytes(self) -> int:
        """Disk for a training shard."""
        return self.source.shard_tokens * self.row_width * getattr(torch, self.source.activations_dtype).itemsize

    @property
    def live_bytes(self) -> int:
        """Memory in each slot that makes shards again: the model, and the rows of the shards made last, and of one in the making.

        On a GPU the rows are not there, but what the model computes them from is, and it takes about as much. A KL stage has the model too,
        and what its backward pass needs.
        """
        rows = _SHARDS_IN_MEMORY * self.source.shard_tokens * self.row_width * 4 if self.n_streamed else 0
        staged = max((run.train.batch_size for run in self.runs if run.train.kl_stage), default=0)
        backward = int(staged * _BACKWARD_COPIES * self.model_bytes / self.d_in) if staged and self.d_in else 0
        return backward + rows + (self.model_bytes if rows or staged else 0)

    @property
    def streamed_share(self) -> float:
        """`n_streamed` as a fraction of all training shards."""
        return self.n_streamed / self.n_shards

    def to_train(self, store: Store) -> list[RunConfig]:
        """Runs that are to be trained."""
        records = [(run, store.read_record(run.run_id)) for run in self.runs]
        return [run for run, record in records if record is None or may_recover(record)]

    def n_todo(self, store: Store) -> int:
        """Number of runs that are to be trained or evaluated."""
        return len(self.to_train(store)) + len(self.to_evaluate(store))

    def to_evaluate(self, store: Store) -> dict[str, RunRecord]:
        """Records of the runs that are to be evaluated, or again because a plugin's metric was added or edited, or what was measured is
        damaged; each with its variants for which the same holds."""
        records: dict[str, RunRecord] = {}
        for run_id in (*(run.run_id for run in self.runs), *self.published):
            if (record := store.read_record(run_id)) is not None:
                records |= {run_id: record, **store.variants(run_id)}
        return {run_id: record for run_id, record in records.items() if _is_to_evaluate(record, store)}


def _is_to_evaluate(record: RunRecord, store: Store) -> bool:
    if record.status == "trained":
        return record.variant_kind is None or store.has_sound_sae(record.run_id)  # a launch trains a run again, but no variant
    has_sae = store.paths.run(record.run_id).sae.is_dir()
    return record.status == "finished" and has_sae and (is_to_evaluate(record) or not store.has_sound_measurements(record))


def shared_activations(
    configs: Iterable[ActivationsConfig], runs: Iterable[RunConfig], caches: Path, text: Path | None = None
) -> list[SharedActivations]:
    """The activations of a sweep, each with its runs and its cache.

    Args:
        configs: every kind of activations, also of runs that are not known yet.
        caches: directory of all harvested activations.
        text: where the demo's text is written if it is not there; default: `caches`.

    Raises:
        ConfigError: the model or the text is missing.
    """
    shared: dict[str, SharedActivations] = {}
    for key, config in {config.model_dump_json(): config for config in configs}.items():
        source = SOURCES[config.source](locate(config, text or caches))
        content = source.activations_hash()
        shared[key] = SharedActivations(source, cache_directory(caches, content), content, SOURCES[config.source](config).export_metadata())
    for run in runs:
        shared[run.activations.model_dump_json()].runs.append(run)
    return list(shared.values())


def check_kinds(inputs: Iterable[SharedActivations], directory: Path) -> None:
    """Make sure that all runs can train on what their sources make, activations or pairs, and start from what they name.

    Args:
        directory: of the sweep's runs.

    Raises:
        ConfigError: with every problem, one per line.
    """
    problems: dict[str, None] = {}
    for run, shared in ((run, each) for each in inputs for run in each.runs):
        try:
            check_kind(run, shared.d_out, shared.parts)
            check_start(run, shared.d_in, shared.d_out, shared.parts, directory)
        except ConfigError as error:
            problems[str(error)] = None
    if problems:
        raise ConfigError("\n".join(problems))


def kinds_in_words(inputs: Iterable[SharedActivations]) -> list[str]:
    """Where transcoders read and write, and what crosscoders read: lines of a plan, none where all runs are SAEs."""
    pairs, together = [], []
    for shared in inputs:
        if shared.d_out is not None:
            where = [at(shared.config, f"model.{field}") for field in ("hook_point", "hook_out")]
            pairs.append(" to ".join(where) if all(where) else f"{shared.config['source']}, {shared.d_in} to {shared.d_out}")
        if shared.parts:
            together.append(" + ".join(shared.parts))
    lines = {"transcoders": ", ".join(pairs), "crosscoders": "; ".join(together)}
    return [f"{kind} {what}" for kind, what in lines.items() if what]


def passes(inputs: Iterable[SharedActivations]) -> list[list[SharedActivations]]:
    """Activations that one pass over the text makes together: hook points of one model on one text. In the order of the first of each."""
    groups: dict[str, list[list[SharedActivations]]] = {}
    for shared in inputs:
        some = groups.setdefault(shared.source.pass_key or shared.activations_hash, [])
        n_bytes = 4 * shared.source.shard_tokens * shared.row_width
        if some and sum(4 * other.source.shard_tokens * other.row_width for other in some[-1]) + n_bytes <= PASS_BYTES:
            some[-1].append(shared)
        else:
            some.append([shared])
    return [group for some in groups.values() for group in some]
