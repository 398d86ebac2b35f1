"""Figures and tables for papers."""

import itertools
import re
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from fake_results import metrics_at, realistic_records, record_of, write_sweep
from fake_sizes import sized_records
from matplotlib.figure import Figure
from typer.testing import CliRunner

from analysis import latex
from analysis.paper import GUTTER, WIDTH, _apart, for_paper, write_figures
from analysis.table import load_table
from sae_core.errors import ConfigError
from sweeps.cli import app


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    records = [record for record in realistic_records((0, 1)) if record.architecture in ("topk", "batchtopk")]
    return write_sweep(tmp_path_factory.mktemp("results") / "demo", records)


@pytest.fixture(scope="module")
def written(sweep: Path) -> list[Path]:
    return write_figures(sweep, form="pdf")


def box(file: Path) -> tuple[float, float]:
    """Width and height of a PDF's page in inches."""
    found = re.search(rb"/MediaBox \[ 0 0 ([\d.]+) ([\d.]+) \]", file.read_bytes())
    assert found
    return float(found[1]) / 72, float(found[2]) / 72


@pytest.mark.slow
def test_every_plot_has_a_file_of_a_columns_width_or_two(written: list[Path], sweep: Path) -> None:
    figures = {file.stem: file for file in written if file.suffix == ".pdf"}
    assert {"l0_fvu", "l0_delta_ce", "training_curves", "ground_truth"} <= set(figures)
    assert all(file.parent == sweep / "figures" for file in written)
    assert box(figures["l0_fvu"])[0] == pytest.approx(WIDTH)
    assert box(figures["ground_truth"])[0] == pytest.approx(2 * WIDTH + GUTTER)


@pytest.mark.slow
def test_fonts_are_embedded_as_truetype_and_nothing_changes_from_call_to_call(written: list[Path], sweep: Path, tmp_path: Path) -> None:
    again = {file.name: file for file in write_figures(sweep, tmp_path / "again")}
    for file in written:
        content = file.read_bytes()
        assert content == again[file.name].read_bytes()
        if file.suffix == ".pdf":
            assert b"/FontFile2" in content and b"/Type3" not in content


def lines_figure(ends: dict[str, float], *, x_of_last: float = 4) -> Figure:
    figure = Figure(layout="constrained")
    axes = figure.subplots()
    for name, end in ends.items():
        axes.plot([1, 2, x_of_last], [0, end / 2, end], label=name)
    axes.set_xlim(1, 4.2)
    figure.legend(loc="outside right upper")
    return figure


def texts(figure: Figure) -> dict[str, tuple[float, float]]:
    figure.draw_without_rendering()
    boxes = {text.get_text(): text.get_window_extent() for text in figure.axes[0].texts}
    return {name: (box.y0, box.y1) for name, box in boxes.items()}


def test_lines_are_named_at_their_ends_without_overlap() -> None:
    with matplotlib.rc_context():
        figure = lines_figure({"one": 1.0, "two": 1.01, "three": 0.5})
        for_paper(figure)
        found = texts(figure)
    assert set(found) == {"one", "two", "three"} and not figure.legends
    ends = sorted(found.values())
    assert all(above[0] >= below[1] - 1 for below, above in itertools.pairwise(ends))
    assert found["two"][0] > found["one"][0]


def test_names_stay_below_the_top_of_the_axes_or_a_legend_stands_below() -> None:
    with matplotlib.rc_context():
        figure = lines_figure({f"line {i}": 1 - 0.001 * i for i in range(3)} | {"low": 0.2})
        for_paper(figure)
        top = figure.axes[0].get_window_extent().y1
        assert figure.legends or all(middle <= top + 1 for middle in (sum(ends) / 2 for ends in texts(figure).values()))
    crowded = _apart({f"line {i}": 99.0 + i / 10 for i in range(5)} | {"low": 0.0}, 10, 0, 100)
    assert max(crowded.values()) <= 100


def test_labels_longer_than_their_axis_are_broken_into_lines() -> None:
    with matplotlib.rc_context():
        figure = lines_figure({"one": 1.0, "two": 0.5})
        figure.axes[0].set_ylabel("CE loss added by the SAE on all of the held-out text (nats per token)")
        for_paper(figure, 2.0)
        figure.draw_without_rendering()
        label = figure.axes[0].yaxis.label
        assert label.get_text().split("\n")[-1] == "(nats per token)"
        assert label.get_window_extent().y0 >= 0
        assert label.get_window_extent().y1 <= figure.bbox.height


@pytest.mark.parametrize(
    "figure", [lines_figure({"early": 1.0, "late": 0.5}, x_of_last=3), lines_figure({f"line {i}": 1.0 for i in range(20)})]
)
def test_where_names_do_not_fit_a_legend_stands_below(figure: Figure) -> None:
    for_paper(figure)
    assert len(figure.legends) == 1 and not figure.axes[0].texts
    figure.draw_without_rendering()
    assert figure.legends[0].get_window_extent().y1 < figure.axes[0].get_window_extent().y0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "poster"}, r"`--style` must be one of .* but got 'poster'"),
        ({"form": "gif"}, r"`--format` must be one of .* but got 'gif'"),
        ({"layout": "rows"}, r"`--layout` must be one of .* but got 'rows'"),
        ({"width": 0.5}, "`--width` must be 2 to 20 inches, but got 0.5"),
    ],
)
def test_other_options_are_refused(options: dict[str, object], message: str, sweep: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        write_figures(sweep, **options)  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_command_writes_the_figures_of_several_widths(tmp_path: Path) -> None:
    sizes = write_sweep(tmp_path / "sizes", sized_records(("topk",), widths=(1024, 4096), tokens=(1_000_000,)))
    done = CliRunner().invoke(app, ["figures", str(sizes), "--format", "svg", "--layout", "one", "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    names = {Path(line).name for line in done.stdout.split()}
    assert {"1-l0_fvu.svg", "2-l0_fvu.svg", "sizes_fvu.svg", "cost_fvu.svg", "1-fvu.tex", "2-fvu.tex"} <= names
    assert CliRunner().invoke(app, ["figures", str(sizes), "--width", "99"]).exit_code == 2


def test_tables_have_intervals_and_no_character_that_latex_reads(sweep: Path) -> None:
    table = load_table(sweep)
    text = latex.matched_tables(table, "a_b & 100 % · c")["fvu"]
    assert "a\\_b \\& 100 \\% $\\cdot$ c" in text and "\\toprule" in text
    rows = [line for line in text.splitlines() if line.strip().startswith("BatchTopK")]
    assert len(rows) == 1 and re.search(r"0\.0\d+ \{\\scriptsize \[0\.0\d+, 0\.\d+\]\}", rows[0])
    assert rows[0].count("&") == text.count("L0 ", text.index("Architecture"), text.index("\\midrule"))


def test_a_table_of_one_seed_has_no_intervals(tmp_path: Path) -> None:
    records = [record_of("topk", k, metrics_at(k, 1 / k, 1 / k)) for k in (8, 16)]
    text = latex.matched_tables(load_table(write_sweep(tmp_path / "demo", records)), "demo")["fvu"]
    assert "scriptsize" not in text and "In brackets" not in text and "0.1250" in text
    assert np.all([line.count("&") in (0, 2) for line in text.splitlines()])
