"""Early stopping that understands sparsity: successive halving among runs of the same L0 only.

A lower L0 costs reconstruction, so a rule that looks at errors alone stops the sparse end of a front first. Here a run is compared, at
each rung (a fraction of its steps), with runs of its architecture, width and data that were asked for about the same sparsity, and
stopped only if enough of them dominate it: asked to be no denser, and better. "Enough" keeps the best 1/reduction_factor. Seeds and
orders of the tokens of one setting do not stop each other. As in ASHA (Li et al. 2018, arXiv:1810.05934) the rule is asynchronous: a
run is judged against those that were at the rung before it, and nobody waits.

What runs showed at rungs is read from their histories, which are on disk before a run asks whether to go on: a relaunch decides
with the same knowledge.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sae_core.config.run import ArchitectureConfig, RunConfig
from sae_core.files import write_json, write_json_lines
from sae_core.trainable import rung_step
from sae_core.training.loop import steps_per_row
from sweeps.definition.sections import EarlyStoppingConfig
from sweeps.storage.store import Store, record_without_result

WINDOW = 0.05
"""Part of a run, before a rung, over which its error and L0 are averaged."""
SLACK = 1.05
"""A run up to this factor denser still counts as no less sparse."""
LEAST_SLOPE, MOST_SLOPE = 0.5, 1.0
"""How fast errors fall with L0, at least and at most: mse ~ L0^-slope. On the demo, at a third of a run: 0.5 to 1.2."""


@dataclass(frozen=True, slots=True)
class AtRung:
    """What a run, or the mean over the seeds and orders of a point, showed at a rung."""

    name: str
    """Run id, for messages."""
    comparable: str
    """Only runs with the same are compared."""
    setting: str
    """Runs with the same differ in `seed` and `data_seed` alone, and are not compared: the lucky one would be left of each."""
    density: float
    """What it was asked for: its target L0 or k, or 1 / coefficient."""
    aims: bool
    """Whether that is the L0 it will end at."""
    l0: float
    mse: float
    """Training error, in the units of training."""

    def in_band(self, other: "AtRung", factor: float) -> bool:
        """Whether two runs were asked for about the same sparsity."""
        return max(self.density, other.density) <= factor * min(self.density, other.density)

    def dominates(self, other: "AtRung") -> bool:
        """Whether this run was asked to be no denser than another, and is better.

        Runs that aim at an L0 are on their way to it: their errors are compared at the L0 of the other, with the slope that is less
        favourable to this one. Where a coefficient was given the L0 shown counts: this run must be no denser and have a lower error.
        """
        if self.density > SLACK * other.density:
            return False
        if not self.aims or other.l0 <= 0:
            return self.l0 <= SLACK * other.l0 and self.mse < other.mse
        denser = self.l0 / other.l0
        return self.mse * denser ** (MOST_SLOPE if denser > 1 else LEAST_SLOPE) < other.mse


def dominating(mine: AtRung, others: Iterable[AtRung], config: EarlyStoppingConfig) -> AtRung | None:
    """The run because of which `mine` should stop: the best of those that dominate it; None if it should go on.

    Args:
        others: what the runs that were at the same rung before showed there.
    """
    alike = [other for other in others if other.comparable == mine.comparable and other.setting != mine.setting]
    peers = [other for other in alike if mine.in_band(other, config.l0_band)]
    better = [peer for peer in peers if peer.dominates(mine)]
    kept = max(1, math.floor((len(peers) + 1) / config.reduction_factor))
    return min(better, key=lambda peer: peer.mse) if len(better) >= kept else None


def at_rung(runs: Sequence[RunConfig], histories: Sequence[Sequence[Mapping[str, float | None]]], rung: float) -> AtRung | None:
    """Means over runs that differ in `seed` and `data_seed` alone; None where a history does not reach the rung, or is not finite there.

    Args:
        histories: of the runs, in their order; see `Learner.history`.
    """
    values = []
    for run, history in zip(runs, histories, strict=True):
        last = rung_step(rung, run.n_steps)
        rows = [row for row in history if last - WINDOW * run.n_steps < (row["step"] or 0) <= last]
        pairs = [(l0, mse) for row in rows if (l0 := row.get("l0")) is not None and (mse := row.get("mse_loss")) is not None]
        # The next row after these would lie beyond the rung.
        reached = bool(rows) and (rows[-1]["step"] or 0) > last - steps_per_row(run.n_steps)
        if not reached or len(pairs) < len(rows):
            return None
        values.append([sum(column) / len(pairs) for column in zip(*pairs, strict=True)])
    l0, mse = (sum(column) / len(values) for column in zip(*values, strict=True))
    run, sae = runs[0], runs[0].sae
    parameter = "target_l0" if sae.target_l0 else sae.sparsity_parameter
    comparable = [sae.architecture, sae.d_sae, parameter, run.train.normalize_activations, run.activations.model_dump(mode="json")]
    aims = bool(sae.target_l0) or not sae.has_coefficient
    setting = run.model_copy(update={"seed": 0, "data_seed": 0}).run_id
    return AtRung(run.run_id, json.dumps(comparable), setting, _density(sae), aims, l0, mse)


def _density(sae: ArchitectureConfig) -> float:
    if sae.target_l0:
        return sae.target_l0
    if not sae.has_coefficient:
        return sae.sparsity_value
    return 1 / sae.sparsity_value if sae.sparsity_value else math.inf


class EarlyStopping:
    """Decides at rungs, and writes the records of the runs that it stops.

    Args:
        groups: the runs of each trial of this launch and of earlier ones.
    """

    def __init__(self, config: EarlyStoppingConfig, store: Store, groups: Iterable[Sequence[RunConfig]]) -> None:
        self.config, self.store = config, store
        self.seen: dict[float, dict[str, AtRung]] = {rung: {} for rung in config.rungs}
        for runs in groups:
            self._read(runs, config.rungs)

    def stops(self, runs: Sequence[RunConfig], rung: float, facts: Mapping[str, Any]) -> bool:
        """Whether the trial of these runs is to stop at a rung; if so they have their records.

        Args:
            facts: fields of those records.
        """
        self._read(runs, [rung])
        others = dict(self.seen[rung])
        mine = others.pop(runs[0].run_id, None)
        better = None if mine is None else dominating(mine, others.values(), self.config)
        if mine is None or better is None:
            return False
        reason = (
            f"dominated at {rung:.0%} of its tokens by {better.name}, whose error is {better.mse:.4g} at L0 {better.l0:.1f}; "
            f"its own {mine.mse:.4g} at L0 {mine.l0:.1f}"
        )
        for run in runs:
            self._prune(run, rung, reason, facts)
        return True

    def _read(self, runs: Sequence[RunConfig], rungs: Iterable[float]) -> None:
        """Remember what runs showed at those of the rungs that they reached."""
        # A run that diverged later showed a good error before: nobody should stop because of it.
        records = [self.store.read_record(run.run_id) for run in runs]
        if any(record is not None and record.status == "failed" for record in records):
            return
        histories = [self.store.read_history(run.run_id) for run in runs]
        for rung in rungs:
            if (shown := at_rung(runs, histories, rung)) is not None:
                self.seen[rung][shown.name] = shown

    def _prune(self, run: RunConfig, rung: float, reason: str, facts: Mapping[str, Any]) -> None:
        """Leave a record of a run that is stopped, and forget its checkpoint. Its trial writes nothing meanwhile."""
        write_json(self.store.paths.run(run.run_id).config, run.model_dump(mode="json"), checksum=False)
        error = {"type": "StoppedEarly", "message": reason, "traceback": ""}
        tokens = rung_step(rung, run.n_steps) * run.train.batch_size
        history = write_json_lines(self.store.paths.run(run.run_id).history, self.store.read_history(run.run_id))
        self.store.write_record(record_without_result(run, "pruned", error, train_tokens=tokens, history_checksum=history, **facts))
        self.store.paths.run(run.run_id).checkpoint.unlink(missing_ok=True)
