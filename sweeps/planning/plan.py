"""The dry run: what a launch would do, and what it would take. Nothing is started and nothing is left on disk."""

import dataclasses
import math
import tempfile
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

from sae_core import plugins
from sae_core.activations.shards import was_finished
from sae_core.config.run import RunConfig
from sae_core.records import RunState, completed, field_name, flat
from sweeps.definition.sweep import Sweep
from sweeps.demo.corpus import demo_text_file
from sweeps.planning import prediction
from sweeps.planning.caches import fit
from sweeps.planning.grouping import group_runs, lone_runs, training_flops
from sweeps.planning.inputs import SharedActivations, check_kinds, kinds_in_words, passes, shared_activations
from sweeps.planning.memory import group_bytes, weights_bytes
from sweeps.planning.rented import RentedCluster, bill_lines
from sweeps.planning.variants import n_snapshots, n_variants
from sweeps.storage.store import Store, may_recover


def plan(
    sweep: Sweep,
    results: Path,
    n_slots: int,
    *,
    measure: bool = False,
    device: str = "cpu",
    n_gpus: int = 1,
    slot_bytes: int | None = None,
    cache_limit: float | None = None,
    cluster: RentedCluster | None = None,
) -> "Plan":
    """What `launch` would do.

    Args:
        results: the directory in which the sweep's own one is, or would be.
        n_slots: trials side by side.
        measure: predict the time from a few steps of each setting, taken now, and not from finished runs.
        device: that trials train on, as torch names it.
        n_gpus: of a slot, that a language model is spread over.
        slot_bytes: memory for training in each slot; None: it is not known.
        cache_limit: most GiB that the activations may take; None: what the disk has.
        cluster: predict for this one, whose GPUs are the slots and whose storage has room.

    Raises:
        ConfigError: the definition, the model, the text or the results directory is wrong.
    """
    store = Store(results / sweep.name)
    runs = sweep.space().corners if sweep.search else sweep.runs()
    store.check_ours(runs)
    caches = store.paths.activations
    with tempfile.TemporaryDirectory() as scratch:
        # Where no launch has made the demo's text yet, it is made for this check and removed.
        text = caches if demo_text_file(caches).exists() else Path(scratch)
        inputs = shared_activations((run.activations for run in runs), runs, caches, text)
        for shared in inputs:
            shared.source.check()
            shared.source.n_gpus = n_gpus
            shared.d_in, shared.d_out, shared.parts = shared.source.d_in, shared.source.d_out, shared.source.parts
            shared.model_bytes = shared.source.model_bytes
        check_kinds(inputs, store.paths.runs)
        needs, directory = [(shared, shared.to_train(store)) for shared in inputs], None if cluster else store.directory
        fit(needs, directory, limit_gib=cache_limit, slot_bytes=slot_bytes, holds_model=sweep.search is not None)
        costs = cluster.costs(inputs) if cluster else None
        if costs is None:
            costs = prediction.measured(inputs, n_slots, device) if measure else prediction.of_finished_runs(results)
    kind = SearchPlan if sweep.search else GridPlan
    return kind(sweep, store, inputs, costs, n_slots, slot_bytes, cluster)


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """One run of the plan."""

    run_id: str
    setting: str
    """What it is, e.g. "jumprelu target_l0=16 lr=0.001 seed=0"."""
    state: RunState
    tokens: int
    """Tokens it trains on: whole batches."""
    flops: float
    """Floating-point operations of its training."""
    group: int | None
    """Number of the group it trains in, from 1; None if it need not be trained."""

    @property
    def todo(self) -> str:
        """What a launch would do with it."""
        if self.group is None:
            return {"finished": "done", "trained": "to evaluate"}.get(self.state, self.state)
        return f"{'failed, ' if self.state == 'failed' else ''}to do (group {self.group})"


