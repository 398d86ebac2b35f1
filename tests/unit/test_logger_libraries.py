"""Loggers with their real libraries, offline: what they leave in files. A library that is not installed leaves its test out."""

import json
import subprocess
import sys

import pytest
from small_runs import run_of

from sae_core.errors import ConfigError
from sae_core.files import write_text
from sae_core.records import RunRecord
from sweeps.definition.sections import WandbConfig
from sweeps.execution.loggers import LOGGERS, Loggers
from sweeps.execution.loggers.wandb import WandbLogger
from sweeps.storage.store import Store

RUNS = [run_of("topk"), run_of("standard")]
SAES = {name for run in RUNS for name in (run.run_id, f"{run.run_id}@step-10")}
"""Their final SAEs and a snapshot of each."""
METRICS = {"l0": 4.0, "fvu": 0.25, "kl": None}


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "demo")
    store.directory.mkdir()
    return store


def write_history(store, run, n_rows):
    rows = [{"step": step, "tokens": 64 * step, "loss": 1 / step, "l0": None if step == 1 else 4.0} for step in range(1, n_rows + 1)]
    write_text(store.paths.run(run.run_id).history, "".join(json.dumps(row) + "\n" for row in rows))


def record_of(run, status="finished"):
    return RunRecord(run.run_id, status=status, config={}, architecture=run.sae.architecture, sparsity_parameter="k", sparsity_value=4.0,
                     seed=0, metrics=METRICS, train_seconds=2.5)  # fmt: skip


def mirrored(logger_of, store):
    """Two runs at once, in a launch that is interrupted and another one that finishes them; each has an SAE."""
    interrupted = logger_of()
    for run in RUNS:
        write_history(store, run, 2)
        interrupted.update(run)
        for name in (run.run_id, f"{run.run_id}@step-10"):
            paths = store.paths.run(name)
            paths.sae.mkdir(parents=True)
            paths.record.touch()
            (paths.sae / "cfg.json").write_text(json.dumps({"run": name}))
        store.paths.run(run.run_id).record.unlink()
    interrupted.close()
    logger = logger_of()
    for n_rows in (2, 3):
        for run in RUNS:
            write_history(store, run, n_rows)
            logger.update(run)
    for run in RUNS:
        logger.finish(run, record_of(run, "finished" if run is RUNS[0] else "failed"))
    logger.close()
    return logger


def made(name, store, **options):
    kind = LOGGERS[name]
    return lambda: kind(dict(kind.Options(**options)), "demo", store)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard(store):
    pytest.importorskip("tensorboard")
    mirrored(made("tensorboard", store), store)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    for run in RUNS:
        events = EventAccumulator(str(store.directory / "tensorboard" / run.run_id)).Reload()
        assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]
        assert [event.step for event in events.Scalars("train/l0")] == [2, 3]
        assert [event.value for event in events.Scalars("eval/fvu")] == [0.25]
        assert "eval/kl" not in events.Tags()["scalars"]
        start = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
        config = HParamsPluginData.FromString(start).session_start_info.hparams
        assert config["sae.architecture"].string_value == run.sae.architecture
        assert config["train.lr"].number_value == run.train.lr
        assert config["status"].string_value == ("finished" if run is RUNS[0] else "failed")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_trackio(store, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio")
    mirrored(made("trackio", store, project="mine", artifacts=True), store)
    assert capsys.readouterr().out == ""

    def answer(*arguments):
        done = subprocess.run([sys.executable, "-m", "trackio.cli", *arguments, "--json"], capture_output=True, text=True, check=True)
        return json.loads(done.stdout)

    assert sorted(answer("list", "runs", "--project", "mine")["runs"]) == sorted(run.run_id for run in RUNS)
    for run in RUNS:
        values = answer("get", "metric", "--project", "mine", "--run", run.run_id, "--metric", "train/loss")["values"]
        assert [(row["step"], row["value"]) for row in values] == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]
        (fvu,) = answer("get", "metric", "--project", "mine", "--run", run.run_id, "--metric", "eval/fvu")["values"]
        assert (fvu["step"], fvu["value"]) == (run.n_steps, 0.25)
        import trackio

        directory = trackio.Api().runs("mine")
        assert {found.name: found.config["sae"]["architecture"] for found in directory}[run.run_id] == run.sae.architecture
    kept = [
        json.loads(file.read_text())
        for file in (tmp_path / "trackio" / "artifacts").rglob("*")
        if file.is_file() and b'{"run"' in file.read_bytes()
    ]
    assert {content["run"] for content in kept} == SAES


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_mlflow(store):
    mlflow = pytest.importorskip("mlflow")
    mirrored(made("mlflow", store, artifacts=True), store)
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{store.directory / 'mlflow.db'}")
    found = {run.info.run_name: run for run in client.search_runs([client.get_experiment_by_name("demo").experiment_id])}
    assert set(found) == {run.run_id for run in RUNS}
    for run in RUNS:
        kept = found[run.run_id]
        rows = client.get_metric_history(kept.info.run_id, "train/loss")
        assert [(row.step, row.value) for row in rows] == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]
        assert (kept.data.metrics["eval/fvu"], "eval/kl" in kept.data.metrics) == (0.25, False)
        assert (kept.data.params["sae.architecture"], kept.data.params["train.lr"]) == (run.sae.architecture, str(run.train.lr))
        assert kept.info.status == ("FINISHED" if run is RUNS[0] else "FAILED")
        for name in (run.run_id, f"{run.run_id}@step-10"):
            assert [file.path for file in client.list_artifacts(kept.info.run_id, name)] == [f"{name}/cfg.json"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_wandb_keeps_saes_for_its_sync(store, monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HOME", "WANDB_DATA_DIR", "WANDB_CACHE_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    logger = mirrored(lambda: WandbLogger(WandbConfig(artifacts=True).model_dump(), "demo", store), store)
    logger.wandb.teardown()
    kept = [
        json.loads(file.read_text()) for file in (tmp_path / "artifacts").rglob("*") if file.is_file() and b'{"run"' in file.read_bytes()
    ]
    assert {content["run"] for content in kept} == SAES


@pytest.mark.parametrize("name", ["tensorboard", "trackio", "mlflow"])
def test_a_library_that_is_missing(name, store, monkeypatch):
    for module in (name, "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=rf"{name} must be installed where a definition has `{name}`, .*\. Run `pip install {name}`\."):
        made(name, store)()


def test_every_bad_option_is_told(store):
    from small_sweep import small_sweep

    loggers = {"tensorboard": {"dir": "x"}, "mlflow": {"artifacts": "yes"}, "tensorbord": {}}
    with pytest.raises(ConfigError) as error:
        Loggers(small_sweep(loggers=loggers), store)
    first, second, third = str(error.value).splitlines()
    assert first.startswith("loggers.tensorboard: unknown key 'dir'.")
    assert second.startswith("loggers.mlflow.artifacts: `artifacts` must be a valid boolean, but got artifacts='yes'.")
    assert third.startswith("loggers: logger must be one of [") and "Did you mean 'tensorboard'?" in third
