"""Looks and axes."""

import math

import pytest
from matplotlib.figure import Figure

from analysis.plots import style
from sae_core.metrics import METRICS
from sae_core.records import MetricSpec


def test_every_architecture_has_its_own_colour_and_marker() -> None:
    names = ["standard", "gated", "topk", "batchtopk", "jumprelu", "matryoshka_batchtopk", "b_new", "a_new"]
    looks = style.looks(names)
    assert list(looks) == [*names[:6], "a_new", "b_new"]
    assert len({look.color for look in looks.values()}) == len({look.marker for look in looks.values()}) == 8
    assert style.looks(["topk"])["topk"] == looks["topk"]


def test_further_architectures_keep_their_looks_where_a_figure_has_some_of_them():
    names = ["topk", "mine", "other", "yours"]
    with style.shown_together(names):
        assert style.looks(["other", "topk"]) == {name: style.looks(names)[name] for name in ("topk", "other")}
    assert style.looks(["other"])["other"] != style.looks(names)["other"]


def test_axis_labels() -> None:
    assert style.axis_label(MetricSpec("kl", "KL divergence", "nats per token", "min"), "kl") == "KL divergence (nats per token)"
    assert style.axis_label(MetricSpec("fvu", "FVU", "", "min"), "fvu") == "FVU"
    assert style.axis_label(None, "fvu") == "fvu"


def test_axis_labels_fit_beside_the_axis() -> None:
    dead = METRICS["dead_fraction"].spec
    assert style.axis_label(dead, dead.name) == "Dead latents\n(never active on the held-out tokens)"
    assert all(
        len(line) <= style.LONGEST_AXIS_LABEL for metric in METRICS.values() for line in style.axis_label(metric.spec, "").split("\n")
    )


@pytest.mark.parametrize("values", [[8, 64], [20, 21], [0.3, 700], [32]])
def test_l0_axis_always_has_two_ticks_and_holds_all_values(values: list[float]) -> None:
    axes = Figure().subplots()
    style.l0_axis(axes.xaxis, values)
    low, high = axes.get_xlim()
    ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
    assert 2 <= len(ticks) <= 10
    assert all(math.log2(tick).is_integer() for tick in ticks)
    assert low < min(values) <= max(values) < high


def test_absurd_values_do_not_stretch_an_axis() -> None:
    axes = Figure().subplots()
    style.log_axis(axes.yaxis, [5e-324, 0.1, 1.0])
    style.l0_axis(axes.xaxis, [1e-320, 16])
    assert axes.get_ylim()[0] > 1e-13
    assert axes.get_xlim()[0] > 1e-12


@pytest.mark.parametrize("values", [[0.02, 0.5], [0.31, 0.39], [1e-4, 1], [0.1]])
def test_log_axis_always_has_two_ticks(values: list[float]) -> None:
    axes = Figure().subplots()
    style.log_axis(axes.yaxis, values)
    low, high = axes.get_ylim()
    assert len([tick for tick in axes.get_yticks() if low <= tick <= high]) >= 2
