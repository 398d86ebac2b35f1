"""Train-one-group as a Ray Tune trainable: the only file of sae_core that imports ray.

A trial's config is plain data (`TrialConfig`, as a dict), because Ray pickles and logs it: paths, never object references, which
do not survive a restart of the driver. Results are files under `directory`, written before Ray hears of them.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ray import get_gpu_ids, tune

from sae_core.activations.stream import Stream
from sae_core.checkpoint import RunFiles
from sae_core.config import RunConfig
from sae_core.training import Learner, train_group

REPORT_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class TrialConfig:
    """What a trial needs to know."""

    runs: list[dict[str, Any]]
    """RunConfigs of the group, as JSON."""
    cache: str
    """Absolute path of the harvested activations."""
    directory: str
    """Absolute path that holds a folder a run."""
    checkpoint_seconds: float = 60.0
    """Least time between two checkpoints."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """For the exported cfg.json; see `RunFiles.finish`."""
    facts: dict[str, Any] = field(default_factory=dict)
    """For the records; see `RunFiles.finish`."""


def train_trial(config: dict[str, Any]) -> None:
    """Train the group in `config["trial"]`, a `TrialConfig` as a dict, and write a record a run. Runs with a record are left alone.

    A retry of the trial, or a later launch with other groups, goes on from the checkpoint of each run.
    """
    trial = TrialConfig(**config["trial"])
    directory = Path(trial.directory)
    runs = [RunConfig.model_validate(run) for run in trial.runs]
    todo = [run for run in runs if not (directory / run.run_id / "record.json").exists()]
    # Ray leaves every GPU visible to a trial that asked for none, so torch.cuda.is_available() says nothing here.
    device = "cuda:0" if get_gpu_ids() else "cpu"
    if todo:
        stream = Stream(Path(trial.cache), batch_size=todo[0].train.batch_size, data_seed=todo[0].data_seed, device=device)
        files = RunFiles(directory)
        results = train_group(
            todo, stream, device=device, directory=directory, checkpoint_seconds=trial.checkpoint_seconds, on_step=_Reporter(files)
        )
        for result in results:
            now = datetime.now(UTC).isoformat(timespec="seconds")
            files.finish(result, metadata=trial.metadata, facts={**trial.facts, "finished_at": now})
    tune.report({"progress": {run.run_id: 1.0 for run in runs}})


class _Reporter:
    """Tells Tune how far each run is, about once a second, and keeps histories current for whoever watches the files."""

    def __init__(self, files: RunFiles) -> None:
        self.files = files
        self.rows_written: dict[str, int] = {}
        self.last = time.monotonic()

    def __call__(self, learners: Sequence[Learner]) -> None:
        if time.monotonic() - self.last < REPORT_SECONDS:
            return
        self.last = time.monotonic()
        for learner in learners:
            run_id, rows = learner.run.run_id, len(learner.history)
            if rows > self.rows_written.get(run_id, 0):
                self.files.write_history(run_id, learner.history)
                self.rows_written[run_id] = rows
        tune.report({"progress": {learner.run.run_id: learner.step / learner.run.n_steps for learner in learners}})
