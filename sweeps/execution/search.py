"""The Optuna study of a search, on disk, and how Ray Tune asks it.

The study lies in `results/<sweep>/search/` and outlives launches: a later one with more `trials` goes on with it. Each of its trials
names its runs in the user attribute `run_ids`, and has the means of their metrics as values. What a trial came to is read from its
runs' records, never from what Ray was told: a trial whose runs were stopped early is PRUNED, one with a failed run or without a value
is FAIL, and only one whose runs are all finished is COMPLETE. A FAIL that says nothing about the point (the launch was killed, a worker
died) is not counted, and the same point is tried again: its runs have the same ids, so they go on from their checkpoints.
"""

import logging
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from ray.tune.search.optuna import OptunaSearch

from sae_core.config.run import RunConfig
from sae_core.errors import ConfigError, border
from sae_core.metrics import METRICS
from sae_core.records import RunRecord
from sae_core.seeds import seed_of
from sweeps.definition.grid import Axis
from sweeps.definition.problems import Problems
from sweeps.definition.sections import SearchConfig
from sweeps.definition.space import ARCHITECTURES, Point, Space
from sweeps.storage.store import Store, may_recover
from sweeps.storage.study_file import InOctaves, StudyFile

log = logging.getLogger(__name__)

AGAIN, INVALID = "again", "invalid"
"""Why a failed trial is not counted: its point is tried again, or broke a rule of the config before anything was trained."""
_UNCOUNTED = "uncounted"
"""User attribute with one of these."""
_REPEATS = "repeats"
"""User attribute: number of the trial whose point is tried again."""
_MOST_INVALID = 100
"""Invalid points in a row after which a search gives up."""
_POPULATION = (10, 50)
"""Least and most points of a generation of NSGA-II; a fifth of the trials in between."""
_RANDOM_START = 10
"""Points that TPE proposes at random before it has anything to go by: those of random search with the same seed."""
_GOOD_FRACTION = 0.25
"""Part of the trials that TPE takes for good. Optuna's tenth is too small for a front: of 30 trials, 3 points."""
_RUN_IDS = "run_ids"
"""User attribute: the runs of a trial."""
_FORMAT = "v2"
"""Of studies. Those without one, of earlier versions, hold log2 of L0 and are left alone; the points of their records are tried again."""


