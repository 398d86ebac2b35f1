"""The Optuna study of a search. Its file lists the points proposed so far; what became of them is read from the records of their runs.

The study itself lives in memory and is made from both at each launch, so a later launch with more `trials` continues it. A trial whose
runs were stopped early is PRUNED, one with a failed run or without a value is FAIL, and only one whose runs are all finished is COMPLETE.
A point whose runs have no such record, because a launch was killed or a worker died, is not counted and is tried again: its runs have
the same ids, so they resume from their checkpoints.
"""

import logging
import math
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import TrialState

from sae_core.config.run import RunConfig
from sae_core.errors import ConfigError, reason_of
from sae_core.evaluation import metric_plugins
from sae_core.files import read_json, write_json
from sae_core.metrics.evaluators import column_specs
from sae_core.records import RunRecord
from sae_core.seeds import seed_of
from sweeps.definition.grid import Axis
from sweeps.definition.problems import Problems
from sweeps.definition.sections import SearchConfig
from sweeps.definition.space import ARCHITECTURES, Point, Space
from sweeps.samplers import SAMPLERS
from sweeps.samplers.standard import RANDOM_START
from sweeps.storage.set_aside import make_room, set_aside
from sweeps.storage.store import Store, may_recover

log = logging.getLogger(__name__)

LEAST_L0 = 0.1
"""Taken for the L0 of an SAE without active latents."""
_MOST_INVALID = 100
"""Invalid points in a row after which a search gives up."""
_AGAIN = "again"
"""User attribute of a trial whose point is in the file already."""

Outcome = tuple[TrialState, list[float] | None]


