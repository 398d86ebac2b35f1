"""Sums per document, from file to numbers."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from fake_results import documents_of, failed, metrics_at, realistic_records, record_of, write_run, write_sweep

from analysis.documents import DocumentSums, read_documents
from analysis.table import load_table, write_table
from sae_core.documents import Ratio, StoredDocuments, read_documents_file, write_documents
from sae_core.errors import DamagedFileError, UnknownNameError

TOPK = record_of("topk", 8, metrics_at(8, 0.15, 0.2))
BATCHTOPK = record_of("batchtopk", 8, metrics_at(8, 0.14, 0.17))


def sums_of(directory: Path) -> DocumentSums:
    found = read_documents(load_table(directory))
    assert found is not None
    return found


def test_documents_add_up_to_the_metrics_of_the_records(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "demo", [*realistic_records(), failed("topk", 128)], n_documents=40)
    table = load_table(sweep)
    finished = table[table["status"] == "finished"]
    found = read_documents(table, ("l0", "mse", "fvu", "explained_variance", "delta_ce", "ce_loss_recovered", "kl"))
    assert found is not None and found.run_ids == tuple(finished["run_id"])
    for metric in found.metrics:
        assert found.values(metric) == pytest.approx(finished[metric].to_numpy(), rel=1e-9, abs=1e-12)
        above, below = found.parts(metric)
        assert above.shape == below.shape == (24, 40)


def test_drawn_documents_by_hand(tmp_path: Path) -> None:
    stored = StoredDocuments(
        np.array([0, 3]),
        {"error": np.array([1.0, 4.0]), "variance": np.array([4.0, 8.0]), "n_tokens": np.array([2.0, 3.0])},
        {"fvu": Ratio({"error": 1}, {"variance": 1})},
    )
    write_run(tmp_path / "demo", TOPK, documents=stored)
    found = sums_of(tmp_path / "demo")
    assert found.documents.tolist() == [0, 3] and found.n_tokens.tolist() == [2, 3] and found.metrics == ("fvu",)
    draws = found.values("fvu", np.array([[1.0, 1.0], [2.0, 0.0], [1.0, 3.0], [0.0, 0.0]]))
    assert draws.ravel().tolist() == pytest.approx([5 / 12, 1 / 4, 13 / 28, np.nan], nan_ok=True)
    with pytest.raises(UnknownNameError, match="got 'kl'"):
        found.values("kl")


def test_some_of_the_runs(tmp_path: Path) -> None:
    found = sums_of(write_sweep(tmp_path / "demo", [TOPK, BATCHTOPK], n_documents=5))
    one = found.of(["topk-8-0"])
    assert one.run_ids == ("topk-8-0",)
    assert one.values("fvu").tolist() == pytest.approx([0.15])


def test_what_is_stored_is_read_back_and_two_writings_are_equal(tmp_path: Path) -> None:
    stored = documents_of(TOPK, 7)
    stored.sums["kl"][2] = np.inf  # type: ignore[index]
    write_run(tmp_path / "a", TOPK, documents=stored)
    write_run(tmp_path / "b", TOPK, documents=stored)
    files = [tmp_path / name / "runs" / TOPK.run_id / "documents.parquet" for name in ("a", "b")]
    assert files[0].read_bytes() == files[1].read_bytes()
    read = read_documents_file(files[0])
    assert read.documents.tolist() == stored.documents.tolist() and read.ratios == stored.ratios
    assert np.isnan(read.sums["kl"][2])
    assert all(np.array_equal(read.sums[name], values) for name, values in stored.sums.items() if name != "kl")
    assert read_documents_file(files[0], ["fvu"]).sums.keys() == {"n_tokens", "error", "variance"}


def test_a_metric_that_a_run_lacks_is_left_out(tmp_path: Path) -> None:
    without = {name: value for name, value in BATCHTOPK.metrics.items() if name != "delta_ce"}
    records = [TOPK, dataclasses.replace(BATCHTOPK, metrics=without)]
    assert sums_of(write_sweep(tmp_path / "demo", records, n_documents=5)).metrics == ("l0", "fvu")


def test_runs_that_cannot_be_compared_by_document(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sweep = write_sweep(tmp_path / "demo", [TOPK], n_documents=5)
    assert read_documents(load_table(sweep)) is not None
    write_run(sweep, BATCHTOPK)  # a result of an earlier version
    assert read_documents(load_table(sweep)) is None
    write_run(sweep, BATCHTOPK, documents=documents_of(BATCHTOPK, 6))  # another text
    assert read_documents(load_table(sweep)) is None
    assert not caplog.messages
    write_run(sweep, BATCHTOPK, documents=documents_of(BATCHTOPK, 5))
    file = sweep / "runs" / BATCHTOPK.run_id / "documents.parquet"
    content = bytearray(file.read_bytes())
    content[50] ^= 1
    file.write_bytes(content)
    assert read_documents(load_table(sweep)) is None
    assert read_documents(load_table(sweep)) is None
    (message,) = caplog.messages  # once
    assert "documents.parquet" in message and "checksum does not match" in message and "measures the run again" in message


def test_a_file_that_its_record_does_not_know_is_not_read(tmp_path: Path) -> None:
    write_run(tmp_path / "demo", TOPK)
    file = tmp_path / "demo" / "runs" / TOPK.run_id / "documents.parquet"
    write_documents(file, documents_of(TOPK, 3))
    with pytest.raises(FileNotFoundError, match="says of no such file"):
        read_documents_file(file)


def test_a_file_that_is_no_parquet_is_damaged(tmp_path: Path) -> None:
    write_run(tmp_path / "demo", TOPK, documents=documents_of(TOPK, 3))
    file = tmp_path / "demo" / "runs" / TOPK.run_id / "documents.parquet"
    file.write_text("{}")
    with pytest.raises(DamagedFileError, match=r"documents\.parquet"):
        read_documents_file(file)


def test_tables_on_disk_hold_no_paths_of_this_machine(tmp_path: Path) -> None:
    import pandas as pd

    table = load_table(write_sweep(tmp_path / "demo", [TOPK], n_documents=5))
    assert table.attrs["directories"] == {TOPK.run_id: str(tmp_path / "demo" / "runs" / TOPK.run_id)}
    write_table(table, tmp_path)
    read = pd.read_parquet(tmp_path / "table.parquet")
    assert "directories" not in read.attrs and "metrics" in read.attrs and "directories" in table.attrs
    assert read_documents(read) is None
