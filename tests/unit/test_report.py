"""The report, from records alone."""

import html
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from browser import CHROMIUM, act
from fake_results import failed, metrics_at, pruned, record_of, target_record, write_sweep

from analysis.report import write_report
from analysis.report.answer import answer
from analysis.statistics.comparison import compare
from analysis.table import load_table
from sae_core.errors import ConfigError

LEVELS = {8: (0.15, 0.25), 16: (0.08, 0.13), 32: (0.045, 0.06)}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep with a failed and a missing run."""
    records = [record_of("topk", k, metrics_at(k, *values)) for k, values in LEVELS.items()]
    records += [record_of("gated", k, metrics_at(k, *values)) for k, values in LEVELS.items()]
    return write_sweep(
        tmp_path_factory.mktemp("results") / "demo",
        [*records, failed("jumprelu", 0.1)],
        missing=[("batchtopk", 8, 0)],
        stages=[{"stage": "harvest", "seconds": 12.0}, {"stage": "train", "seconds": 250.0}],
        hardware="2 CPU cores <test>",
    )


@pytest.fixture(scope="module")
def out(sweep: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its report."""
    return write_report([sweep], tmp_path_factory.mktemp("report")).parent


@pytest.fixture
def prefixes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Draw nothing, which takes most of a report's time; collect the prefixes of the file names instead."""
    seen: list[str] = []

    def draw_nothing(table: object, histories: object, directory: object, prefix: str = "", *, of_all: bool = False) -> list[object]:
        seen.extend([] if of_all else [prefix])
        return []

    monkeypatch.setattr("analysis.report.content.draw_plots", draw_nothing)
    return seen


@pytest.mark.slow
def test_files(out: Path) -> None:
    assert sorted(file.name for file in out.iterdir()) == ["plots", "report.html", "report.md"]
    names = ["cost_delta_ce", "cost_fvu", "dead_fraction", "l0_ce_loss_recovered", "l0_delta_ce", "l0_fvu", "training_curves"]
    assert sorted(file.name for file in (out / "plots").iterdir()) == sorted(f"{name}.{kind}" for name in names for kind in ("png", "svg"))


@pytest.mark.usefixtures("prefixes")
@pytest.mark.slow
def test_settings_that_lack_seeds_are_told(tmp_path: Path) -> None:
    records = [record_of("topk", k, metrics_at(k, *LEVELS[k]), seed) for k, seed in [(8, 0), (8, 1), (16, 1)]]
    write_report([write_sweep(tmp_path / "demo", records)], tmp_path / "out")
    assert "1 of 2 settings have finished with fewer seeds" in (tmp_path / "out" / "report.md").read_text()


@pytest.mark.slow
def test_html_is_one_file_that_needs_no_network(out: Path) -> None:
    page = (out / "report.html").read_text()
    assert page.count("<svg ") == 7
    assert not re.search(r'(src|href)="(?!#)', page)  # links lead into the page itself
    assert not re.search(r"@import|url\((?!#)", page)
    assert not re.search(r"\bimport\b|XMLHttpRequest|WebSocket", page)
    assert {re.sub(r".*//([^/]*).*", r"\1", link) for link in re.findall(r"https?://[^\s\"<]*", page)} == {"www.w3.org"}  # names of formats


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
@pytest.mark.slow
def test_a_browser_opens_it_without_an_error(out: Path, tmp_path: Path) -> None:
    page = Path(shutil.copy(out / "report.html", tmp_path))
    script = "return all('figure').map((it) => [it.classList.contains('unscripted'), it.querySelector('svg').clientWidth > 0])"
    seen = act(page, script)
    assert [True, False] in seen  # what the explorer shows, too, is for paper
    assert [False, True] in seen
    assert all(is_hidden != is_seen for is_hidden, is_seen in seen)


def test_points_link_to_rows_of_the_page(out: Path) -> None:
    page = (out / "report.html").read_text()
    targets = set(re.findall(r'xlink:href="#(topk-[^"]*|gated-[^"]*)"', page))
    assert targets == {f"{name}-{k}-0" for name in ("topk", "gated") for k in LEVELS}
    assert all(f'<tr id="{target}">' in page for target in targets)
    assert "<title>TopK, k=16: L0 16.0, FVU 0.0800, delta CE 0.1300</title>" in page


def test_svg_colours_are_the_page_s(out: Path) -> None:
    page = (out / "report.html").read_text()
    used, defined = set(re.findall(r"var\((--[a-z]+)\)", page)), set(re.findall(r"(--[a-z]+):", page))
    assert used <= defined
    assert "#1a1a1a" not in page.partition("<body>")[2]


