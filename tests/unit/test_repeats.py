"""Seeds and orders of the tokens."""

from pathlib import Path

import pandas as pd
import pytest
from fake_results import config_of, metrics_at, record_of, write_sweep

from analysis.repeats import counted_repeats, n_repeats, noun
from analysis.summary import at_matched_l0, frontier_lines, hypervolumes
from analysis.table import load_table, over_seeds
from sae_core.records import RunRecord


def run(k: float, seed: int, order: int, fvu: float) -> RunRecord:
    config = config_of("topk", k, seed) | {"data_seed": order}
    return record_of("topk", k, metrics_at(k, fvu, 2 * fvu), seed, config, run_id=f"{k}-{seed}-{order}")


def test_orders_are_repeats_as_seeds_are(tmp_path: Path) -> None:
    # One lucky order of three, at each of two levels.
    runs = [run(k, 0, order, fvu / k) for k in (8, 32) for order, fvu in enumerate((1.6, 0.8, 2.4))]
    table = load_table(write_sweep(tmp_path / "demo", runs))
    settings = over_seeds(table)
    assert list(settings["n_seeds"]) == [3, 3]
    assert list(settings["fvu"]) == pytest.approx([0.2, 0.05])  # means of 1.6, 0.8 and 2.4 over 8 and over 32
    (value,) = at_matched_l0(table, "fvu", [16])["topk"]
    assert value is not None
    assert (value.mean, value.low, value.high, value.n_seeds) == (pytest.approx(0.1), pytest.approx(0.05), pytest.approx(0.15), 3)
    assert hypervolumes(table, "fvu").pooled.n_seeds == 3
    assert frontier_lines(table)[0] == "Pareto frontier of L0 against FVU: 2 of 2 settings, means over 3 orders of the tokens"
    assert set(table["variant"]) == {""}


@pytest.mark.parametrize(
    ("seeds", "orders", "told", "kind"),
    [
        ([0], [0], "1 seed", "seed"),
        ([0, 1], [0], "2 seeds", "seed"),
        ([0], [0, 1], "2 orders of the tokens", "order"),
        ([0, 1], [0, 1, 2], "6 repeats (2 seeds, 3 orders of the tokens)", "repeat"),
    ],
)
def test_repeats_are_told(tmp_path: Path, seeds: list[int], orders: list[int], told: str, kind: str) -> None:
    table = load_table(write_sweep(tmp_path / "demo", [run(8, seed, order, 0.1) for seed in seeds for order in orders]))
    assert (counted_repeats(table), noun(table), n_repeats(table)) == (told, kind, len(seeds) * len(orders))


def test_tables_without_orders_have_seeds_alone(tmp_path: Path) -> None:
    table = load_table(write_sweep(tmp_path / "demo", [run(8, seed, 0, 0.1) for seed in (0, 1)])).drop(columns="data_seed")
    assert (counted_repeats(table), n_repeats(table)) == ("2 seeds", 2)


def test_the_usual_order_leaves_the_hash_of_a_setting_as_it_was(tmp_path: Path) -> None:
    reference = Path(__file__).parents[2] / "results" / "reference" / "demo"
    table = load_table(reference).set_index("run_id")
    committed = pd.read_csv(reference / "table.csv").set_index("run_id")
    assert dict(table["setting_hash"]) == dict(committed["setting_hash"])
    # Of a run that earlier versions made, too.
    assert table.loc["batchtopk-60aff9fbf35e", "setting_hash"] == "1e9dc361a0f0"
