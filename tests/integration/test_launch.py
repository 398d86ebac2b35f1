"""Whole sweeps in this process, from `launch` to the report. The same through Ray: tests/ray."""

import json
import os
import shutil
import signal

import pandas as pd
import pytest
import torch
from inline import launch
from small_sweep import DIVERGING, result_of, results_of, small_sweep, times_written

from sae_core import provenance
from sae_core.activations.synthetic import SyntheticSource
from sae_core.records import RunRecord
from sae_core.sae.base import SparseAutoencoder
from sae_core.training.loop import Learner
from sweeps.storage.store import Store

# To keep: others read them.
COLUMNS = (
    "run_id architecture status sparsity_parameter sparsity_value seed lr d_in d_sae train_tokens eval_tokens l0 mse fvu "
    "explained_variance cosine reconstruction_bias dead_fraction ce_loss_clean ce_loss_spliced ce_loss_zero_ablated "
    "ce_loss_mean_ablated delta_ce ce_loss_recovered kl train_seconds tokens_per_second"
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Results of a finished sweep. Tests that change them work on a copy: `results`."""
    results = tmp_path_factory.mktemp("finished")
    assert launch(small_sweep(), results=results).finished == 4
    return results


@pytest.fixture
def results(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "results")


@pytest.fixture
def with_report():
    """The report is drawn, which takes a second or two."""


@pytest.fixture(autouse=True)
def _without_report(request, monkeypatch):
    if "with_report" not in request.fixturenames:
        monkeypatch.setattr("analysis.report.write_report", lambda *_: None)


def records(directory):
    return Store(directory / "small").records()


def test_every_run_has_a_record_and_a_row(finished):
    table = pd.read_csv(finished / "small" / "table.csv")
    assert COLUMNS in " ".join(table.columns)
    assert list(pd.read_parquet(finished / "small" / "table.parquet").columns) == list(table.columns)
    assert set(table.run_id) == {run.run_id for run in small_sweep().runs()}
    assert set(table.status) == {"finished"}
    assert set(table.train_tokens) == {78 * 256}
    assert set(table.eval_tokens) == {6_000}
    # No language model, so no cross-entropy; it is empty, not NaN as text or zero.
    assert table.delta_ce.isna().all()
    topk = table[table.architecture == "topk"].sort_values("sparsity_value")
    assert list(topk.l0.round(6)) == [2.0, 4.0]
    assert topk.fvu.iloc[1] < topk.fvu.iloc[0] < 1
    report = finished / "small" / "report"
    assert (report / "report.html").is_file()
    assert (report / "report.md").is_file()


def test_exported_saes_are_what_was_measured(finished):
    for run in small_sweep().runs():
        source = SyntheticSource(run.activations)
        x = source.eval_chunk(finished, 0, torch.zeros(16)).x  # 4,096 of the 6,000 tokens
        sae = SparseAutoencoder.from_pretrained(finished / "small" / "runs" / run.run_id / "sae")
        x_hat = sae(x).detach()
        fvu = float((x - x_hat).pow(2).sum() / (x - x.mean(dim=0)).pow(2).sum())
        assert fvu == pytest.approx(records(finished)[run.run_id].metrics["fvu"], rel=0.05)


def test_a_relaunch_does_nothing(results, progress):
    before = times_written(results / "small" / "runs"), times_written(results / ".activations")
    done = launch(small_sweep(), results=results, progress=progress)
    assert (done.finished, done.failed, done.missing, done.interrupted) == (4, {}, [], False)
    assert (times_written(results / "small" / "runs"), times_written(results / ".activations")) == before
    assert progress.stages == ["report"]
    assert progress.notes[0] == f"train: nothing to do, all 4 runs have their record in {results / 'small'}"


def test_records_alone_are_told_of(results, progress):
    shutil.rmtree(next((results / "small" / "runs").iterdir()) / "sae")  # as in a repository that has reports and no weights
    launch(small_sweep(), results=results, progress=progress)
    assert "1 of them without its SAE: delete their directories under runs/" in progress.notes[0]


def test_a_longer_grid_trains_only_the_new_runs(results, progress):
    before = times_written(results / "small" / "runs")
    longer = small_sweep(architectures={"topk": {"k": [2, 3, 4]}, "standard": {"l1_coefficient": [0.3, 1.0]}})
    assert launch(longer, results=results, progress=progress).finished == 5
    (new,) = [run.run_id for run in longer.runs() if run.sae.architecture == "topk" and run.sae.k == 3]
    assert set(progress.trained) == {new}
    assert {path: written for path, written in times_written(results / "small" / "runs").items() if new not in str(path)} == before
    assert len(pd.read_csv(results / "small" / "table.csv")) == 5


def test_a_shorter_grid_keeps_what_is_there(results):
    assert launch(small_sweep(architectures={"topk": {"k": 2}}), results=results).finished == 1
    assert len(pd.read_csv(results / "small" / "table.csv")) == 4


def test_a_deleted_record_retrains_exactly_that_run(results, progress):
    directory = results / "small"
    before, times = results_of(directory), times_written(directory / "runs")
    lost = small_sweep().runs()[2].run_id
    (directory / "runs" / lost / "record.json").unlink()
    assert launch(small_sweep(), results=results, progress=progress).finished == 4
    assert set(progress.trained) == {lost}
    assert results_of(directory) == before
    after = times_written(directory / "runs")
    assert all(after[path] == written for path, written in times.items() if lost not in str(path))


def test_runs_that_were_trained_are_only_evaluated(results, progress):
    directory = results / "small"
    before = results_of(directory)
    for run_id in list(before)[:2]:
        store = Store(directory)
        record = store.read_record(run_id)
        store.write_record(RunRecord(**{**_fields(record), "status": "trained", "metrics": {}, "metric_specs": [], "eval_tokens": None}))
    assert launch(small_sweep(), results=results, progress=progress).finished == 4
    assert progress.trained == {}
    assert progress.stages == ["harvest", "train", "evaluate", "report"]
    assert results_of(directory) == before


def _fields(record):
    return {name: getattr(record, name) for name in record.__slots__}


def test_a_run_that_diverges_fails_alone(tmp_path, progress, with_report):
    sweep = small_sweep(architectures={"topk": {"k": [2, 4]}, "standard": DIVERGING})
    done = launch(sweep, results=tmp_path)
    assert (done.finished, done.missing) == (2, [])
    ((run_id, reason),) = done.failed.items()
    assert run_id.startswith("standard-")
    assert "DivergedError: gradients must stay finite" in reason
    assert "lr=1e+30)" in reason
    text = (tmp_path / "small" / "runs" / run_id / "record.json").read_text()
    record = json.loads(text, parse_constant=lambda constant: pytest.fail(f"{constant} in a record"))
    assert (record["status"], record["train_tokens"], record["metrics"]) == ("failed", None, {})
    assert not (tmp_path / "small" / "runs" / run_id / "sae").exists()
    assert list(pd.read_csv(tmp_path / "small" / "table.csv").status.sort_values()) == ["failed", "finished", "finished"]
    assert "gradients must stay finite" in (tmp_path / "small" / "report" / "report.md").read_text()
    # It would diverge again: it is not tried again, and stays failed.
    assert launch(sweep, results=tmp_path, progress=progress).failed == done.failed
    assert progress.trained == {}


def test_when_every_run_fails_there_is_a_report_all_the_same(tmp_path, with_report):
    done = launch(small_sweep(architectures={"standard": DIVERGING}), results=tmp_path)
    assert (done.finished, len(done.failed)) == (0, 1)
    assert (tmp_path / "small" / "report" / "report.html").is_file()


def test_other_failures_are_tried_again(results, progress):
    store = Store(results / "small")
    run_id, record = next(iter(store.records().items()))
    before = results_of(results / "small")
    error = {"type": "ActorDiedError", "message": "killed", "traceback": ""}
    store.write_record(RunRecord(**{**_fields(record), "status": "failed", "metrics": {}, "error": error}))
    assert launch(small_sweep(), results=results, progress=progress).finished == 4
    assert set(progress.trained) == {run_id}
    assert results_of(results / "small") == before


@pytest.mark.parametrize("stage", ["harvest", "train", "evaluate"])
def test_interrupted_and_launched_again_is_as_if_never_interrupted(tmp_path, finished, progress, monkeypatch, with_report, stage):
    def interrupt(done, *_, **__):
        if progress.state.stage == stage:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(progress, "advance_to", interrupt)
        done = launch(small_sweep(), results=tmp_path, progress=progress)
    assert done.interrupted
    assert len(done.missing) == 4
    launches = Store(tmp_path / "small").facts()["launches"]
    assert launches[0]["ended_at"] is not None
    assert (tmp_path / "small" / "report" / "report.html").exists() == (stage != "harvest")
    monkeypatch.setattr("analysis.report.write_report", lambda *_: None)
    assert launch(small_sweep(), results=tmp_path).finished == 4
    assert results_of(tmp_path / "small") == results_of(finished / "small")


def test_a_trial_goes_on_from_checkpoints(results, finished, progress, monkeypatch):
    run = small_sweep().runs()[0]
    directory = results / "small" / "runs"
    interrupt_at(60, run, results, monkeypatch)
    (directory / run.run_id / "record.json").unlink()
    steps = count_steps(monkeypatch)
    assert launch(small_sweep(), results=results, progress=progress).finished == 4
    assert steps == list(range(60, 78))
    assert result_of(directory / run.run_id) == result_of(finished / "small" / "runs" / run.run_id)
    assert not (directory / run.run_id / "checkpoint.safetensors").exists()


def interrupt_at(step, run, results, monkeypatch):
    """Leave the checkpoint that a trial killed after `step` steps leaves."""
    from sae_core.activations.stream import Stream
    from sae_core.training.loop import train_group

    def stop(learners):
        if learners[0].step == step:
            raise KeyboardInterrupt

    (cache,) = (results / ".activations").iterdir()
    stream = Stream(cache, batch_size=run.train.batch_size, data_seed=run.data_seed)
    with pytest.raises(KeyboardInterrupt):
        train_group([run], stream, directory=results / "small" / "runs", checkpoint_seconds=0, on_step=stop)


def count_steps(monkeypatch):
    """A list that grows by the number of each training step taken."""
    steps, train_step = [], Learner.train_step

    def counted(self, *batch):
        steps.append(self.step)
        train_step(self, *batch)

    monkeypatch.setattr(Learner, "train_step", counted)
    return steps


def test_what_a_killed_launch_leaves_half_written_does_not_matter(results, finished, progress):
    run_id = small_sweep().runs()[0].run_id
    directory = results / "small" / "runs" / run_id
    (directory / "record.json").unlink()
    (directory / ".record.json.x1").write_text('{"run_id": ')
    (directory / ".checkpoint.17.tmp").write_bytes(b"PK")
    (directory / "sae" / "sae_weights.safetensors").write_bytes(b"\0")
    (results / "small" / ".ray-x2").mkdir()
    (cache,) = (results / ".activations").iterdir()
    (cache / ".train-00000.safetensors.x3").write_bytes(b"\0")
    (cache / "train-00001.json").unlink()
    assert launch(small_sweep(), results=results, progress=progress).finished == 4
    assert set(progress.trained) == {run_id}
    assert results_of(results / "small") == results_of(finished / "small")


def test_an_axis_over_activations(tmp_path):
    activations = {"source": "synthetic", "d_in": [8, 16], "n_features": 32, "n_active": 3.0, "train_tokens": 5_000, "eval_tokens": 1_000}
    done = launch(small_sweep(activations=activations, architectures={"topk": {"k": 2}}), results=tmp_path)
    assert done.finished == 2
    table = pd.read_csv(tmp_path / "small" / "table.csv")
    assert sorted(table.d_in) == [8, 16]
    assert table.activations_hash.nunique() == 2
    assert len(list((tmp_path / ".activations").iterdir())) == 2


def test_sweeps_share_activations(results, progress, monkeypatch):
    monkeypatch.setattr(SyntheticSource, "shard", lambda *_: pytest.fail("harvested again"))
    done = launch(small_sweep(name="other", architectures={"topk": {"k": 5}}), results=results, progress=progress)
    assert done.finished == 1


def test_a_run_does_not_depend_on_its_group(tmp_path, finished, monkeypatch):
    monkeypatch.setattr("sweeps.execution.work.group_runs", lambda runs, **_: [runs])
    assert launch(small_sweep(), results=tmp_path).finished == 4
    assert results_of(tmp_path / "small") == results_of(finished / "small")


def test_checkpoints_are_written_as_often_as_asked(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr("sae_core.training.loop.write_checkpoint", lambda path, tensors, facts: written.append(facts["step"]))
    sweep = small_sweep(architectures={"topk": {"k": 2}})
    assert launch(sweep, results=tmp_path, checkpoint_seconds=0).finished == 1
    assert written == list(range(1, 79))


@pytest.mark.parametrize("name", ["train-00000.safetensors", "train-00001.json", "manifest.json"])
def test_a_damaged_file_of_the_cache_is_made_again_and_changes_no_number(results, progress, name):
    """One changed bit; every run is trained anew."""
    before = results_of(results / "small")
    (cache,) = (results / ".activations").iterdir()
    content = bytearray((cache / name).read_bytes())
    content[-40] ^= 1
    (cache / name).write_bytes(content)
    shutil.rmtree(results / "small")
    assert launch(small_sweep(), results=results, progress=progress).finished == 4
    assert results_of(results / "small") == before
    assert f"activations: {name} in {cache} was damaged and will be created again" in progress.notes


def test_a_damaged_checkpoint_costs_its_run_alone(results, progress, caplog):
    store = Store(results / "small")
    run_id = next(iter(records(results)))
    expected = results_of(results / "small")
    store.paths.run(run_id).record.unlink()
    store.paths.run(run_id).checkpoint.write_bytes(b"PK\x03\x04broken")
    assert launch(small_sweep(), results=results, progress=progress).finished == 4
    assert results_of(results / "small") == expected
    assert f"it is damaged, so run {run_id} starts again from its first step" in caplog.text


@pytest.mark.parametrize("name", ["sae_weights.safetensors", "cfg.json"])
def test_a_damaged_sae_that_was_not_evaluated_costs_its_run_alone(results, progress, name):
    store, expected = Store(results / "small"), results_of(results / "small")
    run_id, record = next(iter(records(results).items()))
    store.write_record(RunRecord(**{**_fields(record), "status": "trained", "metrics": {}, "metric_specs": [], "eval_tokens": None}))
    file = store.paths.run(run_id).sae / name
    content = bytearray(file.read_bytes())
    content[-40] ^= 1
    file.write_bytes(content)
    assert launch(small_sweep(), results=results, progress=progress).finished == 4
    assert set(progress.trained) == {run_id}
    assert results_of(results / "small") == expected
    assert f"train: the SAE of {run_id} was damaged before it was evaluated, so it is trained again" in progress.notes


def test_records_say_where_and_of_what_they_were_made(finished):
    for record in records(finished).values():
        assert record.versions == record.eval_versions == provenance.node()["versions"]
        assert record.hardware == record.eval_hardware == provenance.hardware()
        assert record.launch == 1
        assert record.activation_facts == {"outlier_rows": 0, "outlier_share": 0.0}


def test_what_a_killed_launch_left_is_removed(results):
    run = next((results / "small" / "runs").iterdir())
    (cache,) = (results / ".activations").iterdir()
    left = [cache / ".train-00001.safetensors.x1y2z3w4", run / ".checkpoint.safetensors.x1y2z3w4", run / "sae" / ".cfg.json.x1y2z3w4"]
    left += [results / "small" / name for name in (".ray-abc", ".table.parquet.x1y2z3w4", ".sweep.json.tmp")]
    for file in left:
        file.touch()
    (run / "record.json").unlink()
    assert launch(small_sweep(), results=results).finished == 4
    assert [file for file in left if file.exists()] == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupt_in_the_report_waits_for_it(results, monkeypatch, number):
    written = []

    def write_report(*_):
        os.kill(os.getpid(), number)
        written.append((results / "small" / "table.csv").is_file())

    monkeypatch.setattr("analysis.report.write_report", write_report)
    (results / "small" / "table.csv").unlink()
    done = launch(small_sweep(), results=results)
    assert (done.interrupted, done.finished, written) == (True, 4, [True])
