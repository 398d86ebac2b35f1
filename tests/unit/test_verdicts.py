"""Tests over all pairs, by hand and by simulation."""

import numpy as np
import pytest
from scipy import stats

from analysis.statistics.verdicts import ALPHA, Contrast, holm, judge

MARGIN = float(np.log(1.05))


def contrast(gap: float, se: float, df: float = 12.0, **more: object) -> Contrast:
    fields: dict[str, object] = {"seeds": [(se**2, df)], "documents": [], "n_seeds": 3, "n_documents": 0, "df_documents": 0.0}
    return Contrast(gap=gap, margin=MARGIN, **{**fields, **more})  # type: ignore[arg-type]


def test_holm_by_hand() -> None:
    # Sorted: 0.004 * 4, 0.012 * 3, 0.03 * 2, 0.04 * 1 but at least the one before.
    adjusted, levels = holm(np.array([0.03, 0.004, 0.04, 0.012]))
    assert adjusted.tolist() == pytest.approx([0.06, 0.016, 0.06, 0.036])
    # The third is kept, at 0.05 / 2, and so is everything after it.
    assert levels.tolist() == pytest.approx([0.025, 0.0125, 0.025, 0.05 / 3])
    assert holm(np.array([0.01]))[0].tolist() == [0.01]


def test_the_corrected_interval_excludes_0_exactly_where_a_pair_is_told_apart() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        judged = judge([contrast(float(rng.normal(0, 0.05)), 0.02) for _ in range(6)])
        for one in judged:
            assert (one.verdict == "better") == (one.adjusted[0] > 0 or one.adjusted[1] < 0) == (one.p_adjusted < ALPHA)


def test_a_single_pair_is_a_t_test() -> None:
    (one,) = judge([contrast(-0.05, 0.02)])
    assert one.p == pytest.approx(2 * stats.t.sf(2.5, 12))
    assert one.probability_below == pytest.approx(stats.t.cdf(2.5, 12))
    assert one.adjusted == pytest.approx(stats.t.interval(0.95, 12, -0.05, 0.02))


def test_equivalence_is_two_one_sided_tests() -> None:
    (one,) = judge([contrast(0.01, 0.015)])
    assert one.verdict == "equivalent"  # (0.0488 - 0.01) / 0.015 = 2.6 > 1.78
    assert judge([contrast(0.03, 0.015)])[0].verdict == "not separable"
    assert judge([contrast(0.01, 0.015)] * 8)[0].verdict == "not separable"  # eight of them: Holm


def test_with_one_seed_a_verdict_is_about_this_text() -> None:
    (one,) = judge([contrast(-0.2, 0, seeds=[], documents=[(0.0004, 49.0)], n_seeds=1, n_documents=50, df_documents=49.0)])
    assert (one.verdict, one.seeds_needed) == ("better on this text", None)


def test_the_smallest_difference_is_found_four_times_of_five() -> None:
    (one,) = judge([contrast(0.0, 1 / np.sqrt(3), df=2.0)])
    assert one.smallest == pytest.approx(3.26, abs=0.02)  # three pairs of seeds: 3.26 standard deviations
    rng = np.random.default_rng(0)
    sample = rng.normal(one.smallest, 1, (20_000, 3))
    found = np.abs(sample.mean(axis=1)) > stats.t.ppf(0.975, 2) * sample.std(axis=1, ddof=1) / np.sqrt(3)
    assert found.mean() == pytest.approx(0.8, abs=0.01)


def test_so_many_seeds_would_do() -> None:
    (one,) = judge([contrast(0.03, 0.02, df=10.0)])
    assert one.verdict == "not separable"
    assert one.seeds_needed is not None
    power = {}
    for n in (one.seeds_needed - 1, one.seeds_needed):
        se, df = 0.02 * np.sqrt(3 / n), 10 * (n - 1) / 2
        critical = stats.t.ppf(0.975, df)
        power[n] = stats.nct.sf(critical, df, 0.03 / se)
    assert power[one.seeds_needed] >= 0.8 > power[one.seeds_needed - 1]


def test_where_documents_lack_documents_are_asked_for() -> None:
    (one,) = judge([contrast(0.03, 0.001, documents=[(0.02**2, 49.0)], n_documents=50, df_documents=49.0)])
    assert one.seeds_needed is None
    assert one.documents_needed is not None and 150 < one.documents_needed < 300  # (2.8 * 0.02 / 0.03)^2 * 50 = 174
    assert judge([contrast(1e-4, 0.02)])[0].seeds_needed is None  # none up to 100


def test_where_nothing_varies_any_difference_is_certain() -> None:
    one, same = judge([contrast(0.01, 0.0), contrast(0.0, 0.0)])
    assert (one.verdict, one.p) == ("better", 0.0)
    assert same.verdict == "equivalent"
