"""What notebooks and prints show of our objects."""

from pathlib import Path

import pytest
from small_sweep import small_sweep

from sae_core.config.run import ARCHITECTURES
from sae_core.notebook import first_lines, table_of
from sweeps.definition.sweep import Sweep, ready
from sweeps.execution.launcher import LaunchResult


def test_texts_are_escaped_and_empty_facts_left_out() -> None:
    shown = table_of("<b>", {"what": "</td>", "nothing": "", "unknown": None, "zero": 0})
    assert "&lt;b&gt;" in shown
    assert "&lt;/td&gt;" in shown
    assert shown.count("<tr>") == 2


def test_long_lists_are_cut() -> None:
    assert first_lines(map(str, range(12))).splitlines()[-2:] == ["9", "and 2 more"]
    assert first_lines(["one"]) == "one"


@pytest.mark.parametrize("name", ready())
def test_a_sweep_says_how_many_runs_it_is(name: str) -> None:
    sweep = Sweep.from_yaml(name)
    size = f"search of {sweep.search.trials} trials" if sweep.search else f"{len(sweep.runs())} runs"
    assert repr(sweep).startswith(f"Sweep({name!r}, {size}")
    assert str(sweep) == repr(sweep)
    assert f"name: {name}" in sweep._repr_html_()


def test_a_sweep_that_is_wrong_can_still_be_shown() -> None:
    sweep = small_sweep(architectures={"topk": {"k": "many"}, "nothing": {}}, sae={"d_sae": []})
    assert repr(sweep).startswith("Sweep('small'")
    assert "topk, nothing" in sweep._repr_html_()


def test_a_launch_says_what_came_of_the_runs() -> None:
    result = LaunchResult(
        Path("results/demo"), 22, {"topk-1": "DivergedError: <nan>"}, ["topk-2"], False, tokens_asked=200, tokens_spent=100
    )
    assert repr(result) == "LaunchResult(results/demo, 22 finished, 1 failed, 1 missing)"
    shown = result._repr_html_()
    for part in ("topk-1: DivergedError: &lt;nan&gt;", "topk-2: missing", "100 of 200", "results/demo/report/report.html"):
        assert part in shown
    assert repr(LaunchResult(Path("a"), 0, {}, [], True)) == "LaunchResult(a, 0 finished, interrupted)"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_sae_says_its_sizes(name: str) -> None:
    cls = ARCHITECTURES[name]
    sae = cls(cls.Config.example(8, 16), 8)
    assert repr(sae).startswith(f"{cls.__name__}(d_in=8, d_sae=16")
    assert f"{sae.config.sparsity_parameter}=" in repr(sae)
    assert "training" in sae._repr_html_()
    assert "inference" in sae.eval()._repr_html_()
