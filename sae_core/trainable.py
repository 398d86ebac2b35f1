"""Train-one-group as a Ray Tune trainable: the only file of sae_core that imports ray.

A search needs to know what a trial came to at its end, so such a trial also evaluates its SAEs; in a grid one stage evaluates all.

A trial's config is plain data (`TrialConfig`, as a dict), because Ray pickles and logs it: paths, never object references, which
do not survive a restart of the driver. Results are files under `directory`, written before Ray hears of them.
"""

import json
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sae_core import plugins, provenance
from sae_core.activations.local import LocalCopies
from sae_core.activations.shards import read_manifest
from sae_core.activations.source import kept_source
from sae_core.activations.stream import Stream
from sae_core.arithmetic import arithmetic, eval_arithmetic
from sae_core.config.run import RunConfig
from sae_core.devices import keep_to_share
from sae_core.errors import facts_of, is_out_of_memory
from sae_core.evaluation import evaluate, is_to_evaluate, write_evaluated
from sae_core.files import write_json_lines
from sae_core.layout import RunPaths
from sae_core.orders import OrdersFile
from sae_core.records import RunRecord
from sae_core.sae.base import SparseAutoencoder
from sae_core.sparse.kernels.choice import Choice, use_kernels
from sae_core.training.continuing import keep_state
from sae_core.training.export import write_result
from sae_core.training.kl_stage import StageText
from sae_core.training.loop import Learner, train_group
from sae_core.training.snapshots import Snapshots
from sae_core.watchdog import beat, expected

REPORT_SECONDS = 5.0

Report = Callable[[dict[str, Any]], object]


@dataclass(frozen=True, slots=True)
class TrialConfig:
    """What a trial needs to know."""

    runs: list[dict[str, Any]]
    """RunConfigs of the group, as JSON."""
    cache: str
    """Absolute path of the harvested activations."""
    directory: str
    """Absolute path that holds a folder a run."""
    orders: str = ""
    """Absolute path of the orders to follow; see `orders`. Empty: none."""
    checkpoint_seconds: float = 60.0
    """Least time between two checkpoints."""
    stall_seconds: float = 0.0
    """Most time that a step may take, or that its process may be stopped; it is ended then, see `watchdog`. 0: any."""
    kernels: Choice = "fast"
    """See `sparse.kernels`."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """For the exported cfg.json; see `training.export`."""
    facts: dict[str, Any] = field(default_factory=dict)
    """For the records; see `training.export`."""
    rungs: list[float] = field(default_factory=list)
    """Fractions of the steps at which to ask whether to go on."""
    snapshots: list[float | str] = field(default_factory=list)
    """Points of training at which each run's SAE is exported; see `config.snapshots`."""
    plugins: dict[str, str] = field(default_factory=dict)
    """Plugins to import first: location -> checksum."""
    source: dict[str, Any] | None = None
    """ActivationsConfig, as JSON, to evaluate the SAEs with at the end; None: another stage does."""
    gpus: float = 0.0
    """GPUs of its slot. Of a part of one, it may take no more memory; a language model is spread over several."""
    live: dict[str, Any] | None = None
    """ActivationsConfig, as JSON, to make the shards with that are not stored; None: all are."""
    keep_states: bool = False
    """Whether runs leave a state in training from which longer ones continue; see `training.continuing`."""
    text: dict[str, Any] | None = None
    """ActivationsConfig, as JSON, whose language model KL stages use; None: no run has one."""
    local_cache: str = ""
    """Absolute path on each node's own disk for copies of the activations; empty: they are read where they lie."""


def rung_step(rung: float, n_steps: int) -> int:
    """Steps done at a rung, which is a fraction of them."""
    return max(1, round(rung * n_steps))


def train_trial(config: dict[str, Any]) -> None:
    """Run `config["trial"]`, a `TrialConfig` as a dict, as a trial of Ray Tune."""
    from ray import get_gpu_ids, tune

    def report(told: dict[str, Any]) -> None:
        tune.report({"json": json.dumps(told)})  # as text: Tune flattens nested results, but not for everybody

    try:
        # Ray leaves every GPU visible to a trial that asked for none, so torch.cuda.is_available() says nothing here.
        run_trial(TrialConfig(**config["trial"]), report, "cuda:0" if get_gpu_ids() else "cpu")
    except Exception as error:  # the boundary of a trial: whoever hands out trials decides what follows
        report({"error": facts_of(error)})
        if is_out_of_memory(type(error).__name__, str(error)):
            raise  # else the next trial gets this process, with what is left of its memory


def run_trial(trial: TrialConfig, report: Report, device: str) -> None:
    """Train a group and write one record per run. Runs with a record are left alone, and those that are ordered to stop get none.

    A retry of the trial, or a later launch with other groups, resumes each run from its checkpoint.

    Args:
        report: called with how far each run is, from time to time, at rungs and at the end. Where the trial is to stop at a rung it does
            not return; whoever decided that has written the records.
    """
    plugins.load_same(trial.plugins)
    directory, orders = Path(trial.directory), OrdersFile(trial.orders)
    runs = [RunConfig.model_validate(run) for run in trial.runs]
    use_kernels(trial.kernels)
    keep_to_share(device, trial.gpus)
    local = LocalCopies(Path(trial.local_cache)) if trial.local_cache else None

    def say(told: dict[str, Any]) -> None:
        report({**told, "note": local.problem} if local and local.problem else told)

    for data_seed in dict.fromkeys(run.data_seed for run in runs):  # a point of a search has a run per order of the tokens, too
        told = orders.wait()
        todo = [run for run in runs if run.data_seed == data_seed and not RunPaths(directory / run.run_id).record.exists()]
        if todo := [run for run in todo if not told.stop(run.run_id)]:
            with expected():
                _train(trial, todo, say, device, orders, local)
    ended = [run for run in runs if RunPaths(directory / run.run_id).record.exists()]
    if trial.source is not None and orders.now().sweep == "go":
        _evaluate(trial, trial.source, ended, device)
    say({"progress": {run.run_id: 1.0 for run in ended}})


