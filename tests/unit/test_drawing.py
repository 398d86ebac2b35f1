"""One plot of a table, as a notebook shows it."""

from pathlib import Path

import pytest
from fake_results import metrics_at, record_of, write_sweep
from fake_sizes import sized_records

import analysis
from sae_core.errors import ConfigError


@pytest.mark.slow
def test_any_plot_is_a_figure_that_notebooks_show(tmp_path: Path) -> None:
    records = [record_of("topk", k, metrics_at(k, 1 / k, 1 / k)) for k in (8, 16, 32)]
    table = analysis.load_table(write_sweep(tmp_path / "demo", records))
    for name in ("l0_fvu", "training_curves"):
        figure = analysis.plot(table, name)
        assert figure._repr_png_().startswith(b"\x89PNG")  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="something to draw for the plot 'stability', but got 3 rows without"):
        analysis.plot(table, "stability")
    with pytest.raises(ConfigError, match=r"plot must be one of .*but got 'l0_fuv'"):
        analysis.plot(table, "l0_fuv")


@pytest.mark.slow
def test_widths_share_a_plot_only_where_it_tells_them_apart(tmp_path: Path) -> None:
    table = analysis.load_table(write_sweep(tmp_path / "sizes", sized_records(("topk",), widths=(1024, 4096), tokens=(1_000_000,))))
    with pytest.raises(ConfigError, match="but got 2 comparisons: d_sae 1024; d_sae 4096"):
        analysis.plot(table, "l0_fvu")
    assert len(analysis.plot(table, "sizes_fvu", layout="one").axes) == 1
    assert len(analysis.plot(table, "sizes_fvu", layout="sizes").axes) == 2