@dataclass
class Plan(ABC):
    """What a launch would do."""

    sweep: Sweep
    store: Store
    inputs: Sequence[SharedActivations]
    costs: prediction.Costs | None
    n_slots: int
    slot_bytes: int | None
    cluster: RentedCluster | None = None
    results_bytes: int = field(default=0, init=False)
    """Weights of all runs."""
    trials: list[tuple[SharedActivations, int]] = field(default_factory=list, init=False)
    """For each trial that is left, the activations and the number of tokens that it reads."""
    # Of a grid alone, then of a search alone:
    runs: Sequence[PlannedRun] = field(default=(), init=False)
    groups: list[list[RunConfig]] | None = field(default=None, init=False)
    flops: float | None = field(default=None, init=False)
    memory_bytes: int | None = field(default=None, init=False)
    n_trials: int | None = field(default=None, init=False)
    n_left: int | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        sources = [shared.source for shared in self.inputs]
        self.harvest_tokens = sum(source.config.train_tokens for source in sources)
        self.eval_tokens = sum(source.config.eval_tokens for source in sources)
        self.n_shards = sum(shared.n_shards for shared in self.inputs)
        self.n_streamed = sum(shared.n_streamed for shared in self.inputs)
        self.live_bytes = max((shared.live_bytes for shared in self.inputs), default=0)
        self._streamed = {shared.activations_hash: shared.streamed_share for shared in self.inputs}
        self.activations_bytes = self._stored_bytes((shared, shared.source.config.train_tokens) for shared in self.inputs)

    @abstractmethod
    def _head(self) -> list[str]:
        """What is trained."""

    @abstractmethod
    def _work(self) -> list[str]:
        """What training takes."""

    @abstractmethod
    def _used(self) -> list[SharedActivations]:
        """Activations with something left to do."""

    @abstractmethod
    def _train_seconds(self, costs: prediction.Costs) -> list[float]:
        """Of each trial that is left."""

    @abstractmethod
    def _evaluate_seconds(self, costs: prediction.Costs) -> float:
        """Of all that is left to evaluate."""

    def data(self) -> dict[str, Any]:
        """The plan as plain data, described in docs/commands.md."""
        return {
            "sweep": self.sweep.name,
            "directory": str(self.store.directory),
            "runs": [dataclasses.asdict(run) for run in self.runs],
            "trials": self.n_trials,
            "trials_left": self.n_left,
            "harvest_tokens": self.harvest_tokens,
            "harvest_shards": self.n_shards,
            "harvest_cached": self._is_cached,
            "streamed_shards": self.n_streamed,
            "streamed_tokens": self.live_tokens,
            "eval_tokens": self.eval_tokens,
            "flops": self.flops,
            "groups": None if self.groups is None else len(self.groups),
            "slots": self.n_slots,
            "memory_bytes": self.memory_bytes,
            "activations_bytes": self.activations_bytes,
            "results_bytes": self.results_bytes,
            "seconds": self.seconds,
            "predicted_from": self.costs.origin if self.costs else None,
            "cluster": self._bill(),
        }

    def _bill(self) -> dict[str, Any] | None:
        """What the launch costs on a cluster that was described."""
        if not (self.cluster and self.seconds):
            return None
        return self.cluster.bill(self.seconds, self._stored_bytes(self.trials), self.activations_bytes + self.results_bytes)

    @cached_property
    def seconds(self) -> dict[str, float] | None:
        """Part of the launch -> seconds, NaN where they are not known; None where nothing is."""
        if (costs := self.costs) is None:
            return None
        live = [self._live_seconds(shared, tokens, costs) for shared, tokens in self.trials]
        return {
            "harvest": sum(
                max(costs.harvest_seconds(shared) for shared in group)  # of hook points read in one pass, the highest
                for group in passes(shared for shared in self._used() if not was_finished(shared.cache))
            ),
            "training": prediction.makespan(self._train_seconds(costs), self.n_slots),
            **({"streaming": prediction.makespan(live, self.n_slots)} if self.n_streamed else {}),
            "evaluation": self._evaluate_seconds(costs),
        }

    def _live_seconds(self, shared: SharedActivations, tokens: int, costs: prediction.Costs) -> float:
        """Of a trial that reads so many tokens, for the activations that it makes again."""
        if not (share := self._streamed[shared.activations_hash]):
            return 0.0
        per_token = costs.harvest_seconds(shared) / shared.source.config.train_tokens * min(self.n_slots, shared.n_shards)
        return tokens * share * per_token

    @property
    def live_tokens(self) -> int:
        """Tokens whose activations are made while trials train, because they are not stored."""
        return round(sum(tokens * self._streamed[shared.activations_hash] for shared, tokens in self.trials))

    def _stored_bytes(self, tokens: Iterable[tuple[SharedActivations, int]]) -> int:
        """Size of so many tokens on the disk, without those that are not stored."""
        shares = ((shared.source.bytes_per_token, n_tokens, self._streamed[shared.activations_hash]) for shared, n_tokens in tokens)
        return round(sum(n_bytes * n_tokens * (1 - streamed) for n_bytes, n_tokens, streamed in shares))

    @property
    def _is_cached(self) -> bool:
        return all(was_finished(shared.cache) for shared in self.inputs)

    def lines(self) -> list[str]:
        """The plan as text."""
        bill = self._bill()
        imported = [f"{plugin.name} ({plugin.checksum[:8]})" for plugin in plugins.loaded()]
        cached = "all cached" if self._is_cached else "once for all runs"
        time = "not known: no run finished on this hardware. `--measure` predicts it from a few steps of each setting, in about a minute"
        if self.costs and self.seconds:
            time = f"{'at most ' if self.sweep.early_stopping else ''}{self.costs.in_words(self.seconds)}"
        return [
            *self._head(),
            *([f"plugins     {', '.join(imported)}"] if imported else []),
            f"harvest     {self.harvest_tokens:,} training tokens in {self.n_shards} shards, {cached}",
            *kinds_in_words(self.inputs),
            *self._text(),
            f"evaluation  {self.eval_tokens:,} held-out tokens",
            *self._work(),
            *self._streaming(),
            f"time        {time}",
            *(bill_lines(bill) if bill else []),
        ]

    def _text(self) -> list[str]:
        """How text becomes windows, and which tokens count, where that is not the usual."""
        said = dict.fromkeys(words for shared in self.inputs if (words := shared.source.text_in_words))
        return [f"text        {'; '.join(said)}"] if said else []

    def _streaming(self) -> list[str]:
        if not self.n_streamed:
            return []
        seconds = self.seconds["streaming"] if self.seconds else math.nan
        cost = "" if math.isnan(seconds) else f", about {timedelta(seconds=round(seconds))} of a slot's time"
        return [
            f"streaming   {self.n_streamed} of {self.n_shards} shards are not stored: each group makes them again as it reads them, "
            f"{self.live_tokens:,} tokens in all{cost}. To store more, free disk or raise `--cache-limit`"
        ]


