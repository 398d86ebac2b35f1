"""Snapshots and forms from a definition to the report, in this process."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
from inline import launch
from small_sweep import results_of, small_sweep, times_written

from analysis import load_table
from sae_core.activations.stream import Stream
from sae_core.records import RunRecord
from sweeps.planning.plan import plan
from sweeps.planning.variants import n_variants
from sweeps.storage.mirror import Mirror
from sweeps.storage.store import Store
from sweeps.storage.verify import verify

CHANGES = {
    "architectures": {"topk": {"k": 4}, "batchtopk": {"k": 4}, "hierarchical_topk": {"k": 4}},
    "snapshots": ["10%", 0.6, "log 2"],
}
"""Snapshots at steps 1, 8 (which is 10 %, too) and 47 of 78; the forms with k 1 and 2."""


@pytest.fixture(autouse=True)
def _without_report(monkeypatch):
    monkeypatch.setattr("analysis.report.write_report", lambda *_: None)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    results = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("analysis.report.write_report", lambda *_: None)
        assert launch(small_sweep(**CHANGES), results=results).finished == 3
    return results


def variants(results: Path) -> dict[str, tuple[bytes, ...]]:
    """To the bit: weights, what was measured, and sums per document."""
    names = ("sae/sae_weights.safetensors", "documents.parquet", "latents.safetensors")
    folders = sorted((results / "small" / "runs").glob("*/variants/*"))
    return {
        f"{folder.parents[1].name}@{folder.name}": (
            *((folder / name).read_bytes() for name in names),
            repr(RunRecord.read(folder / "record.json").metrics).encode(),
        )
        for folder in folders
    }


def test_all_are_measured_beside_their_runs(finished):
    table = load_table(finished / "small")
    assert table["status"].value_counts().to_dict() == {"snapshot": 9, "finished": 3, "form": 2}
    assert set(table.loc[table["status"] == "snapshot", "train_tokens"]) == {256, 8 * 256, 47 * 256}
    assert list(table.loc[table["status"] == "form", "l0"].round(6)) == [1.0, 2.0]
    assert pd.read_csv(finished / "small" / "table.csv")["variant_of"].notna().sum() == 11
    assert not verify(finished).files
    sweep = small_sweep(**CHANGES)
    assert sum(n_variants(sweep, run) for run in sweep.runs()) == 11
    for folder in (finished / "small" / "runs").glob("*/variants/*"):
        assert {path.name for path in folder.iterdir()} == {"record.json", "documents.parquet", "latents.safetensors", "sae"}


def test_the_last_form_is_the_run_and_snapshots_change_nothing(finished, tmp_path):
    assert launch(small_sweep(**{**CHANGES, "snapshots": []}), results=tmp_path).finished == 3
    assert results_of(tmp_path / "small") == results_of(finished / "small")


def test_a_relaunch_does_nothing(finished, tmp_path):
    results = shutil.copytree(finished, tmp_path / "results")
    before = times_written(results / "small" / "runs")
    launch(small_sweep(**CHANGES), results=results)
    assert times_written(results / "small" / "runs") == before


def test_what_is_lost_is_made_again(finished, tmp_path):
    results, expected = shutil.copytree(finished, tmp_path / "results"), variants(finished)
    run_id = next(run_id for run_id in Store(results / "small").records() if run_id.startswith("batchtopk"))
    shutil.rmtree(results / "small" / "runs" / run_id)
    for file in (results / "small" / "runs").glob("topk*/variants/*/latents.safetensors"):
        file.unlink()
    launch(small_sweep(**CHANGES), results=results)
    assert variants(results) == expected


@pytest.fixture
def stops_once(monkeypatch, tmp_path):
    """Called with a number of batches: the next training is interrupted after that many."""

    def stop_after(batches: int) -> None:
        read, marker = Stream.batches, tmp_path / "stopped"

        def stopping(stream, start=0):
            for number, batch in enumerate(read(stream, start)):
                if start + number == batches and not marker.exists():
                    marker.touch()
                    raise KeyboardInterrupt
                yield batch

        monkeypatch.setattr(Stream, "batches", stopping)

    return stop_after


@pytest.mark.parametrize("batches", [5, 47])
def test_interrupted_and_launched_again_is_as_if_never_interrupted(finished, tmp_path, stops_once, batches):
    stops_once(batches)
    assert launch(small_sweep(**CHANGES), results=tmp_path, checkpoint_seconds=0.05).interrupted
    assert launch(small_sweep(**CHANGES), results=tmp_path).finished == 3
    assert variants(tmp_path) == variants(finished)


def test_an_empty_machine_has_the_snapshots_of_the_one_that_its_mirror_is_of(finished, tmp_path, stops_once):
    mirror = str(tmp_path / "mirror")
    stops_once(60)
    assert launch(small_sweep(**CHANGES), results=tmp_path / "first", checkpoint_seconds=0, mirror=mirror).interrupted
    copies = Mirror(mirror, Store(tmp_path / "first" / "small"))
    for job in copies.pending_checkpoints():  # as every ten minutes
        copies.copy(job)
    assert len([*(tmp_path / "mirror").glob("runs/*/variants/*/record.json")]) >= 3
    assert launch(small_sweep(**CHANGES), results=tmp_path / "second", mirror=mirror).finished == 3
    assert variants(tmp_path / "second") == variants(finished)
    third = launch(small_sweep(**CHANGES), results=tmp_path / "third", mirror=mirror)
    assert third.finished == 3 and variants(tmp_path / "third") == variants(finished)


def test_snapshots_asked_for_too_late_are_noted(tmp_path, capsys):
    launch(small_sweep(architectures={"topk": {"k": 4}}), results=tmp_path)
    launch(small_sweep(architectures={"topk": {"k": 4}}, snapshots=["50%"]), results=tmp_path)
    assert "snapshots: 1 run lacks some, trained before they were asked for" in capsys.readouterr().err


def test_a_snapshot_whose_sae_is_damaged_before_it_was_measured_is_left_alone(finished, tmp_path):
    results = shutil.copytree(finished, tmp_path / "results")
    folder = next((results / "small" / "runs").glob("topk*/variants/tokens-256"))
    record = RunRecord.read(folder / "record.json")
    (folder / "record.json").write_text((folder / "record.json").read_text().replace('"finished"', '"trained"', 1))
    (folder / "sae" / "sae_weights.safetensors").write_bytes(b"damaged")
    done = launch(small_sweep(**CHANGES), results=results)
    assert done.finished == 3
    assert record.run_id not in set(load_table(results / "small")["run_id"])


def test_a_plan_counts_them(tmp_path):
    with_them, without = (
        plan(small_sweep(architectures={"topk": {"k": [2, 4]}}, snapshots=snapshots), tmp_path / "results", n_slots=1)
        for snapshots in (["10%", "50%"], [])
    )
    assert with_them.results_bytes == 3 * without.results_bytes
