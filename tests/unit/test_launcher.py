import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress

import pytest
from inline import launch
from small_sweep import small_sweep

from sae_core.errors import ConfigError
from sae_core.metrics.metric import METRICS
from sae_core.records import RunRecord
from sweeps.execution.progress import SweepProgress
from sweeps.storage.store import Store

TINY = {"activations": {"source": "synthetic", "d_in": 8, "train_tokens": 600, "eval_tokens": 100}, "sae": {"d_sae": 16}}


@pytest.fixture(autouse=True)
def _without_report(monkeypatch):
    monkeypatch.setattr("analysis.report.write_report", lambda *_: None)


def tiny(**changes):
    return small_sweep(**TINY, **changes)


def write_record(store, run, status, error=None):
    told = error and {"type": error, "message": "told", "traceback": ""}
    store.write_record(RunRecord(status=status, error=told, **run.identity))


class Interrupting(SweepProgress):
    """Calls something at the first harvested shard."""

    def __init__(self, interrupt):
        super().__init__()
        self.interrupt = interrupt

    def advance_to(self, *_, **__):
        self.interrupt()


@pytest.mark.slow
def test_the_result_says_what_became_of_each_run(tmp_path):
    store, runs = Store(tmp_path / "small"), tiny().runs()
    store.begin(tiny(), runs)
    write_record(store, runs[0], "finished")
    write_record(store, runs[1], "failed", "DivergedError")
    done = launch(tiny(), results=tmp_path, progress=Interrupting(interrupt))
    assert (done.directory, done.finished, done.interrupted) == (tmp_path / "small", 1, True)
    assert done.failed == {runs[1].run_id: "DivergedError: told"}
    assert done.missing == [runs[2].run_id, runs[3].run_id]
    # A run of an earlier definition is not counted.
    assert launch(tiny(architectures={"topk": {"k": 2}}), results=tmp_path).finished == 1


def interrupt():
    raise KeyboardInterrupt


@pytest.mark.slow
def test_a_failure_that_may_not_happen_again_is_forgotten(tmp_path):
    store, runs = Store(tmp_path / "small"), tiny().runs()
    store.begin(tiny(), runs)
    write_record(store, runs[0], "failed", "DivergedError")
    write_record(store, runs[1], "failed", "ProcessDied")
    done = launch(tiny(), results=tmp_path)
    assert (done.finished, list(done.failed)) == (3, [runs[0].run_id])


@pytest.mark.parametrize("interrupt", [lambda: signal.raise_signal(signal.SIGINT), lambda: os.kill(os.getpid(), signal.SIGTERM)])
@pytest.mark.slow
def test_ctrl_c_and_sigterm_stop_cleanly(tmp_path, interrupt):
    before = signal.getsignal(signal.SIGTERM)
    done = launch(tiny(), results=tmp_path, progress=Interrupting(interrupt))
    assert done.interrupted
    assert len(done.missing) == 4
    assert Store(tmp_path / "small").facts()["launches"][0]["ended_at"] is not None
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.slow
def test_launch_works_in_a_thread(tmp_path):
    results = []
    thread = threading.Thread(target=lambda: results.append(launch(tiny(), results=tmp_path)))
    thread.start()
    thread.join()
    assert results[0].finished == 4


def test_an_error_of_a_trial_is_the_record_of_its_runs(tmp_path, monkeypatch):
    def fail(*_, **options):
        raise MemoryError("no room\nfor 3 GiB")

    monkeypatch.setattr("sae_core.trainable.train_group", fail)
    done = launch(tiny(), results=tmp_path)
    assert set(done.failed.values()) == {"MemoryError: no room for 3 GiB"}
    record = next(iter(Store(tmp_path / "small").records().values()))
    assert "in fail" in record.error["traceback"]
    assert record.launch == 1 and record.activations_hash


def test_a_run_that_does_not_fit_into_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("sae_core.provenance.memory_bytes", lambda: 1)
    with pytest.raises(ConfigError, match=r"a run must fit into a slot's memory of 0.00 GiB, but \d of \d do not: topk-\w+ needs 0.00 GiB"):
        launch(tiny(), results=tmp_path)
    assert not list((tmp_path / ".activations").rglob("train-*"))  # it is known before the harvest


@pytest.mark.parametrize("executor", ["ray", "inline"])
def test_what_is_not_possible_is_told_before_anything_is_written(tmp_path, executor):
    with pytest.raises(ConfigError, match="but got 64"):
        launch(tiny(), results=tmp_path / "results", gpus_per_trial=64, executor=executor)
    with pytest.raises(ConfigError, match=r"`--address` must be .* but got '127\.0\.0\.1:9'"):
        launch(tiny(), results=tmp_path / "results", address="127.0.0.1:9", executor=executor)
    assert not (tmp_path / "results").exists()


def test_arguments_of_the_wrong_kind_are_told_together(tmp_path):
    with pytest.raises(ConfigError) as error:
        launch(
            "demo", results=tmp_path, executor="slurm", kernels="nope", cpus_per_trial=1.5, gpus_per_trial="x",
            checkpoint_seconds=float("inf"), stall_seconds=-1.0,
        )  # fmt: skip
    lines = str(error.value).splitlines()
    names = ["`sweep`", "executor:", "cpus_per_trial:", "gpus_per_trial:", "checkpoint_seconds:", "kernels:", "stall_seconds:"]
    assert [line.split()[0] for line in lines] == names
    for line, value in zip(lines, ["'demo'", "'slurm'", "1.5", "'x'", "inf", "'nope'", "-1"], strict=True):
        assert "but got " in line and value in line


def test_what_only_this_process_knows_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(METRICS._entries, "answer", type("Answer", (), {"__module__": "__main__", "spec": METRICS["l0"].spec}))
    with pytest.raises(ConfigError, match=r"metric 'answer' of '__main__' is registered by no plugin.*Name its file or module"):
        launch(tiny(), results=tmp_path)


@pytest.mark.slow
def test_an_inline_launch_imports_no_ray_and_nothing_of_models_or_loggers(tmp_path):
    names = ("ray", "wandb", "tensorboard", "transformer_lens", "transformers", "datasets", "optuna")
    program = f"""
import sys
from sweeps import Sweep, launch
sys.path.insert(0, "tests")
from small_sweep import small_sweep
done = launch(small_sweep(**{TINY}, architectures={{"topk": {{"k": 2}}}}), results={str(tmp_path)!r}, executor="inline")
print(done.finished, [name for name in {names} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1 []"


def test_an_interrupt_that_a_library_made_an_error_is_an_interrupt(tmp_path, monkeypatch):
    def stages(*_):
        with suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
        raise SystemError("a function returned a result with an exception set")

    monkeypatch.setattr("sweeps.execution.launcher.run_stages", stages)
    assert launch(tiny(), results=tmp_path).interrupted
