"""Names, numbers and axes."""

import math

import pytest
from matplotlib.figure import Figure

from analysis import style
from sae_core.metrics import METRICS
from sae_core.records import MetricSpec


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.07401, "0.0740"), (0.0, "0.0000"), (1.0, "1.000"), (-0.5, "-0.5000"), (12.345, "12.35"), (1234.5, "1234"),
        (0.00001234, "1.23e-05"), (2.5e7, "2.5e+07"), (math.nan, "–"), (None, "–"),
    ],
)  # fmt: skip
def test_number(value: float | None, shown: str) -> None:
    assert style.number(value) == shown


def test_metric() -> None:
    assert style.metric("l0", 15.96) == "16.0"
    assert style.metric("l0_error", 0.0312) == "+3.1 %"
    assert style.metric("l0_error", -0.0312) == "-3.1 %"
    assert style.metric("dead_fraction", 0.0312) == "3.1 %"
    assert style.metric("fvu", 0.0312) == "0.0312"
    assert style.metric("l0", math.nan) == "–"


def test_settings_are_named_by_what_was_asked_for() -> None:
    row = {"target_l0": math.nan, "sparsity_parameter": "l1_coefficient", "sparsity_value": 0.5, "lr": 4e-3, "variant": ""}
    assert style.setting(row) == "l1_coefficient=0.5"
    assert style.setting(row | {"sparsity_parameter": "k", "sparsity_value": 16.0}) == "k=16"
    assert style.setting(row | {"target_l0": 32.0}) == "target L0 32"  # whatever coefficient that took
    assert style.setting(row | {"target_l0": 32.0, "variant": "bandwidth=0.1"}, with_lr=True) == "target L0 32 (lr=0.004, bandwidth=0.1)"


@pytest.mark.parametrize(("value", "shown"), [(0, "0"), (512, "512"), (999_424, "999 k"), (999_900, "1 M"), (2.5e9, "2.5 B")])
def test_count(value: float, shown: str) -> None:
    assert style.count(value) == shown


@pytest.mark.parametrize(("seconds", "shown"), [(12.34, "12.3 s"), (250, "4 min 10 s"), (12_000, "3 h 20 min")])
def test_duration(seconds: float, shown: str) -> None:
    assert style.duration(seconds) == shown


def test_every_architecture_has_its_own_colour_and_marker() -> None:
    names = ["standard", "gated", "topk", "batchtopk", "jumprelu", "matryoshka_batchtopk", "b_new", "a_new"]
    looks = style.looks(names)
    assert list(looks) == [*names[:6], "a_new", "b_new"]
    assert len({look.color for look in looks.values()}) == len({look.marker for look in looks.values()}) == 8
    assert style.looks(["topk"])["topk"] == looks["topk"]


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