@pytest.mark.parametrize("name", ["report.html", "report.md"])
def test_both_open_with_the_answer_in_words(sweep: Path, out: Path, name: str) -> None:
    text = html.unescape((out / name).read_text()).replace("\N{NO-BREAK SPACE}", " ")
    places = [text.index(sentence) for sentence in answer(compare(load_table(sweep)))]
    assert places == sorted(places)
    assert places[-1] < text.index("At matched L0", places[0])


@pytest.mark.parametrize("name", ["report.html", "report.md"])
def test_both_say_what_was_run_and_what_came_out(out: Path, name: str) -> None:
    text = (out / name).read_text()
    for part in (
        *("demo", "blocks.2.hook_resid_post", "d_sae 1024", "1,000,000", "100,352", "6f1d0c2ab9e4", "b82e7745aa01", "torch 2.13.0"),
        *("harvest", "12.0 s", "4 min 10 s", "4 min 22 s"),  # 12 s + 250 s in all
        *("0.0800", "0.1300", "Hypervolume", "One seed"),
        *("jumprelu-0.1-0", "DivergenceError: loss must be finite, but got loss=nan at step 212.", "batchtopk-8-0", "left no record"),
        *("Fraction of variance unexplained", "ce_loss_mean_ablated", "name: demo"),
    ):
        assert part in text, part


def test_text_from_outside_is_escaped(out: Path) -> None:
    assert "2 CPU cores &lt;test&gt;" in (out / "report.html").read_text()
    assert "2 CPU cores <test>" in (out / "report.md").read_text()


def test_markdown_points_at_plots_that_are_there(out: Path) -> None:
    links = re.findall(r"!\[[^]]*\]\(([^)]*)\)", (out / "report.md").read_text())
    assert len(links) == 7
    assert all((out / link).is_file() for link in links)


def test_markdown_tables_have_as_many_cells_in_every_row(out: Path) -> None:
    for table in re.findall(r"(?:^\|.*\n)+", (out / "report.md").read_text(), flags=re.MULTILINE):
        rows = [re.sub(r"\\\|", "", row).count("|") for row in table.splitlines()]
        assert len(set(rows)) == 1, table


def test_the_same_records_give_the_same_report(sweep: Path, out: Path, tmp_path: Path) -> None:
    write_report(sweep, tmp_path)
    files = [file.relative_to(out) for file in out.rglob("*.*")]
    assert len(files) == 16
    assert all((out / file).read_bytes() == (tmp_path / file).read_bytes() for file in files)


@pytest.mark.slow
def test_several_sweeps_keep_what_may_not_be_compared_apart(tmp_path: Path, prefixes: list[str]) -> None:
    wide = record_of("topk", 16, metrics_at(16, 0.05, 0.1), run_id="topk-wide")
    wide.config["sae"]["d_sae"] = 4096
    sweeps = [
        write_sweep(tmp_path / "small", [record_of("topk", 16, metrics_at(16, 0.08, 0.13))]),
        write_sweep(tmp_path / "wide", [wide]),
    ]
    text = write_report(sweeps, tmp_path / "out").with_name("report.md").read_text()
    assert text.startswith("# small and wide\n")
    assert text.index("d_sae 1024 ·") < text.index("d_sae 4096 ·")
    assert prefixes == ["1-", "2-"]


def test_nothing_finished_still_gives_a_report(tmp_path: Path) -> None:
    page = write_report(write_sweep(tmp_path / "demo", [failed("topk", 8)]), tmp_path / "out").read_text()
    assert "No run has finished" in page
    assert "DivergenceError" in page


@pytest.mark.slow
def test_runs_without_a_language_model(tmp_path: Path, prefixes: list[str]) -> None:
    config = {"activations": {"source": "synthetic", "train_tokens": 4096}, "sae": {"d_sae": 64}, "train": {"lr": 1e-3}, "seed": 0}
    records = [record_of("topk", k, {"l0": float(k), "fvu": 1 / k}, config={**config, "sae": {"d_sae": 64, "k": k}}) for k in (8, 16)]
    text = write_report(write_sweep(tmp_path / "demo", records), tmp_path / "out").with_name("report.md").read_text()
    assert prefixes == [""]
    assert "## d_sae 64 · 4.1 k training tokens" in text
    assert "ΔCE at L0" not in text