def _train(
    trial: TrialConfig, runs: Sequence[RunConfig], report: Report, device: str, orders: OrdersFile, local: LocalCopies | None
) -> None:
    train, directory = runs[0].train, Path(trial.directory)
    stream = Stream(
        Path(trial.cache),
        batch_size=train.batch_size,
        data_seed=runs[0].data_seed,
        normalize_activations=train.normalize_activations,
        device=device,
        source=kept_source(trial.live, device, int(trial.gpus)) if trial.live else None,
        local=local,
    )
    made_by = {**provenance.node(), "kernels": trial.kernels, "arithmetic": arithmetic(device, autocast=train.autocast)}
    snapshots = Snapshots(trial.snapshots, stream, directory, trial.metadata, {**trial.facts, **made_by})

    def after_step(learner: Learner) -> None:
        snapshots(learner)
        if trial.keep_states:
            keep_state(learner, directory)

    text = None
    if trial.text:
        source = kept_source(trial.text, device, int(trial.gpus))
        text = StageText(source, Path(trial.cache), batch_size=train.batch_size, data_seed=runs[0].data_seed)
    results = train_group(
        runs,
        stream,
        text=text,
        device=device,
        directory=directory,
        checkpoint_seconds=trial.checkpoint_seconds,
        on_step=_Reporter(directory, trial.rungs, report, made_by),
        after_step=after_step,
        orders=orders,
    )
    for result in results:
        facts = {**trial.facts, **made_by, "finished_at": provenance.now()}
        beat()
        write_result(result, RunPaths(directory / result.run.run_id), metadata=trial.metadata, facts=facts)


def _evaluate(trial: TrialConfig, config: dict[str, Any], runs: Sequence[RunConfig], device: str) -> None:
    """Measure exported SAEs, variants too, on the held-out text of a source, by its config in JSON, where that is to do; finish their
    records."""
    cache, own = Path(trial.cache), [RunPaths(Path(trial.directory) / run.run_id) for run in runs]
    read = [(RunRecord.read(of.record), of) for run in own for of in (run, *run.recorded_variants())]
    paths = {record.run_id: of for record, of in read}
    trained = {record.run_id: record for record, _ in read if is_to_evaluate(record)}
    if not trained:
        return
    source = kept_source(config, device, int(trial.gpus))
    saes = {run_id: SparseAutoencoder.from_pretrained(paths[run_id].sae).to(device) for run_id in trained}
    with expected():
        found = evaluate(saes, source, cache, torch.tensor(read_manifest(cache).target_mean))
    eval_hash = source.eval_hash(cache)
    where = {f"eval_{name}": value for name, value in provenance.node().items()} | {"eval_arithmetic": eval_arithmetic(device, config)}
    for run_id, record in trained.items():
        write_evaluated(record, found[run_id], eval_hash, paths[run_id], where)


class _Reporter:
    """Reports how far each run is, every five seconds and at rungs, and keeps histories current for whoever reads the files."""

    def __init__(self, directory: Path, rungs: Sequence[float], report: Report, made_by: dict[str, Any]) -> None:
        self.directory, self.rungs, self.report, self.made_by = directory, rungs, report, made_by
        self.rows_written: dict[str, int] = {}
        self.last = time.monotonic()

    def __call__(self, learners: Sequence[Learner]) -> None:
        rung = self._rung(learners)
        if rung is None and time.monotonic() - self.last < REPORT_SECONDS:
            return
        self.last = time.monotonic()
        for learner in learners:
            run_id, rows = learner.run.run_id, len(learner.history)
            if rows > self.rows_written.get(run_id, 0):
                write_json_lines(RunPaths(self.directory / run_id).history, learner.history)
                self.rows_written[run_id] = rows
        at_rung = {} if rung is None else {"rung": rung, "node": self.made_by}  # for the record of a run that is stopped
        fractions = {learner.run.run_id: learner.step / learner.run.n_steps for learner in learners}
        latest = [learner.history[-1] for learner in learners if learner.history]
        seen = {name: [row[name] for row in latest if row[name] is not None] for name in ("loss", "l0")}
        self.report({"progress": fractions, "host": socket.gethostname(), **seen, **at_rung})

    def _rung(self, learners: Sequence[Learner]) -> float | None:
        """The rung that the slowest run of the group has just reached."""
        going = [learner for learner in learners if learner.error is None]
        if not going or not self.rungs:
            return None
        slowest = min(going, key=lambda learner: learner.step)
        return next((rung for rung in self.rungs if rung_step(rung, slowest.run.n_steps) == slowest.step), None)
