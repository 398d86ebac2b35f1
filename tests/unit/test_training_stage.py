import io
import pickle
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.exceptions import ActorDiedError, RayTaskError
from rich.console import Console
from small_runs import run_of

from sae_core.errors import ConfigError
from sae_core.records import RunRecord
from sweeps.execution import training as training_stage
from sweeps.execution.progress import SweepProgress
from sweeps.execution.training import TrainingStage, _Watcher
from sweeps.storage.store import Store

FACTS = {"launch": 3}


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "sweep")


@pytest.fixture
def progress():
    return SweepProgress(Console(file=io.StringIO(), width=100))


@pytest.fixture
def tuner(monkeypatch):
    """Stands in for Ray Tune: `tuner.trial` is called with each trial and returns its error; `tuner.options` is what it was given."""
    stand_in = SimpleNamespace(trial=lambda trial: None, options=None)

    def make(trainable, **options):
        stand_in.options = options
        trials = options["param_space"]["trial"]["grid_search"]
        fit = lambda: [SimpleNamespace(error=stand_in.trial(trial), config={"trial": trial}) for trial in trials]  # noqa: E731
        return SimpleNamespace(fit=fit)

    monkeypatch.setattr(training_stage.tune, "Tuner", make)
    monkeypatch.setattr(training_stage, "read_manifest", lambda cache: SimpleNamespace(d_in=16))
    return stand_in


def stage_of(store, progress, n_slots=2, sink=None):
    cluster = SimpleNamespace(n_slots=n_slots, gpus=0, trial={"cpu": 1, "gpu": 0})
    return TrainingStage(store, cluster, progress, sink, FACTS, 30.0)


def work_of(*runs):
    one = SimpleNamespace(cache=Path("/cache"), activations_hash="abc", metadata={"model_name": "m"}, facts={"outlier_rows": 2})
    return [(run, one) for run in runs]


def write_trained(store, run_id):
    store.write_record(RunRecord(run_id, "trained", {}, "topk", "k", 4.0, 0))


def test_a_trial_says_all_that_a_worker_needs(store, progress, tuner):
    store.directory.mkdir()
    run = run_of("topk")
    stage_of(store, progress).run(work_of(run))
    assert tuner.options["param_space"]["trial"]["grid_search"] == [
        {
            "runs": [run.model_dump(mode="json")],
            "cache": "/cache",
            "directory": str(store.directory / "runs"),
            "checkpoint_seconds": 30.0,
            "kernels": "fast",
            "metadata": {"model_name": "m"},
            "facts": {**FACTS, "activations_hash": "abc", "activation_facts": {"outlier_rows": 2}},
            "rungs": [],
            "source": None,
        }
    ]
    assert tuner.options["tune_config"].max_concurrent_trials == 2
    assert tuner.options["run_config"].failure_config.max_failures == 2


def test_ray_leaves_nothing_in_the_results(store, progress, tuner):
    store.directory.mkdir()
    stage_of(store, progress).run(work_of(run_of("topk")))
    scratch = Path(tuner.options["run_config"].storage_path)
    assert scratch.parent == store.directory
    assert list(store.directory.iterdir()) == []


def test_runs_that_ray_lost_get_failed_records(store, progress, tuner):
    store.directory.mkdir()
    lost, kept = run_of("topk"), run_of("standard")

    def trial(trial):
        run_id = {"topk": lost, "standard": kept}[trial["runs"][0]["sae"]["architecture"]].run_id
        if run_id == lost.run_id:
            return ActorDiedError()
        write_trained(store, run_id)
        return None

    tuner.trial = trial
    stage_of(store, progress).run(work_of(lost, kept))
    record = store.read_record(lost.run_id)
    assert record.status == "failed"
    assert record.error["type"] == "ProcessDied"
    assert record.error["message"] == "its process was killed or crashed (out of memory?)"
    assert "The actor died unexpectedly" in record.error["traceback"]
    assert (record.architecture, record.sparsity_parameter, record.activations_hash) == ("topk", "k", "abc")
    assert (record.launch, record.hardware) == (3, None)
    assert record.config == lost.model_dump(mode="json")
    assert store.read_record(kept.run_id).status == "trained"
    assert "2 SAEs, 2,560 tokens, 1 FAILED in " in progress.console.file.getvalue()


def test_a_record_written_before_the_trial_was_lost_stays(store, progress, tuner):
    store.directory.mkdir()
    first, second = run_of("topk"), run_of("topk", seed=1)

    def trial(trial):
        write_trained(store, first.run_id)
        return RayTaskError("train_trial", "first\nin line 7\nlast", MemoryError("no room\nfor 3 GiB")).as_instanceof_cause()

    tuner.trial = trial
    stage_of(store, progress, n_slots=1).run(work_of(first, second))
    assert store.read_record(first.run_id).status == "trained"
    error = store.read_record(second.run_id).error
    assert (error["type"], error["message"]) == ("MemoryError", "no room")
    assert "in line 7" in error["traceback"]


def test_nothing_to_train(store, progress, tuner):
    stage_of(store, progress).run([])
    assert tuner.options is None
    assert progress.console.file.getvalue().splitlines() == ["train: 0 tokens", "train: 0 SAEs, 0 tokens in 0:00"]


def test_a_run_that_does_not_fit_into_memory(store, progress, tuner, monkeypatch):
    monkeypatch.setattr(training_stage.provenance, "memory_bytes", lambda: 1)
    with pytest.raises(ConfigError, match=r"a run must fit into a slot's memory, but topk-\w+ needs 0.00 GiB"):
        stage_of(store, progress).run(work_of(run_of("topk")))


def test_watcher_adds_up_what_trials_report(store, progress):
    # 20 steps of 64 tokens each.
    first, second = run_of("topk"), run_of("standard")
    seen, sent = [], []
    progress.advance_to = lambda tokens, detail: seen.append((tokens, detail))
    progress.runs = lambda fractions: seen.append(fractions)
    watcher = _Watcher([first, second], progress, store, SimpleNamespace(update=lambda run: sent.append(run.run_id)))
    progress.stage("train", 2_560, "tokens")
    watcher.on_trial_result(1, [], None, {"progress": {first.run_id: 0.5}})
    watcher.on_trial_result(2, [], None, {"progress": {second.run_id: 1.0}})
    # A group may hold runs that were done before, and Tune reports other things too.
    watcher.on_trial_result(3, [], None, {"progress": {"other": 1.0}, "time_total_s": 3})
    watcher.on_trial_result(4, [], None, {})
    assert seen[:4] == [(640.0, "0 of 2 SAEs done"), {first.run_id: 0.5}, (1920.0, "1 of 2 SAEs done"), {second.run_id: 1.0}]
    assert seen[4:] == [(1920.0, "1 of 2 SAEs done"), {}] * 2
    assert sent == [first.run_id, second.run_id]


def test_watcher_can_be_pickled(store, progress):
    progress.lock = io.StringIO().read  # like a terminal, not picklable
    pickle.dumps(_Watcher([run_of("topk")], progress, store, None))