@pytest.mark.slow
def test_tuned_rates_are_noted_and_lone_points_and_collapse_warned_of(tmp_path: Path, prefixes: list[str]) -> None:
    records = [record_of("topk", k, metrics_at(k, *values)) for k, values in LEVELS.items()]
    tuned = record_of("topk", 64, metrics_at(64, 0.02, 0.03), run_id="tuned")
    tuned.config["train"]["lr"] = 8e-3
    lone, dead = record_of("gated", 3, metrics_at(12, 0.1, 0.2)), record_of("standard", 9, metrics_at(0, 1.0, 3.0), run_id="dead")
    text = write_report(write_sweep(tmp_path / "demo", [*records, tuned, lone, dead]), tmp_path / "out").with_name("report.md").read_text()
    assert "The fronts of TopK run over several learning rates. Plots show the best of them;" in text
    assert "- Gated: 1 of 1 sparsity level finished." in text
    assert "- Standard (L1): L0 is 0.0 at l1_coefficient=9: fewer than one active latent per token." in text


@pytest.mark.slow
def test_without_warnings_the_checks_are_named(tmp_path: Path, prefixes: list[str]) -> None:
    records = [record_of("topk", k, metrics_at(k, *values)) for k, values in LEVELS.items()]
    page = write_report(write_sweep(tmp_path / "demo", records), tmp_path / "out")
    for text in (page.read_text(), page.with_name("report.md").read_text()):
        assert (
            "None of the checks found anything: the language model is no better than chance, a few rows carry nearly all variance," in text
        )


@pytest.mark.slow
def test_warnings_come_with_numbers_and_remedy(tmp_path: Path, prefixes: list[str]) -> None:
    records = [target_record("gated", target, metrics_at(l0, 1 / l0, 0.1)) for target, l0 in ((16, 20), (32, 32), (64, 64))]
    page = write_report(write_sweep(tmp_path / "demo", records), tmp_path / "out")
    assert "<li>Gated: L0 is 20.0 (+25.0 %) at target L0 16.</li>" in page.read_text()
    assert (
        "<b>Target L0 missed by more than 10 %.</b> A low learning rate cannot move L0: raise <code>lr</code> or train longer."
        in page.read_text()
    )
    assert "<code>sparsity_value</code> in <code>table.csv</code>" in page.read_text()
    text = page.with_name("report.md").read_text()
    assert "None of the checks" not in text
    assert "- Gated: L0 is 20.0 (+25.0 %) at target L0 16." in text


@pytest.mark.slow
def test_targets_their_error_and_the_coefficient_found_are_shown(tmp_path: Path, prefixes: list[str]) -> None:
    records = [target_record("standard", 32, metrics_at(36, 0.1, 0.2)), record_of("topk", 16, metrics_at(16, 0.1, 0.2))]
    text = write_report(write_sweep(tmp_path / "demo", records), tmp_path / "out").with_name("report.md").read_text()
    assert "| ● | Standard (L1) | target L0 32 | 1.100 | 0 | 0.004 | 36.0 | +12.5 % | 0.1000 |" in text
    assert "| ● | TopK | k=16 | – | 0 | 0.004 | 16.0 | – | 0.1000 |" in text
    assert "| Target L0 | 32 |" in text


@pytest.mark.slow
def test_pruned_runs_are_counted_and_are_no_failures(tmp_path: Path, prefixes: list[str]) -> None:
    records = [*(record_of("topk", k, metrics_at(k, *values)) for k, values in LEVELS.items()), pruned("topk", 64), pruned("topk", 128)]
    page = write_report(write_sweep(tmp_path / "demo", records), tmp_path / "out")
    assert "<span><b>2</b> pruned early</span>" in page.read_text()
    text = page.with_name("report.md").read_text()
    assert "3 of 5 runs finished, 2 pruned early; 1 seed." in text
    assert "failed" not in text
    assert "| pruned | StoppedEarly: others at L0 16 have an FVU 12 % lower after 25 % of the steps. |" in text


@pytest.mark.slow
def test_comparisons_with_all_in_common_but_the_text_are_told_apart(tmp_path: Path, prefixes: list[str]) -> None:
    sweeps = [
        write_sweep(tmp_path / name, [record_of("topk", 16, metrics_at(16, 0.08, 0.13), run_id=name, eval_hash=name * 3)]) for name in "ab"
    ]
    text = write_report(sweeps, tmp_path / "out").with_name("report.md").read_text()
    assert "## demo · blocks.2.hook_resid_post · d_sae 1024 · 1 M training tokens · held-out text aaa" in text
    assert "- TopK, held-out text bbb: 1 of 1 sparsity level finished." in text


