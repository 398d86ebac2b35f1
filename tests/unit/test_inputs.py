"""Tables that users bring: right results, or one message."""

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_results import metrics_at, realistic_records, record_of, write_sweep

from analysis import common_window, hypervolume, interpolate_at_l0, pareto_front, write_table
from analysis.report.findings import warning_lines
from analysis.report.summary import frontier_lines
from analysis.table import as_loaded, load_table, numbers, over_seeds
from sae_core.errors import ConfigError


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    return load_table(write_sweep(tmp_path_factory.mktemp("results") / "demo", realistic_records(seeds=(0, 1))))


def fronts(table: pd.DataFrame) -> list[bool]:
    return pareto_front(table, by="architecture", direction="min").tolist()


@pytest.mark.slow
def test_an_index_that_repeats(table: pd.DataFrame) -> None:
    repeated = table.set_axis([0] * len(table))
    assert fronts(repeated) == fronts(table)
    assert pareto_front(repeated).index.tolist() == [0] * len(table)
    assert common_window(repeated) == common_window(table)
    pd.testing.assert_frame_equal(interpolate_at_l0(repeated, [16]), interpolate_at_l0(table, [16]))
    assert frontier_lines(repeated) == frontier_lines(table)
    assert warning_lines(repeated) == warning_lines(table)


def test_two_tables_one_below_the_other_share_their_fronts(table: pd.DataFrame) -> None:
    half = len(table) // 2
    both = pd.concat([table.iloc[half:], table.iloc[:half]])
    assert fronts(both) == fronts(table)[half:] + fronts(table)[:half]


def test_filtered_and_sorted_tables(table: pd.DataFrame) -> None:
    turned = table.iloc[::-1]
    assert fronts(turned) == fronts(table)[::-1]
    pd.testing.assert_frame_equal(interpolate_at_l0(turned, [16]), interpolate_at_l0(table, [16]))


def test_a_table_from_a_csv_file(table: pd.DataFrame) -> None:
    read = pd.read_csv(io.StringIO(table.to_csv(index=False)))
    assert fronts(read) == fronts(table)
    assert hypervolume(read, direction="min") == pytest.approx(hypervolume(table), rel=1e-12)
    as_text = pd.read_csv(io.StringIO(table.to_csv(index=False)), dtype=str)
    assert fronts(as_text) == fronts(table)
    assert interpolate_at_l0(as_text, [16], direction="min").to_numpy() == pytest.approx(interpolate_at_l0(table, [16]).to_numpy())


def test_infinite_values_are_left_out_as_missing_ones_are(table: pd.DataFrame) -> None:
    best = table.index[table["fvu"] == table["fvu"].min()][0]
    for value in (np.nan, np.inf, -np.inf):
        changed = table.assign(fvu=table["fvu"].where(table.index != best, value))
        others = fronts(table[table.index != best])
        assert fronts(changed) == [*others[:best], False, *others[best:]]
        assert hypervolume(changed) == hypervolume(table[table.index != best])


def test_nullable_and_categorical_columns(table: pd.DataFrame) -> None:
    changed = table.assign(fvu=table["fvu"].astype("Float64"), architecture=table["architecture"].astype("category"))
    assert fronts(changed) == fronts(table)
    assert numbers(pd.DataFrame({"k": pd.Series([1, None], dtype="Int64")}), "k")[0] == 1


def test_empty_tables(table: pd.DataFrame) -> None:
    empty = table.iloc[:0]
    assert pareto_front(empty, by="architecture").tolist() == []
    assert common_window(empty) is None
    assert interpolate_at_l0(empty, [16]).shape == (0, 1)
    assert over_seeds(empty).empty
    assert frontier_lines(empty) == ["No run has finished, so there is no frontier yet."]
    assert warning_lines(empty) == ["No warnings."]
    with pytest.raises(ConfigError, match="at least one finished run with l0 and fvu is needed, but got 0 rows without"):
        hypervolume(empty)


@pytest.mark.slow
def test_inputs_are_not_changed(table: pd.DataFrame) -> None:
    before = table.copy()
    pareto_front(table, by="architecture")
    hypervolume(table)
    interpolate_at_l0(table, [16])
    frontier_lines(table)
    warning_lines(table)
    pd.testing.assert_frame_equal(table, before)


