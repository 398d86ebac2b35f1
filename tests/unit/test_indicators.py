"""Hypervolume, epsilon and attainment, by hand."""

import numpy as np
import pandas as pd
import pytest

from analysis.statistics.indicators import attainment, epsilons, on_common_window


def table_of(**arms: list[tuple[float, float]] | list[list[tuple[float, float]]]) -> pd.DataFrame:
    """Points (L0, FVU) per arm, of one seed or of a list of seeds."""
    rows = [
        {"architecture": arm, "seed": seed, "setting_hash": f"{arm}{number}", "l0": l0, "fvu": fvu, "status": "finished"}
        for arm, seeds in arms.items()
        for seed, points in enumerate(seeds if isinstance(seeds[0], list) else [seeds])
        for number, (l0, fvu) in enumerate(points)  # type: ignore[misc,arg-type]
    ]
    table = pd.DataFrame(rows)
    table.attrs["metrics"] = {"fvu": {"name": "fvu", "label": "", "unit": "", "direction": "min"}}
    return table


def test_a_staircase_on_the_common_window_and_its_coverage() -> None:
    found = on_common_window(table_of(a=[(8, 0.5), (16, 0.25), (64, 0.1)], b=[(16, 0.3), (32, 0.2)]))
    # The window is 16 to 32: a counts 0.75 over one doubling, b 0.7.
    assert found["hypervolume"].to_dict() == {"a": pytest.approx(0.75), "b": pytest.approx(0.7)}
    assert found["coverage"].to_dict() == {"a": 1.0, "b": pytest.approx(1 / 3)}
    assert found.loc["b", ["low", "high"]].tolist() == pytest.approx([16, 32])


def test_fronts_without_a_common_window_have_no_hypervolume() -> None:
    found = on_common_window(table_of(a=[(8, 0.5), (16, 0.25)], b=[(32, 0.3), (64, 0.2)]))
    assert found["hypervolume"].isna().all()
    assert found["coverage"].tolist() == pytest.approx([1 / 3, 1 / 3])


def test_epsilon_both_ways() -> None:
    found = epsilons(table_of(a=[(8, 0.5), (16, 0.25), (32, 0.125)], b=[(8, 0.55), (16, 0.275), (32, 0.1375)]))
    assert found.loc["a", "b"] == pytest.approx(0)  # L0 is the same: no better there
    assert found.loc["b", "a"] == pytest.approx(np.log(1.1))
    assert np.isnan(found.loc["a", "a"])


def test_epsilon_is_that_of_a_loop_over_points() -> None:
    rng = np.random.default_rng(0)
    points = {name: [(float(l0), float(0.5 / l0 * rng.uniform(0.8, 1.2))) for l0 in (8, 16, 32, 64)] for name in "ab"}
    logs = {name: np.log(own) for name, own in points.items()}
    expected = max(min(max(a - b) for a in logs["a"]) for b in logs["b"])
    assert epsilons(table_of(**points)).loc["a", "b"] == pytest.approx(expected)


def test_a_front_that_ends_a_little_later_is_not_far_behind() -> None:
    found = epsilons(table_of(a=[(8, 0.5), (64, 0.1)], b=[(8, 0.5), (62, 0.1)]))
    assert found.loc["a", "b"] == pytest.approx(np.log(64 / 62))
    assert found.loc["b", "a"] == pytest.approx(0)  # its last point is sparser and as good


def test_fronts_asked_to_end_at_one_l0_are_compared_there() -> None:
    """What the other has denser than END_TOLERANCE beyond the end need not be reached, what is nearer must."""
    for end, expected in ((64.6, np.log(2)), (64 * 1.09, np.log(2)), (64 * 1.11, 0)):
        found = epsilons(table_of(a=[(8, 0.5), (64, 0.2)], b=[(8, 0.5), (end, 0.1)]))
        assert found.loc["a", "b"] == pytest.approx(expected)


def test_attainment_counts_the_seeds_that_reach() -> None:
    seeds = [[(8, 0.3), (16, 0.2)], [(8, 0.4), (16, 0.1)], [(8, 0.5), (16, 0.3)]]
    found = attainment(table_of(a=seeds))["a"]
    assert sorted(found) == [33.3, 66.7, 100.0]
    np.testing.assert_allclose(found[33.3], [[8, 0.3], [16, 0.1]])  # the best of each
    np.testing.assert_allclose(found[66.7], [[8, 0.4], [16, 0.2]])
    np.testing.assert_allclose(found[100.0], [[8, 0.5], [16, 0.3]])
