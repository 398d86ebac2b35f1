"""What a launch makes: a grid, whose runs are known, or a search, whose runs are proposed one point after another. The rest of a launch
sees no difference."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from sae_core.activations.shards import read_manifest
from sae_core.config.run import RunConfig
from sae_core.trainable import TrialConfig
from sweeps.definition.sweep import Sweep
from sweeps.planning.grouping import group_runs, lone_runs
from sweeps.planning.inputs import SharedActivations, shared_activations
from sweeps.storage.store import Store


@dataclass(frozen=True, slots=True)
class Trial:
    """Runs that train together."""

    runs: list[RunConfig]
    config: TrialConfig
    proposal: Any = None
    """Optuna's trial, of a search."""
    failures: int = 0
    """Times in a row that it failed with nothing saved in between."""
    saved: tuple[int, ...] = ()
    """When the files of its runs were last written, at its last failure."""
    whole: "Trial | None" = None
    """The trial that this one is a part of, because that was too large."""


class Work(ABC):
    """What a launch makes."""

    stage: ClassVar[str]
    evaluates_trials: ClassVar[bool]
    """Whether trials evaluate what they train, instead of a stage after them."""
    examples: Sequence[RunConfig]
    """Runs that show which activations the sweep is about."""
    n_trials = n_runs = n_tokens = 0
    """Of this launch, known once it was begun."""

    def __init__(self, sweep: Sweep, store: Store) -> None:
        self.sweep, self.store = sweep, store

    @abstractmethod
    def groups(self) -> list[list[RunConfig]]:
        """Every run so far, with those beside it that it is averaged with."""

    def runs(self) -> list[RunConfig]:
        """Every run so far, each once."""
        return list({run.run_id: run for runs in self.groups() for run in runs}.values())

    @abstractmethod
    def to_do(self) -> list[SharedActivations]:
        """Activations with something left to do."""

    @abstractmethod
    def to_train(self, shared: SharedActivations) -> list[RunConfig]:
        """Runs that are to be trained on these activations; of a search, runs that differ from them in no way that takes more memory."""

    @abstractmethod
    def begin(self, n_slots: int, slot_bytes: int | None) -> None:
        """Prepare this launch's trials, once activations are there.

        Args:
            slot_bytes: memory for training in each slot; None: it is not limited.
        """

    @abstractmethod
    def next_trial(self, settings: TrialConfig) -> Trial | None:
        """None after the last one.

        Args:
            settings: what all trials share.
        """

    @abstractmethod
    def end_trial(self, trial: Trial) -> None:
        """Its runs have their records, or its process is lost."""

    @cached_property
    def inputs(self) -> list[SharedActivations]:
        """The activations of the sweep, each with its runs and its place in the cache.

        Raises:
            ConfigError: model or text are not there, or changed since records were made.
        """
        inputs = shared_activations((run.activations for run in self.examples), self.runs(), self.store.paths.activations)
        self.store.check_hashes({run.run_id: shared.activations_hash for shared in inputs for run in shared.runs})
        return inputs

    def _trial(self, settings: TrialConfig, runs: list[RunConfig], shared: SharedActivations, proposal: Any = None) -> Trial:
        config = dataclasses.replace(
            settings,
            runs=[run.model_dump(mode="json") for run in runs],
            cache=str(shared.cache),
            metadata=shared.metadata,
            facts={**settings.facts, "activations_hash": shared.activations_hash, "activation_facts": shared.facts},
            source=shared.arguments[0] if self.evaluates_trials else None,
            live=shared.arguments[0] if shared.n_streamed else None,
            text=shared.arguments[0] if any(run.train.kl_stage for run in runs) else None,
        )
        return Trial(runs, config, proposal)


class Grid(Work):
    """All runs of a grid that have no record, in groups balanced over the slots."""

    stage, evaluates_trials = "train", False

    def __init__(self, sweep: Sweep, store: Store) -> None:
        super().__init__(sweep, store)
        self.examples = sweep.runs()
        self._left: list[tuple[list[RunConfig], SharedActivations]] = []

    def groups(self) -> list[list[RunConfig]]:
        return [[run] for run in self.examples]

    def to_do(self) -> list[SharedActivations]:
        return [shared for shared in self.inputs if shared.n_todo(self.store)]

    def to_train(self, shared: SharedActivations) -> list[RunConfig]:
        return shared.to_train(self.store)

    def begin(self, n_slots: int, slot_bytes: int | None) -> None:
        shared = {run.run_id: shared for shared in self.to_do() for run in shared.runs if self.store.read_record(run.run_id) is None}
        runs = [run for run in self.examples if run.run_id in shared]
        for one in self.to_do():
            manifest = read_manifest(one.cache)
            one.d_in, one.d_out = manifest.d_in, manifest.d_out
        live = max((one.live_bytes for one in shared.values()), default=0)
        if self.sweep.early_stopping:
            groups = lone_runs(runs)
        else:
            groups = group_runs(
                runs, n_slots=n_slots, d_in=lambda run: shared[run.run_id].mean_width, slot_bytes=slot_bytes, live_bytes=live
            )
        self._left = [(group, shared[group[0].run_id]) for group in groups]
        self.n_trials, self.n_runs = len(groups), len(runs)
        self.n_tokens = sum(run.n_tokens for run in runs)

    def next_trial(self, settings: TrialConfig) -> Trial | None:
        return self._trial(settings, *self._left.pop(0)) if self._left else None

    def end_trial(self, trial: Trial) -> None:
        pass


class Search(Work):
    """The points that are left of a search, proposed from what the earlier ones gave."""

    stage, evaluates_trials = "search", True

    def __init__(self, sweep: Sweep, store: Store) -> None:
        from sweeps.storage.study import Study  # imports Optuna

        super().__init__(sweep, store)
        assert sweep.search is not None, f"{sweep.search=}"
        self.study = Study(sweep.space(), sweep.search, store)
        self.examples = self.study.space.corners
        self._n_proposed = 0

    def groups(self) -> list[list[RunConfig]]:
        return self.study.groups()

    def to_do(self) -> list[SharedActivations]:
        return self.inputs if self.study.n_left() else []

    def to_train(self, shared: SharedActivations) -> list[RunConfig]:
        return list(self.examples)

    def begin(self, n_slots: int, slot_bytes: int | None) -> None:
        self.study.open()
        self.n_trials = self.study.n_left()
        self.n_runs = self.n_trials * self.study.space.axes.n_repeats
        self.n_tokens = self.n_runs * self.study.space.most_tokens

    def next_trial(self, settings: TrialConfig) -> Trial | None:
        if self._n_proposed == self.n_trials:
            return None
        self._n_proposed += 1
        proposal, runs = self.study.propose()
        self.store.add_runs(runs)
        return self._trial(settings, runs, self.inputs[0], proposal)

    def end_trial(self, trial: Trial) -> None:
        self.study.conclude(trial.proposal, trial.runs)
