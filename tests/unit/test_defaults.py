import defaults
import pandas as pd
import pytest
from defaults import compare, groups, paired


def runs(value: float, seed: int, fvus: dict[int, float], l0_error: float = 0.0) -> list[dict[str, object]]:
    """Rows as `measured` makes them; FVU by target."""
    fixed = {"architecture": "standard", "value": value, "seed": seed, "dead_fraction": 0.25 if value == 0.9 else 0.125}
    return [fixed | {"target_l0": target, "l0": target * (1 + l0_error), "fvu": fvu} for target, fvu in fvus.items()]


def test_pairs_are_of_one_seed_and_one_target():
    table = pd.DataFrame(
        [
            *runs(0.9, 0, {16: 0.4, 64: 0.1}),
            *runs(0.9, 1, {16: 1.0, 64: 0.2}),
            *runs(0.8, 0, {16: 0.2, 64: 0.05}),  # half of 0.9's, at both targets
            *runs(0.8, 1, {16: 0.5, 64: 0.4}),  # half, and twice
        ]
    )
    at_16, at_64, over_all = compare(table, [0.9, 0.8])
    assert (at_16["target_l0"], at_64["target_l0"], over_all["target_l0"]) == ([16], [64], [16, 64])
    assert at_16["fvu"] == pytest.approx({"base": 0.7, "other": 0.35, "ratio": 0.5, "low": 0.5, "high": 0.5, "better": 2, "pairs": 2})
    # sqrt(1/2 * 2) = 1
    assert at_64["fvu"] == pytest.approx({"base": 0.15, "other": 0.225, "ratio": 1.0, "low": 0.5, "high": 2.0, "better": 1, "pairs": 2})
    # (1/2)^3 * 2 = 1/4, and its fourth root
    assert over_all["fvu"]["ratio"] == pytest.approx(0.25**0.25)
    assert over_all["fvu"]["pairs"] == 4
    assert over_all["dead_fraction"] == [0.25, 0.125]


def test_a_run_that_missed_its_target_is_read_at_it():
    # FVU is 6.4 / L0 with both values: they are equal at any target, although one of them ended 5 % above each.
    table = pd.DataFrame([*runs(0.9, 0, {16: 0.4, 64: 0.1}), *runs(0.8, 0, {16: 0.4 / 1.05, 64: 0.1 / 1.05}, l0_error=0.05)])
    rows = compare(table, [0.9, 0.8])
    assert [row["fvu"]["ratio"] for row in rows] == pytest.approx([1.0, 1.0, 1.0])
    assert rows[0]["l0_error"] == pytest.approx([0.0, 0.05])
    # With one target there is no front to read along.
    (row,) = compare(table[table["target_l0"] == 16], [0.9, 0.8])
    assert row["fvu"]["ratio"] == pytest.approx(1 / 1.05)


def test_every_pair_has_values():
    with pytest.raises(ValueError, match=r"ratios=\[0\.5, nan\]"):
        paired(pd.Series([0.2, float("nan")]), pd.Series([0.1, 0.1]))


def test_a_group_is_an_architecture_and_a_seed(monkeypatch):
    monkeypatch.setattr("sys.argv", ["defaults.py", "--results", "unused", "--architectures", "topk", "gated", "--seeds", "0", "1"])
    found = list(groups(defaults.grid(defaults.arguments())))
    assert [(job[0].seed, job[0].sae.architecture, len(job)) for job in found] == [
        (0, "gated", 6),
        (0, "topk", 6),
        (1, "gated", 6),
        (1, "topk", 6),
    ]
    # The axis replaces what the definition gives an architecture itself.
    assert {run.train.adam_beta1 for run in found[1]} == {0.9, 0.8}
