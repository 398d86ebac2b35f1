"""Snapshots: the SAE of a run at points of its training, exported as a variant of the run."""

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sae_core import provenance
from sae_core.activations.stream import ActivationStream, split_pairs
from sae_core.config.snapshots import snapshot_steps
from sae_core.layout import RunPaths
from sae_core.training.export import write_snapshot
from sae_core.training.loop import Learner


class Snapshots:
    """Called after each step of a run: exports the SAE that the run would leave if this was its last step, calibrated as then.

    A run that resumes from before a point comes to the same SAE there, and writes it again.

    Args:
        points: see `config.snapshots`.
        stream: what the runs train on.
        directory: that holds a folder per run.
        metadata: as of `export.write_result`.
        facts: as of `export.write_result`, without `finished_at`.
    """

    def __init__(
        self,
        points: Sequence[float | str],
        stream: ActivationStream,
        directory: Path,
        metadata: Mapping[str, Any],
        facts: Mapping[str, Any],
    ) -> None:
        self.points, self.stream, self.directory, self.metadata, self.facts = points, stream, directory, metadata, facts
        self._steps: dict[str, list[int]] = {}

    def __call__(self, learner: Learner) -> None:
        run = learner.run
        if run.run_id not in self._steps:
            self._steps[run.run_id] = snapshot_steps(self.points, run.n_steps, run.train.batch_size)
        if learner.step not in self._steps[run.run_id]:
            return
        copied = dataclasses.replace(learner, sae=copy.deepcopy(learner.sae))
        copied.calibrate(split_pairs(batch, self.stream)[0] for batch in self.stream.batches(0))
        facts = {**self.facts, "finished_at": provenance.now()}
        result, paths = copied.result(self.stream.normalization), RunPaths(self.directory / run.run_id)
        write_snapshot(result, learner.step, paths, metadata=self.metadata, facts=facts)
