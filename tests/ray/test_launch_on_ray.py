"""A small sweep through real Ray: workers, trials and processes of their own. What needs no Ray: tests/integration."""

import json
from contextlib import suppress

import pandas as pd
import psutil
from long_sweep import sweep_of
from small_sweep import left_in, result_of, results_of, times_written

from sweeps.execution.launcher import launch
from sweeps.execution.workers import WorkerPool


def test_a_sweep_runs_end_to_end(undisturbed):
    """Four SAEs are trained, evaluated and reported; the fifth run diverges, alone."""
    assert (undisturbed.finished, undisturbed.missing, undisturbed.interrupted) == (4, [], False)
    ((run_id, reason),) = undisturbed.failed.items()
    assert run_id.startswith("gated-")
    assert "gradients must stay finite" in reason
    table = pd.read_csv(undisturbed.directory / "table.csv")
    assert sorted(table.status) == ["failed"] + ["finished"] * 4
    assert table[table.status == "finished"].fvu.between(0, 1).all()
    assert (undisturbed.directory / "report" / "report.html").is_file()
    assert len(list(undisturbed.directory.glob("runs/*/sae/sae_weights.safetensors"))) == 4
    facts = json.loads((undisturbed.directory / "sweep.json").read_text())
    assert [stage["stage"] for stage in facts["stages"]] == ["harvest", "train", "evaluate"]


def test_a_launch_in_this_process_gives_the_same(undisturbed, tmp_path, monkeypatch):
    monkeypatch.setattr("analysis.report.write_report", lambda *_: None)
    done = launch(sweep_of("undisturbed"), results=tmp_path, executor="inline")
    assert results_of(done.directory) == results_of(undisturbed.directory)


def test_ray_leaves_nothing_behind(undisturbed):
    assert left_in(undisturbed.directory) == {"report"}
    for run in (undisturbed.directory / "runs").iterdir():
        assert {path.name for path in run.iterdir()} <= {
            "config.json",
            "record.json",
            "history.jsonl",
            "documents.parquet",
            "latents.safetensors",
            "sae",
        }


def test_a_deleted_record_and_a_longer_grid(undisturbed, results, monkeypatch):
    """Exactly these runs are trained, and the deleted one is the same as before, to the last bit."""
    runs = undisturbed.directory / "runs"
    (lost,) = [run for run in runs.glob("topk-*") if json.loads((run / "record.json").read_text())["sparsity_value"] == 2]
    before, result = times_written(runs), result_of(lost)
    (lost / "record.json").unlink()
    monkeypatch.setattr("analysis.report.write_report", lambda *_: None)
    longer = sweep_of("undisturbed", architectures={**sweep_of("undisturbed").architectures, "batchtopk": {"k": 4}})
    done = launch(longer, results=results)
    assert (done.finished, len(done.failed), done.missing) == (5, 1, [])
    assert result_of(lost) == result
    unchanged = {path: written for path, written in before.items() if lost not in path.parents}
    after = times_written(runs)
    assert {path: after[path] for path in unchanged} == unchanged
    assert [path.parent.name for path in runs.glob("batchtopk-*/record.json")] == [path.name for path in runs.glob("batchtopk-*")]
    assert len(results_of(undisturbed.directory)) == 6


def test_a_worker_that_dies_is_started_again(cluster, undisturbed, results, monkeypatch):
    """With its SAEs, and its job is done anew."""
    run = sweep_of("undisturbed").runs()[0]
    (cache,) = (results / ".activations").iterdir()
    saes = {run.run_id: str(undisturbed.directory / "runs" / run.run_id / "sae")}
    answers = []

    def kill_after_the_first(result):
        answers.append(result[0])
        if len(answers) == 1:
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    if "_RayWorker" in " ".join(process.cmdline()):
                        process.kill()

    monkeypatch.setattr(cluster, "n_slots", 1)
    pool = WorkerPool(cluster, "fast")
    pool.map("evaluate", [0, 0], kill_after_the_first, [(run.activations.model_dump(mode="json"), str(cache))], [saes])
    pool.close()
    (first,), (second,) = answers
    assert first.by_sae.keys() == second.by_sae.keys() == saes.keys()
    assert str(first) == str(second)
