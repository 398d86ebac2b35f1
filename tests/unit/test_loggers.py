import json
import sys
from types import SimpleNamespace

import pytest
from inline import launch
from small_runs import run_of
from small_sweep import small_sweep

from sae_core.errors import ConfigError
from sae_core.files import write_text
from sae_core.records import RunRecord
from sweeps.definition.sections import WandbConfig
from sweeps.execution.loggers import LOGGERS, Logger, Loggers
from sweeps.execution.loggers.wandb import WandbLogger
from sweeps.storage.store import Store


class Run:
    """Stands in for a W&B run."""

    def __init__(self, options):
        self.options, self.rows, self.summary, self.ended = options, [], {}, None

    def log(self, row, step):
        self.rows.append((step, row))

    def finish(self, exit_code):
        self.ended = exit_code


@pytest.fixture
def wandb(monkeypatch):
    """Stands in for the package; `wandb.runs` is what was begun."""
    module = SimpleNamespace(runs=[], key=False, Settings=lambda **settings: settings, Error=ConnectionError)
    module.init = lambda **options: module.runs.append(Run(options)) or module.runs[-1]
    module.login = lambda prompt, verify: module.key
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "sweep")


def write_history(store, run, n_rows):
    rows = [{"step": step, "tokens": 64 * step, "loss": 1 / step, "l0": 4.0} for step in range(1, n_rows + 1)]
    write_text(store.paths.run(run.run_id).history, "".join(json.dumps(row) + "\n" for row in rows))


def record_of(run, **fields):
    return RunRecord(run.run_id, **{"status": "finished", "config": {}, "architecture": "topk", "sparsity_parameter": "k"} | fields,
                     sparsity_value=4.0, seed=0)  # fmt: skip


def test_one_run_per_sae_grouped_by_the_sweep(store, wandb):
    logger = WandbLogger(WandbConfig(project="mine").model_dump(), "demo", store)
    runs = [run_of("topk"), run_of("standard")]
    for run in runs:
        write_history(store, run, 2)
        logger.update(run)
        logger.update(run)
    for begun, run in zip(wandb.runs, runs, strict=True):
        options = begun.options
        assert (options["id"], options["name"], options["group"]) == (run.run_id, run.run_id, "demo")
        assert (options["project"], options["entity"], options["mode"]) == ("mine", None, "offline")
        assert options["config"] == run.model_dump(mode="json")
        assert options["dir"] == store.directory


def test_rows_are_sent_once_under_stable_names(store, wandb):
    logger, run = WandbLogger(WandbConfig().model_dump(), "demo", store), run_of("topk")
    logger.update(run)  # nothing was written yet
    assert wandb.runs == []
    write_history(store, run, 2)
    logger.update(run)
    write_history(store, run, 3)
    logger.update(run)
    (begun,) = wandb.runs
    assert [step for step, _ in begun.rows] == [1, 2, 3]
    assert begun.rows[1][1] == {"train/tokens": 128, "train/loss": 0.5, "train/l0": 4.0}


def test_metrics_are_sent_under_the_names_of_the_table(store, wandb):
    logger, run = WandbLogger(WandbConfig().model_dump(), "demo", store), run_of("topk")
    write_history(store, run, 1)
    logger.finish(run, record_of(run, metrics={"l0": 4.0, "fvu": 0.1, "kl": None}, train_seconds=2.5))
    (begun,) = wandb.runs
    assert begun.summary == {"eval/l0": 4.0, "eval/fvu": 0.1, "eval/kl": None, "status": "finished", "train_seconds": 2.5}
    assert begun.rows[0][0] == 1
    assert begun.ended == 0
    assert logger.open_runs == {}


def test_a_failed_run_is_marked(store, wandb):
    logger, run = WandbLogger(WandbConfig().model_dump(), "demo", store), run_of("topk")
    logger.finish(run, record_of(run, status="failed"))
    assert (wandb.runs[0].ended, wandb.runs[0].summary["status"]) == (1, "failed")


def test_what_is_left_open_is_ended(store, wandb):
    logger, run = WandbLogger(WandbConfig().model_dump(), "demo", store), run_of("topk")
    write_history(store, run, 1)
    logger.update(run)
    logger.close()
    logger.close()
    assert wandb.runs[0].ended == 1
    assert logger.open_runs == {}


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ConnectionError("the server is away"), "the server is away"),
        (OSError(28, "No space left on device"), "[Errno 28] No space left on device"),
        (KeyError("run"), "KeyError: 'run'"),
    ],
)
def test_a_sweep_continues_when_wandb_does_not(store, wandb, caplog, error, reason):
    loggers, run = Loggers(small_sweep(wandb={}), store), run_of("topk")
    write_history(store, run, 1)

    def init(**options):
        raise error

    wandb.init = init
    loggers.update(run)
    loggers.finish(run, record_of(run))
    loggers.close()
    assert caplog.messages == [f"logger wandb failed, the sweep continues without it: {reason}"]