class GridPlan(Plan):
    """Plan of a sweep whose runs are known."""

    groups: list[list[RunConfig]]
    memory_bytes: int

    def __post_init__(self) -> None:
        super().__post_init__()
        self._shared = {run.run_id: shared for shared in self.inputs for run in shared.runs}
        runs, records = self.sweep.runs(), self.store.records()
        to_train = [run for run in runs if run.run_id not in records or may_recover(records[run.run_id])]
        if self.sweep.early_stopping:
            self.groups = lone_runs(to_train)
        else:
            self.groups = group_runs(
                to_train, n_slots=self.n_slots, d_in=self._width, slot_bytes=self.slot_bytes, live_bytes=self.live_bytes
            )
        self.trials = [(self._shared[group[0].run_id], max(run.n_tokens for run in group)) for group in self.groups]
        number = {run.run_id: index for index, group in enumerate(self.groups, start=1) for run in group}
        self.runs = [
            PlannedRun(
                run_id=run.run_id,
                setting=setting,
                state=records[run.run_id].status if run.run_id in records else "missing",
                tokens=run.n_tokens,
                flops=training_flops(run, self._width(run)),
                group=number.get(run.run_id),
            )
            for run, setting in zip(runs, _settings(runs), strict=True)
        ]
        self.flops = sum(run.flops for run in self.runs if run.group)
        self.memory_bytes = max((group_bytes(group, self._width) for group in self.groups), default=0) + self.live_bytes
        self.results_bytes = sum(weights_bytes(run, self._width(run)) * (1 + n_snapshots(self.sweep, run)) for run in runs)

    def _width(self, run: RunConfig) -> int:
        return self._shared[run.run_id].mean_width

    def _head(self) -> list[str]:
        id_width, setting_width = (max(len(getattr(run, name)) for run in self.runs) for name in ("run_id", "setting"))
        left = sum(run.group is not None for run in self.runs)
        return [
            f"Sweep {self.sweep.name}: {len(self.runs)} runs, {left} to train. Results in {self.store.directory}",
            *(
                f"{run.run_id:<{id_width}}  {run.setting:<{setting_width}}  {run.tokens:>11,} tokens  {run.flops:.1e} FLOPs  {run.todo}"
                for run in self.runs
            ),
        ]

    def _work(self) -> list[str]:
        return [
            f"training    {self.flops:.1e} FLOPs in {len(self.groups)} groups on {self.n_slots} slots",
            f"memory      {_size(self.memory_bytes)} per slot for training, beside the program itself",
            f"disk        {_size(self.activations_bytes)} for activations, {_size(self.results_bytes)} for results",
        ]

    def _used(self) -> list[SharedActivations]:
        return [shared for shared in self.inputs if shared.n_todo(self.store)]

    def _train_seconds(self, costs: prediction.Costs) -> list[float]:
        return [sum(costs.train(run, self._width(run)) for run in group) for group in self.groups]

    def _evaluate_seconds(self, costs: prediction.Costs) -> float:
        beside = {run.run_id: n_variants(self.sweep, run) for group in self.groups for run in group}
        used = [(shared, sum(beside.get(run.run_id, 0) for run in shared.runs)) for shared in self._used()]
        return sum(costs.evaluate_seconds(shared, shared.n_todo(self.store) + n) for shared, n in used)