class Study:
    """The study of a sweep's search.

    Args:
        directory: where studies are kept, one file each. It is made by `open`.
    """

    def __init__(self, space: Space, config: SearchConfig, directory: Path) -> None:
        self.space, self.config = space, config
        self.name = f"{'-'.join(config.objectives)}-{space.identity(config.objectives)}-{_FORMAT}"
        self.file = directory / f"{self.name}.log"
        self.directions = [METRICS[name].spec.direction for name in config.objectives]
        self._old_file = directory / f"{self.name.removesuffix(f'-{_FORMAT}')}.log"
        self._lost = False
        """Whether there may be records of trials that the study does not have."""
        self._reported = False

    def trials(self) -> list[FrozenTrial]:
        """Every trial so far, in order; those that a damaged file has lost are left out."""
        journal = StudyFile(self.file, self.name)
        if (damage := journal.damage()) is not None and not self._reported:
            log.warning("trials of the study in %s are lost, and count again when they are proposed again: %s", self.file, damage)
            self._reported = True
        if not journal.read_logs(0):
            return []
        with border(f"a study must be readable, but got {str(self.file)!r}", "Move it away: the records of its runs stay."):
            return optuna.load_study(study_name=self.name, storage=JournalStorage(journal)).get_trials(deepcopy=False)

    def n_counted(self) -> int:
        """Trials that count."""
        return sum(trial.state.is_finished() and _UNCOUNTED not in trial.user_attrs for trial in self.trials())

    def n_left(self) -> int:
        """Trials still to be made."""
        return max(0, self.config.trials - self.n_counted())

    def groups(self) -> list[list[RunConfig]]:
        """The runs of every point so far, but those that were never whole or valid."""
        groups = []
        for trial in self.trials():
            if trial.state != TrialState.WAITING and trial.user_attrs.get(_UNCOUNTED) != INVALID:
                with suppress(KeyError):  # killed before all of the point was proposed
                    groups.append(self.space.runs(trial.params))
        return groups

    def runs(self) -> list[RunConfig]:
        """The runs of every point so far, each once."""
        return list({run.run_id: run for group in self.groups() for run in group}.values())

    def open(self) -> None:
        """Make ready for a launch: what a killed launch left or damaged is mended, points that are to be tried first wait.

        No other launch may be under way.
        """
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        of_an_earlier_version = self._old_file.is_file() and not self.file.exists()
        self._lost = StudyFile(self.file, self.name).mend() or of_an_earlier_version
        storage = self.storage()
        directions = [StudyDirection.MINIMIZE if direction == "min" else StudyDirection.MAXIMIZE for direction in self.directions]
        study = optuna.create_study(storage=storage, study_name=self.name, directions=directions, load_if_exists=True)
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            storage.set_trial_user_attr(trial._trial_id, _UNCOUNTED, AGAIN)
            storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
        trials = study.get_trials(deepcopy=False)
        tried_again = {trial.user_attrs.get(_REPEATS) for trial in trials}
        for trial in trials:
            if trial.user_attrs.get(_UNCOUNTED) == AGAIN and trial.number not in tried_again:
                study.enqueue_trial(trial.params, user_attrs={_REPEATS: trial.number})
        for given in self.config.points_to_evaluate:
            study.enqueue_trial(self.space.fixed_point(given, Problems()), skip_if_exists=True)

    def lost_points(self, records: Mapping[str, RunRecord]) -> list[Point]:
        """Points of which there are records that the study does not have, after it was damaged. To try them again costs nothing."""
        if not self._lost:
            return []
        points, known = [], {run.run_id for run in self.runs()}
        for run_id, record in sorted(records.items(), key=lambda item: item[1].finished_at or ""):
            if run_id not in known and (point := self._point_of(record)) is not None:
                points.append(point)
                known |= {run.run_id for run in self.space.runs(point)}
        return points

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

    def storage(self) -> JournalStorage:
        """The study, to propose from and to write to."""
        return InOctaves(StudyFile(self.file, self.name), self.config.objectives)

    def sampler(self) -> BaseSampler:
        """Who proposes. A later launch must not repeat the random numbers of the one before, so the seed depends on what is there."""
        n_trials = len(self.trials())
        seed = seed_of("search", self.config.seed, n_trials) % 2**32 if n_trials else self.config.seed
        if self.config.sampler == "random":
            return RandomSampler(seed=seed)
        if self.config.sampler == "nsga2":
            least, most = _POPULATION
            return NSGAIISampler(population_size=min(max(self.config.trials // 5, least), most), seed=seed)
        with warnings.catch_warnings():
            # Deprecated in Optuna 5 without another way to say it; pyproject.toml keeps Optuna below 6.
            warnings.filterwarnings("ignore", "`gamma` has been deprecated", FutureWarning)
            return TPESampler(n_startup_trials=_RANDOM_START, gamma=lambda n_trials: math.ceil(_GOOD_FRACTION * n_trials), seed=seed)

    def give_turn(self, study: optuna.Study) -> None:
        """Decide the target L0 of the next proposal, and leave the rest of it to TPE.

        A front needs all of its levels, but what TPE takes for good are a few points that need not span them; so levels take turns.
        """
        axis, trials = self.space.target_l0, study.get_trials(deepcopy=False)
        waiting = any(trial.state == TrialState.WAITING for trial in trials)
        if axis is not None and self.config.sampler == "tpe" and not waiting and len(trials) >= _RANDOM_START:
            study.enqueue_trial({axis.place: self.space.level(axis, len(trials))})


def _whole(axis: Axis, value: Any) -> Any:
    """A value of a config as its axis has it: a range of whole numbers may be of a field that holds fractions, e.g. `target_l0`."""
    return int(value) if axis.whole and isinstance(value, float) and value.is_integer() else value


class SweepSearch(OptunaSearch):
    """Ray Tune's side of the study: proposes trials, and tells the study what became of them.

    Args:
        store: where the records are.
        trial_config: what a Tune trial is to be given for the runs of a point.
    """

    def __init__(self, study: Study, store: Store, trial_config: Callable[[Sequence[RunConfig]], Mapping[str, Any]]) -> None:
        self.study, self.store, self.trial_config = study, store, trial_config
        self.points: dict[str, list[RunConfig]] = {}
        super().__init__(
            space=study.space,
            metric=list(study.config.objectives),
            mode=list(study.directions),
            sampler=study.sampler(),
            study_name=study.name,
            storage=study.storage(),
        )
        for point in study.lost_points(store.records()):
            assert self._ot_study is not None
            self._ot_study.enqueue_trial(point)

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its search algorithms for a restore that we never do: the study is on disk.
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing: see `__getstate__`."""

    @property
    def metric(self) -> Any:
        """None, or Tune would end the whole experiment at a report without the objectives: those come from the records."""
        return None

    def suggest(self, trial_id: str) -> dict[str, Any]:
        """The config of the next trial.

        Raises:
            ConfigError: the space holds next to no valid points.
        """
        problem: ConfigError | None = None
        for _ in range(_MOST_INVALID):
            assert self._ot_study is not None
            self.study.give_turn(self._ot_study)
            point = super().suggest(trial_id)
            assert point is not None
            try:
                runs = self.points[trial_id] = self.study.space.runs(point)
            except ConfigError as error:
                problem = error
                self._tell(trial_id, TrialState.FAIL, None, INVALID)
                del self._ot_trials[trial_id]
            else:
                self._ot_trials[trial_id].set_user_attr(_RUN_IDS, [run.run_id for run in runs])
                self.store.add_runs(runs)
                return {"trial": self.trial_config(runs)}
        raise ConfigError(f"a search must find valid points, but got {_MOST_INVALID} invalid ones in a row. The last one:\n{problem}")

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Nothing: what a trial gives is known at its end."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell the study what became of a trial."""
        records = [self.store.read_record(run.run_id) for run in self.points.pop(trial_id)]
        state, values = outcome(records, self.study.config.objectives)
        lost = state == TrialState.FAIL and any(record is None or may_recover(record) for record in records)
        self._tell(trial_id, state, values, AGAIN if lost else None)

    def _tell(self, trial_id: str, state: TrialState, values: Sequence[float] | None, uncounted: str | None) -> None:
        trial = self._ot_trials[trial_id]
        if uncounted is not None:
            trial.set_user_attr(_UNCOUNTED, uncounted)
        assert self._ot_study is not None
        self._ot_study.tell(trial, values, state=state)


def outcome(records: Sequence[RunRecord | None], objectives: Sequence[str]) -> tuple[TrialState, list[float] | None]:
    """What a trial came to.

    Args:
        records: of its runs, one per seed and order of the tokens; None for a run that left none.

    Returns:
        COMPLETE and the means over the runs; or another state and None.
    """
    found = [record for record in records if record is not None and record.status in ("finished", "pruned")]
    if len(found) < len(records):
        return TrialState.FAIL, None
    if any(record.status == "pruned" for record in found):
        return TrialState.PRUNED, None
    values = [[record.metrics.get(name) for record in found] for name in objectives]
    known = [[value for value in row if value is not None and math.isfinite(value)] for row in values]
    if any(len(row) < len(records) for row in known):
        return TrialState.FAIL, None
    return TrialState.COMPLETE, [sum(row) / len(row) for row in known]