@pytest.mark.slow
def test_a_run_that_one_of_two_sweeps_finished_is_that_one(tmp_path: Path, prefixes: list[str]) -> None:
    done, lost = record_of("topk", 16, metrics_at(16, 0.08, 0.13)), failed("topk", 16)
    for order in ("ab", "ba"):
        sweeps = {name: write_sweep(tmp_path / order / name, [record]) for name, record in (("a", done), ("b", lost))}
        text = write_report([sweeps[name] for name in order], tmp_path / order / "out").with_name("report.md").read_text()
        assert "1 of 1 runs finished" in text
        assert "| 21.5 s | a | `topk-16-0` |" in text


def test_a_directory_that_is_no_sweep(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"but got '.*nowhere'"):
        write_report(tmp_path / "nowhere", tmp_path / "out")


@pytest.mark.slow
def test_damaged_files_are_told_and_cost_what_they_held(tmp_path: Path, prefixes: list[str]) -> None:
    sweep = write_sweep(tmp_path / "demo", [record_of("topk", k, metrics_at(k, *values)) for k, values in LEVELS.items()])
    (sweep / "runs" / "topk-16-0" / "record.json").write_text("{")
    page = write_report(sweep, tmp_path / "out")
    for text in (page.read_text(), page.with_name("report.md").read_text()):
        assert "Damaged files" in text
        assert "2</b> of 3 runs finished" in text or "2 of 3 runs finished" in text
        assert "is damaged: JSONDecodeError: Expecting property name" in text


@pytest.mark.parametrize("out", ["file", "file/below"])
def test_a_place_that_cannot_be_written_to(tmp_path: Path, out: str) -> None:
    (tmp_path / "file").touch()
    sweep = write_sweep(tmp_path / "demo", [record_of("topk", 8, metrics_at(8, 0.1, 0.1))])
    with pytest.raises(
        ConfigError, match=rf"a report must be written to a directory .*, but got '.*{out}': .*Choose another one with `--out"
    ):
        write_report(sweep, tmp_path / out)


@pytest.mark.slow
def test_a_place_that_is_not_there_is_made(tmp_path: Path, prefixes: list[str]) -> None:
    sweep = write_sweep(tmp_path / "demo", [record_of("topk", 8, metrics_at(8, 0.1, 0.1))])
    assert write_report(sweep, tmp_path / "a" / "b").is_file()


@pytest.mark.slow
def test_extrapolated_values_and_what_is_left_out_are_told(tmp_path: Path) -> None:
    records = [record_of("topk", k, metrics_at(k, 1.6 / k, 1.6 / k)) for k in (8.5, 16, 32)]
    records.append(record_of("topk", 64, metrics_at(64, 0.001, -0.01)))
    page = write_report(write_sweep(tmp_path / "demo", records), tmp_path / "out")
    assert "0.2000<sup>*</sup>" in page.read_text()
    text = page.with_name("report.md").read_text()
    assert "0.2000\\*" in text
    assert "1 run with delta CE of 0 or less, which has no logarithm: values are read on its own scale." in text
    assert text.count("extrapolated: beyond an end of the front.") == 1


def test_plots_are_drawn_in_the_report_s_order(out: Path) -> None:
    links = re.findall(r"\(plots/(.*).png\)", (out / "report.md").read_text())
    assert links == ["l0_fvu", "l0_delta_ce", "l0_ce_loss_recovered", "training_curves", "dead_fraction", "cost_fvu", "cost_delta_ce"]


@pytest.mark.slow
def test_plots_of_further_comparisons_stay_beside_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def draw(table: object, histories: object, plots: object, prefix: str = "", *, of_all: bool = False) -> list[dict[str, object]]:
        plot = {"section": "Frontiers", "order": 1, "title": "A plot", "explored": False, "caption": "It.", "svg": "<svg>plot</svg>"}
        return [] if of_all else [{**plot, "file": f"{prefix}plot.png"}]

    monkeypatch.setattr("analysis.report.content.MOST_INLINE", 20)
    monkeypatch.setattr("analysis.report.content.draw_plots", draw)
    records = [record_of("topk", k, metrics_at(k, *values)) for k, values in LEVELS.items()]
    for k in LEVELS:
        records.append(record_of("topk", k, metrics_at(k, 0.9 / k, 0.1), run_id=f"wide-{k}"))
        records[-1].config["sae"]["d_sae"] = 4096
    page = write_report(write_sweep(tmp_path / "demo", records), tmp_path / "out")
    first, second = page.read_text().split('<section id="comparison-2">')
    assert "<svg" in first.partition('<section id="comparison-1">')[2]
    assert "<svg" not in second.partition("</section>")[0]
    assert "In <code>plots/2-plot.png</code> beside this page" in second


