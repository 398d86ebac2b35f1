"""What a launch leaves beside the records: sums per document, and what latents do."""

import dataclasses
import shutil
from pathlib import Path

import pandas as pd
import pytest
from inline import launch
from safetensors.numpy import load_file
from small_sweep import results_of, small_sweep, times_written

from analysis.documents import read_documents
from analysis.table import load_table
from sae_core.metrics import METRICS
from sae_core.metrics.metric import RatioOfSums
from sweeps.storage.store import Store

RATIOS = [name for name, metric in METRICS.items() if issubclass(metric, RatioOfSums)]


@pytest.fixture(autouse=True)
def _without_report(monkeypatch):
    monkeypatch.setattr("analysis.report.write_report", lambda *_: None)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("analysis.report.write_report", lambda *_: None)
        results = tmp_path_factory.mktemp("finished")
        launch(small_sweep(), results=results)
    return results


@pytest.fixture
def results(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "results")


def test_documents_add_up_to_the_table(finished):
    table = load_table(finished / "small")
    found = read_documents(table, RATIOS)
    assert found.run_ids == tuple(table["run_id"])
    assert set(found.metrics) == {name for name in RATIOS if name in table and table[name].notna().all()} >= {"fvu", "l0", "true_l0"}
    assert found.documents.tolist() == list(range(47)) and found.n_tokens.sum() == 6_000  # blocks of 128 in chunks of 4,096
    for name in found.metrics:
        assert found.values(name) == pytest.approx(table[name].to_numpy(), rel=1e-9)


def test_latents_and_their_densities(finished):
    for run_id, record in Store(finished / "small").records().items():
        latents = load_file(finished / "small" / "runs" / run_id / "latents.safetensors")
        assert {name: (values.dtype.name, values.shape) for name, values in latents.items()} == {
            "times_active": ("int32", (48,)),
            "explained": ("float32", (48,)),
        }
        assert latents["times_active"].sum() == pytest.approx(6_000 * record.metrics["l0"])
        assert record.latent_densities[0] == round(48 * record.metrics["dead_fraction"])
        assert sum(record.latent_densities) == 48


@pytest.mark.parametrize("damage", [lambda file: file.write_bytes(file.read_bytes()[:-3]), Path.unlink], ids=["cut off", "missing"])
@pytest.mark.parametrize("name", ["documents.parquet", "latents.safetensors"])
def test_what_is_damaged_or_missing_is_measured_again(results, caplog, name, damage):
    directory = results / "small"
    before, first = results_of(directory), next(iter(results_of(directory)))
    damage(directory / "runs" / first / name)
    times = times_written(directory / "runs")
    assert launch(small_sweep(), results=results).finished == 4
    assert results_of(directory) == before
    written = {path for path, time in times_written(directory / "runs").items() if times.get(path) != time}
    assert {path.name for path in written} == {"documents.parquet", "latents.safetensors", "sparsity.safetensors", "record.json"}
    assert {path.relative_to(directory / "runs").parts[0] for path in written} == {first}
    assert f"run {first} is measured again: documents.parquet or latents.safetensors is missing or damaged" in caplog.text


def test_results_of_an_earlier_version_are_left_as_they_are(results):
    store = Store(results / "small")
    for run_id, record in store.records().items():
        store.write_record(dataclasses.replace(record, documents_checksum=None, latent_densities=None))
        store.paths.run(run_id).documents.unlink()
        store.paths.run(run_id).latents.unlink()
    before = times_written(results / "small" / "runs")
    assert launch(small_sweep(), results=results).finished == 4
    assert times_written(results / "small" / "runs") == before
    assert read_documents(load_table(results / "small")) is None
    assert not pd.read_csv(results / "small" / "table.csv")["fvu"].isna().any()