@pytest.mark.parametrize("read", [pareto_front, hypervolume, common_window, lambda table: interpolate_at_l0(table, [16])])
class TestWhatNoTableCanBe:
    """One message from every public function."""

    def test_no_table(self, read) -> None:
        with pytest.raises(ConfigError, match="a table must be a pandas DataFrame, but got dict"):
            read({"l0": [1.0]})

    def test_a_missing_column(self, read, table: pd.DataFrame) -> None:
        with pytest.raises(ConfigError, match=r"a column of the table must be one of .* but got 'l0'\. Did you mean"):
            read(table.drop(columns="l0"))

    def test_a_column_twice(self, read, table: pd.DataFrame) -> None:
        with pytest.raises(ConfigError, match="each column once, but got 'fvu' several times"):
            read(pd.concat([table, table[["fvu"]]], axis="columns"))

    def test_text_in_place_of_numbers(self, read, table: pd.DataFrame) -> None:
        with pytest.raises(ConfigError, match=r"column 'l0' must hold numbers, but it holds something else: .*many"):
            read(table.assign(l0=table["l0"].astype(object).where(table.index > 0, "many")))

    def test_dates(self, read, table: pd.DataFrame) -> None:
        with pytest.raises(ConfigError, match=r"column 'l0' must hold numbers, but it holds something else"):
            read(table.assign(l0=pd.Timestamp("2026-01-01")))


def test_groups_must_be_columns_of_names(table: pd.DataFrame) -> None:
    with pytest.raises(ConfigError, match=r"must be one of .* but got 'architecure'"):
        pareto_front(table, by="architecure")
    for by in ([], 3, "lists"):
        with pytest.raises(ConfigError, match=rf"`by` must name columns of names or numbers, but got {by!r}".replace("[", r"\[")):
            pareto_front(table.assign(lists=[[1]] * len(table)), by=by)  # type: ignore[arg-type]


def test_values_that_are_asked_for_must_be_numbers(table: pd.DataFrame) -> None:
    for l0s in ([0], [-1.0], [np.nan], ["many"], None):
        with pytest.raises(ConfigError, match="L0s must be finite numbers above 0, but got"):
            interpolate_at_l0(table, l0s)  # type: ignore[arg-type]
    for window in ((8, 8), (0, 8), (8, np.inf), ("a", "b"), None):
        with pytest.raises(ConfigError, match="`window` must satisfy 0 < low < high, but got"):
            hypervolume(table, window=window)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="`reference` must be a finite number, but got nan"):
        hypervolume(table, reference=float("nan"))


def test_summaries_need_the_columns_of_load_table(table: pd.DataFrame) -> None:
    for read in (frontier_lines, warning_lines, as_loaded):
        with pytest.raises(ConfigError, match=r"must be one of .* but got 'comparison_hash'"):
            read(table.drop(columns="comparison_hash"))
        with pytest.raises(ConfigError, match="each column once, but got 'error' several times"):
            read(pd.concat([table, table[["error"]]], axis="columns"))
    with pytest.raises(ConfigError, match="but got 'setting_hash'"):
        over_seeds(table.drop(columns="setting_hash"))


def test_a_table_that_cannot_be_written(table: pd.DataFrame, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"in a directory that can be written to, but got '.*file': .*File exists"):
        write_table(table, tmp_path / "file")
    twice = pd.concat([table, table[["fvu"]]], axis="columns")
    with pytest.raises(ConfigError, match="each column once, but got 'fvu'"):
        write_table(twice, tmp_path / "twice")
    with pytest.raises(ConfigError, match=r"CSV and Parquet can hold, .* but got '.*odd'"):
        write_table(table.assign(odd=[1, "a"] * (len(table) // 2)), tmp_path / "odd")
    with pytest.raises(ConfigError, match="a table must be a pandas DataFrame, but got NoneType"):
        write_table(None, tmp_path)  # type: ignore[arg-type]


def test_a_run_without_a_metric_is_on_no_front(tmp_path: Path) -> None:
    without = {**metrics_at(4, 0.1, 0.1), "fvu": None}
    table = load_table(write_sweep(tmp_path / "demo", [record_of("topk", 4, without), record_of("topk", 8, metrics_at(8, 0.2, 0.1))]))
    assert pareto_front(table).tolist() == [False, True]
