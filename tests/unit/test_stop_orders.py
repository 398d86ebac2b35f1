"""Orders to a running launch: read, obeyed by a trial, and by a launch in this process."""

import json
import threading
import time
from dataclasses import asdict

import pytest
from inline import launch
from small_runs import run_of
from small_sweep import results_of, small_sweep

from sae_core import orders as orders_module
from sae_core.activations import shards
from sae_core.activations.synthetic import SyntheticSource
from sae_core.orders import Orders, OrdersFile, StoppedError
from sae_core.trainable import TrialConfig, run_trial
from sweeps.execution.progress import SweepProgress
from sweeps.storage.store import Store


@pytest.fixture(autouse=True)
def _looks_at_every_step(monkeypatch):
    monkeypatch.setattr(orders_module, "LOOK_SECONDS", 0.0)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "orders.json"


def test_orders_are_read_as_they_were_written(path):
    assert Orders.read(path) == Orders()
    Orders("pause", {"topk-1": "stop"}).write(path)
    assert Orders.read(path) == Orders("pause", {"topk-1": "stop"})
    assert Orders("stop").stop("any") and Orders(runs={"a": "stop"}).stop("a") and not Orders(runs={"a": "stop"}).stop("b")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"sweep": "stop", "checksum": "0"}', '{"sweep": "halt", "runs": 3}'])
def test_what_cannot_be_read_stops_nothing(path, content):
    path.write_text(content)
    assert Orders.read(path) == Orders()


def test_a_loop_waits_while_paused_and_is_told_to_stop(path):
    file = OrdersFile(path)
    file.go_on()
    Orders("pause").write(path)
    threading.Timer(0.2, Orders("stop").write, [path]).start()
    started = time.monotonic()
    with pytest.raises(StoppedError):
        file.go_on()
    assert time.monotonic() - started >= 0.15


def trial(tmp_path, runs):
    cache = tmp_path / "cache"
    source = SyntheticSource(runs[0].activations)
    shards.harvest(source, cache)
    shards.finish(source, cache)
    config = TrialConfig(
        runs=[run.model_dump(mode="json") for run in runs],
        cache=str(cache), directory=str(tmp_path / "runs"), orders=str(tmp_path / "orders.json"),
    )  # fmt: skip
    return TrialConfig(**json.loads(json.dumps(asdict(config))))


def names(tmp_path, run):
    return {path.name for path in (tmp_path / "runs" / run.run_id).iterdir()}


@pytest.mark.slow
def test_a_stopped_run_keeps_a_checkpoint_and_the_others_go_on(tmp_path, path):
    stopped, other = run_of("topk"), run_of("standard")
    alone = tmp_path / "alone"
    run_trial(trial(alone, [stopped]), lambda told: None, "cpu")
    config, told = trial(tmp_path, [stopped, other]), []
    Orders(runs={"nobody": "stop"}).write(path)
    looked = []

    def look(file):
        """The order comes while the group trains."""
        if len(looked) == 3:
            Orders(runs={stopped.run_id: "stop"}).write(path)
        looked.append(Orders.read(file.path))
        return looked[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OrdersFile, "now", look)
        run_trial(config, told.append, "cpu")
    assert names(tmp_path, stopped) == {"checkpoint.safetensors"}
    assert "record.json" in names(tmp_path, other)
    assert told[-1] == {"progress": {other.run_id: 1.0}}
    path.unlink()
    run_trial(config, told.append, "cpu")
    weights = [root / "runs" / stopped.run_id / "sae" / "sae_weights.safetensors" for root in (tmp_path, alone)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


class At(SweepProgress):
    """Calls something when a stage begins, or when a trial says how far it is."""

    def __init__(self, stage, act):
        super().__init__()
        self.at, self.act = stage, act

    def advance_to(self, *_, **__):
        if self.state.stage == self.at:
            self.at = ""
            self.act()


@pytest.mark.parametrize("stage", ["harvest", "train", "evaluate"])
@pytest.mark.slow
def test_a_launch_that_is_ordered_to_stop_keeps_what_it_has(tmp_path, stage, monkeypatch):
    monkeypatch.setattr("analysis.report.write_report", lambda *_: None)
    monkeypatch.setattr("sae_core.trainable.REPORT_SECONDS", 0.0)
    n_tokens = 140_000 if stage == "harvest" else 4000
    activations = {"source": "synthetic", "d_in": 8, "train_tokens": n_tokens, "eval_tokens": 70_000}
    changes = {"activations": activations, "architectures": {"topk": {"k": [2, 4]}}}
    store = Store(tmp_path / "small")
    done = launch(small_sweep(**changes), results=tmp_path, progress=At(stage, lambda: Orders("stop").write(store.paths.orders)))
    assert (done.finished, done.failed, done.interrupted, len(done.missing)) == (0, {}, False, 2)
    assert len(list(store.directory.glob("runs/*/checkpoint.safetensors"))) == (stage == "train")  # its group is of one run
    if stage == "harvest":
        assert len(list(tmp_path.glob(".activations/*/train-*.safetensors"))) == 1
        return
    assert launch(small_sweep(**changes), results=tmp_path).finished == 2  # with no orders
    undisturbed = launch(small_sweep(name="undisturbed", **changes), results=tmp_path)
    assert results_of(store.directory) == results_of(undisturbed.directory)
