import os
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
from small_sweep import small_sweep

from sae_core.errors import ConfigError
from sae_core.records import RunRecord
from sweeps.execution import launcher, stages
from sweeps.execution import training as training_stage
from sweeps.execution.cluster import Cluster
from sweeps.execution.launcher import launch
from sweeps.storage.store import Store


@pytest.fixture(autouse=True)
def no_ray(monkeypatch):
    """Ray is neither started nor stopped, and the report is not drawn."""
    monkeypatch.setattr(Cluster, "__enter__", lambda self: self)
    monkeypatch.setattr(Cluster, "__exit__", lambda self, *error: None)
    monkeypatch.setattr(launcher, "_write_report", lambda *_: None)


@pytest.fixture
def work(monkeypatch):
    """Stands in for the work: `work.does` is called with what `run_stages` is given."""
    work = SimpleNamespace(does=lambda inputs, store, *_: None)
    monkeypatch.setattr(launcher, "run_stages", lambda *given: work.does(*given))
    return work


def write_record(store, run, status, error=None):
    told = error and {"type": error, "message": "told", "traceback": ""}
    store.write_record(RunRecord(run.run_id, status, run.model_dump(mode="json"), "topk", "k", 2.0, 0, error=told))


def test_the_result_says_what_became_of_each_run(tmp_path, work):
    def does(inputs, store, *_):
        (one,) = inputs
        write_record(store, one.runs[0], "finished")
        write_record(store, one.runs[1], "failed", "DivergedError")
        write_record(store, one.runs[2], "trained")

    work.does = does
    done = launch(small_sweep(), results=tmp_path)
    runs = small_sweep().runs()
    assert (done.directory, done.finished, done.interrupted) == (tmp_path / "small", 1, False)
    assert done.failed == {runs[1].run_id: "DivergedError: told"}
    assert done.missing == [runs[2].run_id, runs[3].run_id]


def test_runs_of_an_earlier_definition_are_not_counted(tmp_path, work):
    work.does = lambda inputs, store, *_: [write_record(store, run, "finished") for run in inputs[0].runs]
    launch(small_sweep(), results=tmp_path)
    assert launch(small_sweep(architectures={"topk": {"k": 2}}), results=tmp_path).finished == 1


def test_a_failure_that_may_not_happen_again_is_forgotten(tmp_path, work):
    store, runs = Store(tmp_path / "small"), small_sweep().runs()
    store.begin(small_sweep(), runs)
    write_record(store, runs[0], "failed", "DivergedError")
    write_record(store, runs[1], "failed", "ActorDiedError")
    seen = []
    work.does = lambda inputs, store, *_: seen.extend(run.run_id for run in inputs[0].todo(store))
    launch(small_sweep(), results=tmp_path)
    assert seen == [run.run_id for run in runs[1:]]


@pytest.mark.parametrize("interrupt", [lambda: signal.raise_signal(signal.SIGINT), lambda: os.kill(os.getpid(), signal.SIGTERM)])
def test_ctrl_c_and_sigterm_stop_cleanly(tmp_path, work, interrupt):
    before = signal.getsignal(signal.SIGTERM)
    work.does = lambda *_: interrupt()
    done = launch(small_sweep(), results=tmp_path)
    assert done.interrupted
    assert len(done.missing) == 4
    assert Store(tmp_path / "small").facts()["launches"][0]["ended_at"] is not None
    assert signal.getsignal(signal.SIGTERM) is before


def test_launch_works_in_a_thread(tmp_path, work):
    results = []
    thread = threading.Thread(target=lambda: results.append(launch(small_sweep(), results=tmp_path)))
    thread.start()
    thread.join()
    assert len(results[0].missing) == 4


class Sink:
    """Stands in for W&B."""

    def __init__(self, config, sweep_name, store):
        Sink.last, self.finished, self.closed = self, [], False

    def finish(self, run, record):
        self.finished.append(run.run_id)

    def close(self):
        self.closed = True


def test_wandb_is_closed_whatever_happens(tmp_path, work, monkeypatch):
    monkeypatch.setattr(launcher, "WandbSink", Sink)

    def does(*_):
        raise RuntimeError("the disk is full")

    work.does = does
    with pytest.raises(RuntimeError, match="the disk is full"):
        launch(small_sweep(wandb={"mode": "offline"}), results=tmp_path)
    assert Sink.last.closed


def test_wandb_gets_the_runs_of_this_launch_only(tmp_path, monkeypatch):
    monkeypatch.setattr(launcher, "WandbSink", Sink)
    monkeypatch.setattr(stages, "_harvest", lambda *_: 0.0)
    monkeypatch.setattr(stages, "_evaluate", lambda *_: 0.0)
    store, runs = Store(tmp_path / "small"), small_sweep().runs()
    store.begin(small_sweep(), runs)
    write_record(store, runs[0], "finished")
    trained = []

    class Stage:
        def __init__(self, *_):
            pass

        def run(self, work):
            trained.extend(run.run_id for run, _ in work)
            for run, _ in work:
                write_record(store, run, "finished")
            return 0.0

    monkeypatch.setattr(training_stage, "TrainingStage", Stage)
    launch(small_sweep(wandb={"mode": "offline"}), results=tmp_path)
    assert trained == Sink.last.finished == [run.run_id for run in runs[1:]]


@pytest.mark.parametrize("wandb", [None, {"mode": "disabled"}])
def test_wandb_is_not_touched_unless_asked_for(tmp_path, work, monkeypatch, wandb):
    monkeypatch.setattr(launcher, "WandbSink", lambda *_: pytest.fail("W&B was started"))
    launch(small_sweep(wandb=wandb), results=tmp_path)


def test_what_is_not_possible_is_told_before_anything_is_written(tmp_path, work):
    with pytest.raises(ConfigError, match="but got 64"):
        launch(small_sweep(), results=tmp_path / "results", gpus_per_trial=64)
    assert not (tmp_path / "results").exists()


def test_importing_the_launcher_imports_nothing_of_models_or_wandb():
    names = ("wandb", "transformer_lens", "transformers", "datasets", "matplotlib", "optuna")
    program = f"import sys, sweeps.execution.launcher; print([name for name in {names} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_arguments_of_the_wrong_kind_are_told_together(tmp_path):
    with pytest.raises(ConfigError) as error:
        launch("demo", results=tmp_path, kernels="nope", cpus_per_trial=1.5, gpus_per_trial="x", checkpoint_seconds=float("inf"))
    lines = str(error.value).splitlines()
    assert [line.split()[0] for line in lines] == ["`sweep`", "`kernels`", "`cpus_per_trial`", "`gpus_per_trial`", "`checkpoint_seconds`"]
    assert "but got 'nope'" in lines[1] and "but got 1.5" in lines[2] and "but got 'x'" in lines[3] and "but got inf" in lines[4]
