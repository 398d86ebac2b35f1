"""The dry run: what a launch would do, and what it would take. Nothing is started and nothing is left on disk."""

import dataclasses
import math
import tempfile
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

from sae_core import plugins
from sae_core.activations.shards import was_finished
from sae_core.config.run import RunConfig
from sae_core.records import RunState, flat
from sweeps.definition.sweep import Sweep
from sweeps.demo.corpus import demo_text_file
from sweeps.planning import prediction
from sweeps.planning.caches import fit
from sweeps.planning.grouping import GROUPS_PER_SLOT, group_runs, lone_runs, training_flops
from sweeps.planning.inputs import SharedActivations, shared_activations
from sweeps.planning.memory import FLOAT_BYTES, group_bytes, n_parameters
from sweeps.planning.rented import RentedCluster, bill_lines
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
            shared.d_in, shared.model_bytes = shared.source.d_in, shared.source.model_bytes
        needs, directory = [(shared, shared.todo(store)) for shared in inputs], None if cluster else store.directory
        fit(needs, directory, limit_gib=cache_limit, slot_bytes=slot_bytes, holds_model=sweep.search is not None)
        costs = cluster.costs(inputs) if cluster else None
        if costs is None:
            costs = prediction.measured(inputs, n_slots, device) if measure else prediction.of_finished_runs(results)
    kind = SearchPlan if sweep.search else GridPlan
    return kind(sweep, store, inputs, costs, n_slots, slot_bytes, cluster)


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

    def __post_init__(self) -> None:
        sources = [shared.source for shared in self.inputs]
        self.harvest_tokens = sum(source.config.train_tokens for source in sources)
        self.n_shards = sum(-(-source.config.train_tokens // source.shard_tokens) for source in sources)
        self.eval_tokens = sum(source.config.eval_tokens for source in sources)
        self.n_streamed = sum(shared.n_streamed for shared in self.inputs)
        shares = [1 - _streamed_share(shared) for shared in self.inputs]
        stored = [source.config.train_tokens * source.bytes_per_token * share for source, share in zip(sources, shares, strict=True)]
        self.activations_bytes = round(sum(stored))
        self.live_bytes = max((shared.live_bytes for shared in self.inputs), default=0)

    @abstractmethod
    def _head(self) -> list[str]:
        """What is trained."""

    @abstractmethod
    def _work(self) -> list[str]:
        """What training takes."""

    @abstractmethod
    def live_tokens(self) -> int:
        """Tokens whose activations are made while trials train, because they are not stored."""

    @abstractmethod
    def _read_bytes(self) -> int:
        """Stored activations that trials read, in all."""

    @abstractmethod
    def _seconds(self, costs: prediction.Costs) -> dict[str, float]:
        """Part of the launch -> seconds; NaN where they are not known."""

    def data(self) -> dict[str, Any]:
        """The plan as plain data, described in docs/commands.md."""
        return {
            "sweep": self.sweep.name,
            "directory": str(self.store.directory),
            "runs": [],
            "trials": None,
            "trials_left": None,
            "harvest_tokens": self.harvest_tokens,
            "harvest_shards": self.n_shards,
            "harvest_cached": self._is_cached,
            "streamed_shards": self.n_streamed,
            "streamed_tokens": self.live_tokens() if self.n_streamed else 0,
            "eval_tokens": self.eval_tokens,
            "flops": None,
            "groups": None,
            "slots": self.n_slots,
            "memory_bytes": None,
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
        return self.cluster.bill(self.seconds, self._read_bytes(), self.activations_bytes + self.results_bytes)

    @cached_property
    def seconds(self) -> dict[str, float] | None:
        """Part of the launch -> seconds, NaN where they are not known; None where nothing is."""
        return self._seconds(self.costs) if self.costs else None

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
            f"evaluation  {self.eval_tokens:,} held-out tokens",
            *self._work(),
            *self._streaming(),
            f"time        {time}",
            *(bill_lines(bill) if bill else []),
        ]

    def _streaming(self) -> list[str]:
        if not self.n_streamed:
            return []
        seconds = self._seconds(self.costs)["streaming"] if self.costs else math.nan
        cost = "" if math.isnan(seconds) else f", about {timedelta(seconds=round(seconds))} of a slot's time"
        return [
            f"streaming   {self.n_streamed} of {self.n_shards} shards are not stored: each group makes them again as it reads them, "
            f"{self.live_tokens():,} tokens in all{cost}. To store more, free disk or raise `--cache-limit`"
        ]

    def _live_seconds(self, shared: SharedActivations, tokens: float, costs: prediction.Costs) -> float:
        """Seconds in a slot to make the activations that are not stored, of a group that trains on so many tokens."""
        if not shared.n_streamed:
            return 0.0
        per_token = costs.harvest_seconds(shared) / shared.source.config.train_tokens * min(self.n_slots, shared.n_shards)
        return tokens * _streamed_share(shared) * per_token


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


class GridPlan(Plan):
    """Plan of a sweep whose runs are known."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._shared = {run.run_id: shared for shared in self.inputs for run in shared.runs}
        runs, records = self.sweep.runs(), self.store.records()
        to_train = [run for run in runs if run.run_id not in records or may_recover(records[run.run_id])]
        memory = None if self.slot_bytes is None else self.slot_bytes - self.live_bytes
        if self.sweep.early_stopping:
            self.groups = lone_runs(to_train)
        else:
            per_slot = 1 if self.live_bytes else GROUPS_PER_SLOT
            self.groups = group_runs(to_train, n_slots=self.n_slots, d_in=self._d_in, memory_bytes=memory, per_slot=per_slot)
        number = {run.run_id: index for index, group in enumerate(self.groups, start=1) for run in group}
        self.runs = [
            PlannedRun(
                run_id=run.run_id,
                setting=setting,
                state=records[run.run_id].status if run.run_id in records else "missing",
                tokens=run.n_steps * run.train.batch_size,
                flops=training_flops(run, self._d_in(run)),
                group=number.get(run.run_id),
            )
            for run, setting in zip(runs, _settings(runs), strict=True)
        ]
        self.flops = sum(run.flops for run in self.runs if run.group)
        self.memory_bytes = max((group_bytes(group, self._d_in) for group in self.groups), default=0) + self.live_bytes
        self.results_bytes = sum(_weights_bytes(run, self._d_in(run)) for run in runs)

    def data(self) -> dict[str, Any]:
        return {
            **super().data(),
            "runs": [dataclasses.asdict(run) for run in self.runs],
            "flops": self.flops,
            "groups": len(self.groups),
            "memory_bytes": self.memory_bytes,
        }

    def _d_in(self, run: RunConfig) -> int:
        return self._shared[run.run_id].d_in

    def _read_bytes(self) -> int:
        return round(sum(_tokens(group) * _stored_bytes_per_token(self._shared[group[0].run_id]) for group in self.groups))

    def live_tokens(self) -> int:
        return round(sum(_tokens(group) * _streamed_share(self._shared[group[0].run_id]) for group in self.groups))

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

    def _seconds(self, costs: prediction.Costs) -> dict[str, float]:
        live = [self._live_seconds(self._shared[group[0].run_id], _tokens(group), costs) for group in self.groups]
        groups = [sum(costs.train(run, self._d_in(run)) for run in group) for group in self.groups]
        todo = [(shared, len(shared.todo(self.store))) for shared in self.inputs if shared.todo(self.store)]
        return {
            "harvest": sum(costs.harvest_seconds(shared) for shared, _ in todo if not was_finished(shared.cache)),
            "training": prediction.makespan(groups, self.n_slots),
            **({"streaming": prediction.makespan(live, self.n_slots)} if self.n_streamed else {}),
            "evaluation": sum(costs.evaluate_seconds(shared, n_saes) for shared, n_saes in todo),
        }


class SearchPlan(Plan):
    """Plan of a search."""

    def __post_init__(self) -> None:
        from sweeps.storage.study import Study

        super().__post_init__()
        assert self.sweep.search is not None, f"{self.sweep.search=}"
        self.search, self.space = self.sweep.search, self.sweep.space()
        self.study = Study(self.space, self.search, self.store)
        self.n_left, self.n_runs = self.study.n_left(), self.space.axes.n_repeats
        (shared,) = self.inputs
        self.results_bytes = self.search.trials * self.n_runs * max(_weights_bytes(run, shared.d_in) for run in shared.runs)

    def _read_bytes(self) -> int:
        (shared,) = self.inputs
        return round(self.n_left * self.n_runs * self.harvest_tokens * _stored_bytes_per_token(shared))

    def live_tokens(self) -> int:
        (shared,) = self.inputs
        return round(self.n_left * self.n_runs * self.harvest_tokens * _streamed_share(shared))

    def data(self) -> dict[str, Any]:
        return {**super().data(), "trials": self.search.trials, "trials_left": self.n_left}

    def _head(self) -> list[str]:
        pairs = zip(self.search.objectives, self.study.directions, strict=True)
        return [
            f"Search {self.sweep.name}: {self.search.trials} trials, {self.n_left} to make. Results in {self.store.directory}",
            *(f"  {line}" for line in self.space.lines()),
            f"objectives  {', '.join(f'{name} ({direction})' for name, direction in pairs)}, sampler: {self.search.sampler}",
        ]

    def _work(self) -> list[str]:
        tokens = self.harvest_tokens
        return [
            f"training    {self.n_runs} x {tokens:,} tokens per trial (seeds x tokens), {self.n_left * self.n_runs * tokens:,} tokens left",
            f"disk        {_size(self.activations_bytes)} for activations",
        ]

    def _seconds(self, costs: prediction.Costs) -> dict[str, float]:
        (shared,) = self.inputs
        live = self._live_seconds(shared, self.harvest_tokens * self.n_runs, costs)
        mean = sum(costs.train(run, shared.source.d_in) for run in shared.runs) / len(shared.runs)
        return {
            "harvest": 0.0 if was_finished(shared.cache) or not self.n_left else costs.harvest_seconds(shared),
            "training": prediction.makespan([mean * self.n_runs] * self.n_left, self.n_slots),
            **({"streaming": prediction.makespan([live] * self.n_left, self.n_slots)} if self.n_streamed else {}),
            "evaluation": costs.evaluate_seconds(shared, self.n_runs) * self.n_left,
        }


def _tokens(group: Sequence[RunConfig]) -> int:
    """Tokens of the stream that a group reads."""
    return max(run.n_steps * run.train.batch_size for run in group)


def _weights_bytes(run: RunConfig, d_in: int) -> int:
    return n_parameters(run, d_in) * FLOAT_BYTES


def _stored_bytes_per_token(shared: SharedActivations) -> float:
    """Of an average token."""
    return shared.source.bytes_per_token * (1 - _streamed_share(shared))


def _streamed_share(shared: SharedActivations) -> float:
    return shared.n_streamed / shared.n_shards


def _settings(runs: Sequence[RunConfig]) -> list[str]:
    """What each run is: its sparsity, and the fields in which runs of its architecture differ."""
    fields = [flat(run.model_dump(mode="json")) for run in runs]
    values: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for run, own in zip(runs, fields, strict=True):
        for name, value in own.items():
            values[run.sae.architecture][name].add(str(value))
    texts = []
    for run, own in zip(runs, fields, strict=True):
        sparsity = "target_l0" if run.sae.target_l0 else run.sae.sparsity_parameter
        others = {name for name, seen in values[run.sae.architecture].items() if len(seen) > 1}
        others -= {"sae.target_l0", f"sae.{run.sae.sparsity_parameter}", "seed"}
        parts = [f"{name.rpartition('.')[2]}={own[name]}" for name in own if name in others]
        texts.append(" ".join([run.sae.architecture, f"{sparsity}={getattr(run.sae, sparsity):g}", *parts, f"seed={run.seed}"]))
    return texts


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 2**30:.1f} GiB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:.0f} MiB"