@pytest.mark.slow
def test_the_tables_of_the_report_are_bounded(tmp_path: Path, prefixes: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analysis.report.content.MOST_ROWS", 10)
    monkeypatch.setattr("analysis.report.content.MOST_UNFINISHED", 3)
    behind = [record_of("topk", k, metrics_at(8 + k, 0.5, 0.5), run_id=f"topk-{k}") for k in range(1, 61)]
    lost = [failed("gated", coefficient) for coefficient in range(1, 6)]
    sweep = write_sweep(tmp_path / "demo", [record_of("topk", 99, metrics_at(8, 0.1, 0.1)), *behind, *lost])
    page = write_report(sweep, tmp_path / "out")
    for text in (page.read_text().partition("application/json")[0], page.with_name("report.md").read_text()):
        assert "60 more are in the table." in text
        assert "2 more are in the table." in text
        assert "topk-99-0" in text
        assert "topk-30" not in text


@pytest.mark.parametrize(
    ("rates", "shown"),
    [
        ({"topk": [1e-3], "gated": [1e-3]}, "0.001"),
        ({"topk": [1e-3, 4e-3], "gated": [1e-3]}, "Gated 0.001; TopK 0.001, 0.004"),
        ({"topk": [1e-3 * 1.234567**n for n in range(9)]}, "TopK 0.001 to 0.0054 (9 values)"),
    ],
)
@pytest.mark.slow
def test_learning_rates_are_listed_or_their_range(tmp_path: Path, prefixes: list[str], rates: dict[str, list[float]], shown: str) -> None:
    records = [
        target_record(name, 16, metrics_at(16, 0.1, 0.1), lr=lr, warmup=n) for name, own in rates.items() for n, lr in enumerate(own)
    ]
    text = write_report(write_sweep(tmp_path / "demo", records), tmp_path / "out").with_name("report.md").read_text()
    assert f"| Learning rate | {shown} |" in text


@pytest.mark.slow
def test_the_report_shows_each_definition_with_its_runs(tmp_path: Path, prefixes: list[str]) -> None:
    records = [record_of("topk", k, metrics_at(k, 1 / k, 0.1), launch=launch) for k, launch in ((8, 1), (16, 3), (32, 3))]
    launches = [{"definition": f"definitions/{number}.yaml"} for number in (1, 1, 3)]
    sweep = write_sweep(tmp_path / "demo", records, launches=launches)
    (sweep / "definitions").mkdir()
    for number in (1, 3):
        (sweep / "definitions" / f"{number}.yaml").write_text(f"# number {number}\n")
    text = write_report(sweep, tmp_path / "out").with_name("report.md").read_text()
    assert "## Definition of demo, launches 1, 2: made 1 run\n" in text
    assert "## Definition of demo, launch 3: made 2 runs\n" in text
    assert text.index("# number 1") < text.index("# number 3")


@pytest.mark.slow
def test_a_plot_of_a_plugin_is_in_the_report(tmp_path: Path) -> None:
    plugin = tmp_path / "my_plot.py"
    plugin.write_text(
        """from analysis.plots import PLOTS
from analysis.plots.frontier import FrontierPlot

@PLOTS.register("l0_kl_of_a_plugin")
class L0KL(FrontierPlot):
    title = "Sparsity against KL"
    caption = "Lower left is better."
    order = 13
    y = "kl"
    log_y = True
"""
    )
    sweep = write_sweep(tmp_path / "demo", [record_of("topk", k, metrics_at(k, *values)) for k, values in LEVELS.items()])
    (sweep / "definition.yaml").write_text(f"name: demo\nplugins: [{plugin}, {tmp_path / 'lost.py'}]\n")
    code = "import sys, pathlib, analysis.report; analysis.report.write_report(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))"
    done = subprocess.run([sys.executable, "-c", code, sweep, tmp_path / "out"], capture_output=True, text=True, check=True)
    assert "Its plots are left out" in done.stderr
    assert "lost.py" in done.stderr
    links = re.findall(r"\(plots/(.*).png\)", (tmp_path / "out" / "report.md").read_text())
    assert links[:4] == ["l0_fvu", "l0_delta_ce", "l0_ce_loss_recovered", "l0_kl_of_a_plugin"]
