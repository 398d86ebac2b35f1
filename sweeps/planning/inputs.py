"""The activations that some runs of a sweep share: their source, their cache, and those runs."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sae_core.activations.source import ActivationSource
from sae_core.config.run import RunConfig
from sweeps.storage.store import Store, may_recover


@dataclass(slots=True)
class Input:
    """The activations that some runs of a sweep share."""

    source: ActivationSource
    cache: Path
    activations_hash: str
    metadata: dict[str, object]
    """Where exported SAEs say they belong: names as the definition gives them, not where they were found."""
    runs: list[RunConfig] = field(default_factory=list)
    facts: dict[str, float | None] = field(default_factory=dict)
    """For the records: `RunRecord.activation_facts`."""

    @property
    def arguments(self) -> tuple[dict[str, Any], str]:
        """What the jobs of `sweeps.execution.workers.SourceWorker` take: the source's config, in JSON, and its cache."""
        return self.source.config.model_dump(mode="json"), str(self.cache)

    def todo(self, store: Store) -> list[RunConfig]:
        """Runs without a finished record, or one of a failure that would happen again."""
        records = [(run, store.read_record(run.run_id)) for run in self.runs]
        return [run for run, record in records if record is None or record.status == "trained" or may_recover(record)]
