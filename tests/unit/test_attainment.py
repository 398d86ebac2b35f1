"""Attainment over seeds: what is drawn, and when."""

from pathlib import Path

from fake_results import metrics_at, realistic_records, record_of, write_sweep

from analysis.plots.attainment import Attainment
from analysis.table import load_table

FVU = ([0.30, 0.20], [0.40, 0.10], [0.50, 0.30])
"""Of three seeds, at L0 8 and 16."""


def test_stairs_say_how_many_seeds_are_as_good(tmp_path: Path) -> None:
    records = [
        record_of("topk", level, metrics_at(level, value, value), seed)
        for seed, values in enumerate(FVU)
        for level, value in zip((8, 16), values, strict=True)
    ]
    info = Attainment.info(load_table(write_sweep(tmp_path / "demo", records)), {})
    assert info is not None and list(info.series) == ["topk"]
    for number, stairs in info.series["topk"].items():
        for index, level in enumerate((8, 16)):
            value = min(y for l0, y in stairs if round(l0, 6) <= level)
            attained = [sum(min(values[: index + 1]) <= limit for values in FVU) for limit in (value + 1e-9, value - 1e-9)]
            assert attained[0] >= number > attained[1]


def test_fewer_than_three_seeds_have_none(tmp_path: Path) -> None:
    assert Attainment.info(load_table(write_sweep(tmp_path / "demo", realistic_records((0, 1))[:16])), {}) is None