@LOGGERS.register("noted")
class Noted(Logger):
    """Keeps what it is given."""

    def __init__(self, options, sweep_name, store):
        super().__init__(options, sweep_name, store)
        Noted.calls = [(options, sweep_name)]

    def update(self, run):
        self.calls.append(("update", run.run_id))

    def finish(self, run, record):
        self.calls.append((record.status, run.run_id))

    def close(self):
        self.calls.append("close")


@pytest.fixture
def without_report(monkeypatch):
    monkeypatch.setattr("analysis.report.write_report", lambda *_: None)


@pytest.mark.slow
def test_a_logger_of_a_plugin_gets_the_runs_of_this_launch(tmp_path, without_report):
    sweep = small_sweep(loggers={"noted": {"where": "here"}}, architectures={"topk": {"k": 2}})
    launch(small_sweep(architectures={"standard": {"l1_coefficient": 0.3}}), results=tmp_path)
    done = launch(sweep, results=tmp_path)
    (run,) = sweep.runs()
    assert done.finished == 1
    created, *updates, finished, closed = Noted.calls
    assert (created, finished, closed) == (({"where": "here"}, "small"), ("finished", run.run_id), "close")
    assert set(updates) == {("update", run.run_id)}


def test_loggers_are_closed_whatever_happens(tmp_path, without_report, monkeypatch):
    def fail(*_):
        raise RuntimeError("the disk is full")

    monkeypatch.setattr("sweeps.execution.stages.finish_harvest", fail)
    with pytest.raises(RuntimeError, match="the disk is full"):
        launch(small_sweep(loggers={"noted": {}}), results=tmp_path)
    assert Noted.calls[1:] == ["close"]


def test_an_unknown_logger(tmp_path):
    with pytest.raises(ConfigError, match=r"logger must be one of .*'wandb'.*, but got 'wanbd'\. Did you mean 'wandb'\?"):
        launch(small_sweep(loggers={"wanbd": {}}), results=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_wandb_is_not_imported_unless_asked_for(store, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    Loggers(small_sweep(wandb={"mode": "disabled"}), store)
    Loggers(small_sweep(), store)


def test_online_needs_a_key(store, wandb):
    with pytest.raises(ConfigError, match=r"must be offline where there is no API key, but got mode='online'\. Run `wandb login`"):
        WandbLogger(WandbConfig(mode="online").model_dump(), "demo", store)
    wandb.key = True
    logger, run = WandbLogger(WandbConfig(mode="online").model_dump(), "demo", store), run_of("topk")
    logger.finish(run, record_of(run))
    assert wandb.runs[0].options["resume"] == "allow"


def test_not_installed(store, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(
        ConfigError,
        match=r"wandb must be installed where a definition has `wandb`, but it cannot be imported: .*\. Run `pip install wandb`",
    ):
        WandbLogger(WandbConfig().model_dump(), "demo", store)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_offline_needs_no_key(store, monkeypatch, tmp_path):
    """With the real package."""
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))
    store.directory.mkdir()
    logger = WandbLogger(WandbConfig().model_dump(), "demo", store)
    runs = [run_of("topk"), run_of("standard")]
    for run in runs:
        write_history(store, run, 3)
        logger.update(run)
    for run in runs:
        logger.finish(run, record_of(run, metrics={"fvu": 0.1, "kl": None}))
    kept = [path.name for path in (store.directory / "wandb").glob("offline-run-*/run-*.wandb")]
    assert sorted(kept) == sorted(f"run-{run.run_id}.wandb" for run in runs)
    logger.wandb.teardown()  # ends its service, a process that would outlive the test


def test_a_login_that_fails(store, wandb):
    def login(**options):
        raise ValueError("API key must have 40 characters, has 3")

    wandb.login = login
    with pytest.raises(
        ConfigError, match="where W&B cannot log in, but got mode='online': ValueError: API key must have 40 characters, has 3"
    ):
        WandbLogger(WandbConfig(mode="online").model_dump(), "demo", store)
