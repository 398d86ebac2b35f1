"""What SAEs cost: floating-point operations, parameters, and metrics at matched cost."""

from pathlib import Path

import numpy as np
import pytest
from fake_results import write_sweep
from fake_sizes import fvu_of, sized_records

from analysis.costs import at_matched_cost, middle_l0, quality_of_sizes
from analysis.plots.costs import CostFvu, cost_info
from analysis.plots.sizes import SizesDeltaCe, SizesFvu
from analysis.table import load_table
from sae_core.costs import n_parameters, training_flops
from sae_core.errors import ConfigError


def test_flops_are_six_per_weight_product_and_token() -> None:
    assert training_flops("topk", 128, 1024, 10) == 12 * 128 * 1024 * 10
    assert training_flops("gated", 128, 1024, 10) == 18 * 128 * 1024 * 10


def test_parameters_are_those_of_the_module() -> None:
    from sae_core.config import ARCHITECTURES

    for name in ARCHITECTURES:
        sae = ARCHITECTURES[name]
        module = sae(sae.Config.example(8, 32), 8)
        assert n_parameters(name, 8, 32) == sum(parameter.numel() for parameter in module.parameters()), name
    assert n_parameters("of_a_plugin", 8, 32) is None


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sweep(tmp_path_factory.mktemp("results") / "sizes", sized_records(("topk", "gated"), tokens=(1_000_000,)))


def test_costs_are_columns(sweep: Path) -> None:
    table = load_table(sweep)
    topk, gated = (table[(table["architecture"] == name) & (table["d_sae"] == 1024)].iloc[0] for name in ("topk", "gated"))
    assert topk["train_flops"] == 12 * 128 * 1024 * 1e6 and gated["train_flops"] == 1.5 * topk["train_flops"]
    assert topk["parameters"] == 2 * 128 * 1024 + 128 + 1024


def test_every_size_has_its_value_at_one_l0(sweep: Path) -> None:
    sizes = quality_of_sizes(load_table(sweep), 32)
    expected = [fvu_of(row["architecture"], int(row["d_sae"]), 1_000_000, 32) for row in sizes.to_dict("records")]
    assert len(sizes) == 6 and sizes["fvu"].to_numpy() == pytest.approx(expected)


@pytest.mark.slow
def test_equal_flops_are_read_between_sizes(sweep: Path) -> None:
    table = load_table(sweep)
    flops = [12 * 128 * 2048 * 1e6]
    matched = {name: one for (_, name), (one,) in at_matched_cost(table, 32, costs=flops).items()}
    # Straight lines in (ln FLOPs, ln FVU) are nearly what the law is between widths 1024 and 4096.
    topk = fvu_of("topk", 2048, 1_000_000, 32)
    gated = fvu_of("gated", round(2048 / 1.5), 1_000_000, 32)
    assert matched["topk"] is not None and matched["gated"] is not None
    assert matched["topk"].value == pytest.approx(topk, rel=0.01) and matched["topk"].low is None  # one seed, no documents
    assert matched["gated"].value == pytest.approx(gated, rel=0.01)
    assert list(at_matched_cost(table, 32, costs=[1e20]).values()) == [[None], [None]]


@pytest.mark.slow
def test_values_at_equal_flops_have_intervals(tmp_path: Path) -> None:
    """As wide as those of the sizes at the sizes themselves; between sizes hardly wider than those of the widest."""
    records = sized_records(("topk",), tokens=(1_000_000,), seeds=(0, 1, 2), noise=0.03)
    table = load_table(write_sweep(tmp_path / "sizes", records, n_documents=40))
    sizes = quality_of_sizes(table, 32)
    flops = sizes["train_flops"].to_numpy()
    (found,) = at_matched_cost(table, 32, costs=[*flops, np.sqrt(flops[0] * flops[1])]).values()
    for one, low, high in zip(found[:3], sizes["low"], sizes["high"], strict=True):
        assert one is not None and (one.low, one.high) == (pytest.approx(low, rel=0.01), pytest.approx(high, rel=0.01))
    between = found[3]
    assert between is not None and between.se is not None and between.covers == "seeds and held-out documents"
    errors = [one.se for one in sizes["estimate"]]
    assert 0.5 * min(errors) < between.se < 1.25 * max(errors)


@pytest.mark.slow
def test_costs_that_are_none_and_l0s_that_no_front_reaches_are_refused(sweep: Path) -> None:
    table = load_table(sweep)
    with pytest.raises(ConfigError, match=r"`cost` must be one of .* but got 'dollars'"):
        at_matched_cost(table, 32, cost="dollars")
    with pytest.raises(ConfigError, match="at least one front must reach the L0, but got 4000"):
        at_matched_cost(table, 4000)


@pytest.mark.slow
def test_the_plots_show_every_size(sweep: Path) -> None:
    table = load_table(sweep)
    assert middle_l0(table) == 32
    info = CostFvu.info(table, {})
    assert info is not None and info.costs == ("train_flops", "train_seconds", "parameters")  # tokens are the same for all
    assert [size.on_front["train_flops"] for size in info.series["topk"]] == [True] * 3
    assert cost_info(table[table["d_sae"] == 1024], 4000, "fvu") is None
    assert [name for name, _ in info.at_equal_flops] == ["topk", "gated"] and info.flops == 12 * 128 * 16_384 * 1e6
    assert "At equal training FLOPs (2.5e+13): TopK" in CostFvu.note(info)
    fronts = SizesFvu.info(table, {}, layout="one")
    assert fronts is not None and list(fronts.fronts) == ["d_sae 1024", "d_sae 4096", "d_sae 16384"]
    assert SizesFvu.info(table[table["d_sae"] == 1024], {}) is None
    sparsest = table.groupby("d_sae")["l0"].transform("min") == table["l0"]
    assert SizesDeltaCe.info(table.assign(delta_ce=np.where(sparsest, -1.0, 1.0)), {}) is None  # fronts without a logarithm
    with pytest.raises(ConfigError, match=r"`layout` must be one of .* but got 'rows'"):
        SizesFvu.info(table, {}, layout="rows")  # type: ignore[arg-type]