class SearchPlan(Plan):
    """Plan of a search."""

    n_left: int

    def __post_init__(self) -> None:
        from sweeps.storage.study import Study

        super().__post_init__()
        assert self.sweep.search is not None, f"{self.sweep.search=}"
        self.search, self.space = self.sweep.search, self.sweep.space()
        self.study = Study(self.space, self.search, self.store)
        (self.shared,) = self.inputs
        self.n_trials, self.n_left, self.n_runs = self.search.trials, self.study.n_left(), self.space.axes.n_repeats
        self.trials = [(self.shared, self.space.most_tokens * self.n_runs)] * self.n_left
        self.results_bytes = self.n_trials * self.n_runs * max(weights_bytes(run, self.shared.mean_width) for run in self.shared.runs)

    def _head(self) -> list[str]:
        pairs = zip(self.search.objectives, self.study.directions, strict=True)
        return [
            f"Search {self.sweep.name}: {self.search.trials} trials, {self.n_left} to make. Results in {self.store.directory}",
            *(f"  {line}" for line in self.space.lines()),
            f"objectives  {', '.join(f'{name} ({direction})' for name, direction in pairs)}, sampler: {self.search.sampler}",
        ]

    def _work(self) -> list[str]:
        tokens = self.space.most_tokens
        return [
            f"training    {self.n_runs} x {tokens:,} tokens per trial (seeds x tokens), {self.n_left * self.n_runs * tokens:,} tokens left",
            f"disk        {_size(self.activations_bytes)} for activations",
        ]

    def _used(self) -> list[SharedActivations]:
        return list(self.inputs) if self.n_left else []

    def _train_seconds(self, costs: prediction.Costs) -> list[float]:
        mean = sum(costs.train(run, self.shared.mean_width) for run in self.shared.runs) / len(self.shared.runs)
        return [mean * self.n_runs] * self.n_left

    def _evaluate_seconds(self, costs: prediction.Costs) -> float:
        return costs.evaluate_seconds(self.shared, self.n_runs) * self.n_left


def _settings(runs: Sequence[RunConfig]) -> list[str]:
    """What each run is: its sparsity, and the fields in which runs of its architecture differ."""
    fields = completed([flat(run.model_dump(mode="json")) for run in runs])
    values: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for run, own in zip(runs, fields, strict=True):
        for name, value in own.items():
            values[run.sae.architecture][name].add(str(value))
    texts = []
    for run, own in zip(runs, fields, strict=True):
        sparsity = "target_l0" if run.sae.target_l0 else run.sae.sparsity_parameter
        others = {name for name, seen in values[run.sae.architecture].items() if len(seen) > 1}
        others -= {"sae.target_l0", f"sae.{run.sae.sparsity_parameter}", "seed", *(["init_hash"] if "train.init_from" in others else [])}
        parts = [f"{field_name(name)}={own[name]}" for name in own if name in others]
        texts.append(" ".join([run.sae.architecture, f"{sparsity}={getattr(run.sae, sparsity):g}", *parts, f"seed={run.seed}"]))
    return texts


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 2**30:.1f} GiB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:.0f} MiB"