class Study:
    """The study of a sweep's search, in `results/<sweep>/search/`."""

    def __init__(self, space: Space, config: SearchConfig, store: Store) -> None:
        self.space, self.config, self.store = space, config, store
        measured = [*config.objectives, *(f"{name} {checksum}" for name, checksum in metric_plugins().items())]
        self.file = store.paths.search / f"{'-'.join(config.objectives)}-{space.identity(measured)}.json"
        specs = column_specs()
        self.directions = [specs[name].direction for name in config.objectives]
        self.trials, self._damage = self._read()
        self._study: optuna.Study | None = None

    def n_left(self) -> int:
        """Trials still to be made."""
        return max(0, self.config.trials - sum(self._outcome(runs) is not None for _, runs in self.trials))

    def groups(self) -> list[list[RunConfig]]:
        """The runs of every point so far."""
        return [runs for _, runs in self.trials]

    def open(self) -> None:
        """Prepare to propose: trials that ended are given to the sampler, points to be tried first are put first.

        No other launch may be under way.
        """
        self.trials, self._damage = self._read()
        make_room(self.file.parent, directory=True)
        if self._damage and self.file.exists():
            set_aside(self.file, f"{self._damage}; its trials are found again by the records of their runs")
        self._write()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        directions = [StudyDirection.MINIMIZE if direction == "min" else StudyDirection.MAXIMIZE for direction in self.directions]
        # A later launch must not repeat the random numbers of the one before.
        seed = seed_of("search", self.config.seed, len(self.trials)) % 2**32 if self.trials else self.config.seed
        study = optuna.create_study(directions=directions, sampler=SAMPLERS[self.config.sampler](seed, self.config.trials))
        self._study = study
        outcomes = [(point, self._outcome(runs)) for point, runs in self.trials]
        for point, outcome in outcomes:
            if outcome is not None:
                study.enqueue_trial(point)
                self._tell(self._ask(study), outcome)
        for point, outcome in outcomes:
            if outcome is None:
                study.enqueue_trial(point, user_attrs={_AGAIN: True})
        for given in self.config.points_to_evaluate:
            point = self.space.fixed_point(given, Problems())
            if not any(point.items() <= tried.items() for tried, _ in self.trials):
                study.enqueue_trial(point)

    def propose(self) -> tuple[optuna.Trial, list[RunConfig]]:
        """The next trial, and its runs.

        Raises:
            ConfigError: the space holds next to no valid points.
        """
        assert self._study is not None, "the study is not open"
        problem: ConfigError | None = None
        for _ in range(_MOST_INVALID):
            self._take_turn(self._study)
            trial = self._ask(self._study)
            try:
                runs = self.space.runs(trial.params)
            except ConfigError as error:
                problem = error
                self._study.tell(trial, state=TrialState.FAIL)
                continue
            if _AGAIN not in trial.user_attrs:
                self.trials.append((trial.params, runs))
                self._write()
            return trial, runs
        raise ConfigError(f"a search must find valid points, but got {_MOST_INVALID} invalid ones in a row. The last one:\n{problem}")

    def conclude(self, trial: optuna.Trial, runs: Sequence[RunConfig]) -> None:
        """Give the sampler what became of a trial: what the records of its runs say."""
        self._tell(trial, self._outcome(runs) or (TrialState.FAIL, None))

    def _ask(self, study: optuna.Study) -> optuna.Trial:
        trial = study.ask()
        self.space(trial)
        return trial

    def _tell(self, trial: optuna.Trial, outcome: Outcome) -> None:
        """L0 is given in octaves, as in our hypervolumes: on L0 itself a sampler cares for the dense end of a frontier only."""
        assert self._study is not None
        state, values = outcome
        if values is not None:
            named = zip(self.config.objectives, values, strict=True)
            values = [math.log2(max(value, LEAST_L0)) if name == "l0" else value for name, value in named]
        self._study.tell(trial, values, state=state)

    def _take_turn(self, study: optuna.Study) -> None:
        """Decide the target L0 of the next proposal, and leave the rest of it to TPE.

        A frontier needs all of its levels, but what TPE models as good are a few points that need not span them; so levels take turns.
        """
        axis, n_trials = self.space.target_l0, len(study.get_trials(deepcopy=False))
        waiting = study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        if axis is not None and self.config.sampler == "tpe" and not waiting and n_trials >= RANDOM_START:
            study.enqueue_trial({axis.place: self.space.level(axis, n_trials)})

    def _outcome(self, runs: Sequence[RunConfig]) -> Outcome | None:
        return outcome_of([self.store.read_record(run.run_id) for run in runs], self.config.objectives)

    def _write(self) -> None:
        write_json(self.file, {"objectives": self.config.objectives, "points": [point for point, _ in self.trials]})

    def _read(self) -> tuple[list[tuple[Point, list[RunConfig]]], str]:
        """Points and their runs; and what is wrong with the file: then the points are those of the records."""
        try:
            points = read_json(self.file)["points"]
            return [(point, self.space.runs(point)) for point in points], ""
        except FileNotFoundError:
            # Earlier versions kept an Optuna journal.
            damage = "an earlier version wrote it" if any(self.file.parent.glob(f"{self.file.stem}*.log")) else ""
        except Exception as error:  # whatever was written into it
            damage = reason_of(error.__cause__ or error)
        return self._recorded() if damage else [], damage

    def _recorded(self) -> list[tuple[Point, list[RunConfig]]]:
        """The points that there are records of, in the order in which those were made."""
        trials: list[tuple[Point, list[RunConfig]]] = []
        known: set[str] = set()
        for record in sorted(self.store.records().values(), key=lambda record: record.finished_at or ""):
            if record.run_id not in known and (point := self._point_of(record)) is not None:
                trials.append((point, self.space.runs(point)))
                known |= {run.run_id for run in trials[-1][1]}
        return trials

    def _point_of(self, record: RunRecord) -> Point | None:
        """The point that a record is of; None where it is none of this space."""
        name = record.config.get("sae", {}).get("architecture")
        axes = self.space.axes.architectures.get(name, {}).items()
        given = {axis.place: _whole(axis, record.config.get(section, {}).get(field)) for (section, field), axis in axes if axis.is_searched}
        if len(self.space.axes.architectures) > 1:
            given[ARCHITECTURES] = name
        problems = Problems()
        point = self.space.fixed_point(given, problems)
        with suppress(ConfigError, KeyError):
            if not problems and record.run_id in {run.run_id for run in self.space.runs(point)}:
                return point
        return None


def _whole(axis: Axis, value: Any) -> Any:
    """A value of a config as its axis has it: a range of whole numbers may be of a field that holds fractions, e.g. `target_l0`."""
    return int(value) if axis.whole and isinstance(value, float) and value.is_integer() else value


def outcome_of(records: Sequence[RunRecord | None], objectives: Sequence[str]) -> Outcome | None:
    """What became of a trial: COMPLETE and the means over its runs, or another state and None. None where it is to be tried again.

    Args:
        records: of its runs, one per seed and order of the tokens; None for a run that left none.
    """
    ended = [record for record in records if record is not None and record.status != "trained" and not may_recover(record)]
    if len(ended) < len(records):
        return None
    statuses = {record.status for record in ended}
    if statuses != {"finished"}:
        return TrialState.FAIL if "failed" in statuses else TrialState.PRUNED, None
    values = [[record.metrics.get(name) for record in ended] for name in objectives]
    finite = [[value for value in row if value is not None and math.isfinite(value)] for row in values]
    if any(len(row) < len(records) for row in finite):
        return TrialState.FAIL, None
    return TrialState.COMPLETE, [sum(row) / len(row) for row in finite]
