"""What `sae-sweep compare` names: sweeps, architectures of them, tables."""

import dataclasses
import re
from pathlib import Path

import pytest
from fake_results import realistic_records, write_sweep
from typer.testing import CliRunner

from analysis.estimates import Pair
from analysis.sources import Source, compare_sources
from analysis.table import load_table, write_table
from sae_core.errors import ConfigError
from sweeps.cli import app

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def sweeps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sweeps of two architectures, and the table of one."""
    directory = tmp_path_factory.mktemp("sources")
    records = [record for record in realistic_records((0, 1, 2)) if record.architecture in ("topk", "batchtopk")]
    for name in ("one", "two"):
        write_sweep(directory / name, records, n_documents=12)
    write_table(load_table(directory / "one"), directory)
    return directory


def pairs(directory: Path, *texts: str, **options: object) -> list[tuple[str, str]]:
    compared = compare_sources([str(directory / text) for text in texts], **{"columns": {}, **options})  # type: ignore[arg-type]
    return [(pair.a, pair.b) for pair in compared.pairs]


def test_what_is_compared(sweeps: Path) -> None:
    assert pairs(sweeps, "one") == [("batchtopk", "topk")]
    assert pairs(sweeps, "one:topk", "one:batchtopk") == [("batchtopk", "topk")]
    of_each = [("TopK of one", "TopK of two"), ("BatchTopK of one", "BatchTopK of two")]
    assert pairs(sweeps, "one", "two") == of_each
    assert pairs(sweeps, "one:topk", "two:batchtopk") == [("BatchTopK of two", "TopK of one")]
    assert pairs(sweeps, "one:topk", "two") == of_each[:1]


def test_a_sweep_against_itself_is_equivalent(sweeps: Path) -> None:
    compared = compare_sources([str(sweeps / "one:topk"), str(sweeps / "two:topk")], columns={})
    (pair,) = compared.pairs
    assert pair.gap is not None and (pair.gap.value, pair.gap.n_documents, pair.verdict) == (0, 12, "equivalent")


def test_tables_ours_and_others(sweeps: Path) -> None:
    for name in ("table.csv", "table.parquet"):
        assert pairs(sweeps, f"{name}:topk", f"{name}:batchtopk") == [("batchtopk", "topk")]
    theirs = load_table(sweeps / "one")[["architecture", "l0", "fvu", "seed", "sparsity_value"]]
    theirs.rename(columns={"architecture": "trainer", "l0": "L0", "fvu": "nmse", "sparsity_value": "k"}).to_csv(
        sweeps / "theirs.csv", index=False
    )
    columns = {"architecture": "trainer", "l0": "L0", "fvu": "nmse", "k": "k", "seed": "seed"}
    assert pairs(sweeps, "theirs.csv", columns=columns) == [("batchtopk", "topk")]
    with pytest.raises(ConfigError, match=r"columns of a table that is not ours must be mapped, but got .*nmse"):
        pairs(sweeps, "theirs.csv")


def test_names_with_a_colon_that_exist_are_paths(tmp_path: Path) -> None:
    (tmp_path / "a:b").mkdir()
    assert Source.of(str(tmp_path / "a:b")).architecture is None
    assert Source.of("results/demo:topk") == Source(Path("results/demo"), "topk")


def test_a_refusal_says_what_differs_and_nothing_else(sweeps: Path) -> None:
    records = [record for record in realistic_records((0, 1)) if record.architecture == "topk"]
    write_sweep(sweeps / "other", [dataclasses.replace(record, eval_hash="elsewhere") for record in records])
    texts = f"{records[0].eval_hash} and elsewhere"
    refusal = f"got ['TopK of one', 'TopK of other']. Runs that differ in the held-out text are not compared with each other: {texts}."
    with pytest.raises(ConfigError, match=f"{re.escape(refusal)}$"):
        pairs(sweeps, "one:topk", "other:topk", l0s=[4000.0])
    wide = [dataclasses.replace(record, config={**record.config, "sae": {**record.config["sae"], "d_sae": 64}}) for record in records]
    write_sweep(sweeps / "wide", wide)
    (pair,) = pairs(sweeps, "one:topk", "wide:topk")  # of one width each: widths may be compared
    assert set(pair) == {"TopK of one", "TopK of wide"}


def test_hashes_of_texts_are_named_by_their_first_digits(sweeps: Path) -> None:
    records = [record for record in realistic_records((0, 1)) if record.architecture == "topk"]
    for name, digit in (("of-a", "a"), ("of-b", "b")):
        write_sweep(sweeps / name, [dataclasses.replace(record, eval_hash=64 * digit) for record in records])
    with pytest.raises(ConfigError, match=r"with each other: a{12} and b{12}\.$"):
        pairs(sweeps, "of-a:topk", "of-b:topk")


def test_an_l0_that_no_two_fronts_reach_is_refused(sweeps: Path) -> None:
    with pytest.raises(ConfigError, match=r"but got 900 and 5000, and fronts overlap from L0 \d+ to \d+\. Ask for an L0 between"):
        pairs(sweeps, "one", l0s=[900, 5000])
    assert pairs(sweeps, "one", l0s=[16, 900]) == [("batchtopk", "topk")]


def test_columns_are_mapped_of_tables_that_are_not_ours(sweeps: Path) -> None:
    with pytest.raises(ConfigError, match="but got l0=L0 for sweeps of ours"):
        pairs(sweeps, "one", columns={"l0": "L0"})
    found = CliRunner().invoke(app, ["compare", str(sweeps / "one"), "--columns", "l0=L0", "--columns", "l0=nmse"])
    assert found.exit_code == 2 and "must name each of our columns once, but got l0=L0 and l0=nmse" in found.output


def test_a_table_without_rows_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.csv").write_text("L0,nmse\n")
    for columns in ({}, {"l0": "L0", "fvu": "nmse"}):
        with pytest.raises(ConfigError, match=r"a table must have rows, but got .*empty.csv' with none"):
            pairs(tmp_path, "empty.csv", columns=columns)


def test_levels_of_a_published_table_may_be_names(tmp_path: Path) -> None:
    """Without them a seed's SAEs cannot be matched; without seeds nothing is said about how many there are."""
    lines = [
        f"{name}_{l0},{name},{l0 * (1 + seed / 100)},{seed},{fvu * (1 + seed / 50) / l0}"
        for name, fvu in (("topk", 2), ("gated", 3))
        for l0 in (8, 16, 32)
        for seed in (0, 1, 2)
    ]
    (tmp_path / "theirs.csv").write_text("\n".join(["sae,trainer,L0,seed,nmse", *lines]))
    columns = {"architecture": "trainer", "l0": "L0", "fvu": "nmse"}

    def pair(**further: str) -> Pair:
        (found,) = compare_sources([str(tmp_path / "theirs.csv")], columns=columns | further).pairs
        return found

    with pytest.raises(ConfigError, match="but got row 1 and row 4 with seed 0 and the same settings"):
        pair(seed="seed")
    named = pair(seed="seed", variant="sae")
    assert named.gap is not None and named.gap.n_seeds == 3 and named.better == "topk"
    assert pair().reason.startswith("Seeds are not known, and documents cannot be drawn: ")


def test_what_cannot_be_compared(sweeps: Path) -> None:
    with pytest.raises(ConfigError, match=r"a sweep's directory or a table must exist, but got .*nowhere"):
        pairs(sweeps, "nowhere")
    with pytest.raises(ConfigError, match="but got 'topkk'"):
        pairs(sweeps, "one:topkk")
    with pytest.raises(ConfigError, match=r"there must be two things to compare .* but got \['topk'\]"):
        pairs(sweeps, "one:topk")
    other = [record for record in realistic_records() if record.architecture == "gated"]
    with pytest.raises(ConfigError, match=r"sources must share an architecture, or each must be one, but got \['one', 'gated'\]"):
        write_sweep(sweeps / "gated", other)
        pairs(sweeps, "one", "gated")
