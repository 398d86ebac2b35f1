"""The plot of latent densities: which settings it takes, and that they are shares."""

import json
from pathlib import Path

import pytest
from fake_results import metrics_at, record_of, write_sweep

from analysis.plots.latent_densities import MOST_CURVES, LatentDensities
from analysis.table import load_table

COUNTS = [24, *[0] * 20, 600, 400, *[0] * 10]
"""24 latents that are never active, 600 and 400 of densities 1e-3 to 1e-2.75 to 1e-2.5."""


def histories_of(sweep: Path) -> dict[str, Path]:
    return {directory.name: directory / "history.jsonl" for directory in (sweep / "runs").iterdir()}


def test_shares_are_means_over_seeds(tmp_path: Path) -> None:
    records = [record_of("topk", 8, metrics_at(8, 0.1, 0.1), seed, latent_densities=COUNTS) for seed in (0, 1)]
    records.append(record_of("topk", 16, metrics_at(16, 0.05, 0.1), latent_densities=[1024, *[0] * 32]))
    sweep = write_sweep(tmp_path / "demo", records)
    info = LatentDensities.info(load_table(sweep), histories_of(sweep))
    assert info is not None
    first, last = info.series["topk"]
    assert (first.l0, last.never, sum(last.shares)) == (8, 1, 0)
    assert first.never == pytest.approx(24 / 1024)
    assert first.shares[20:22] == pytest.approx((600 / 1024, 400 / 1024))
    assert LatentDensities.figure(info).axes[0].texts[0].get_text() == "never active: 2 to 100 %"


def test_a_long_front_is_thinned_and_said_so(tmp_path: Path) -> None:
    levels = range(8, 20)
    sweep = write_sweep(tmp_path / "demo", [record_of("topk", k, metrics_at(k, 1 / k, 0.1), latent_densities=COUNTS) for k in levels])
    info = LatentDensities.info(load_table(sweep), histories_of(sweep))
    assert info is not None
    assert [curve.l0 for curve in info.series["topk"]][:: MOST_CURVES - 1] == [8, 19]
    assert "7 are not" in LatentDensities.note(info)


def test_records_without_densities_have_no_plot(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "demo", [record_of("topk", 8, metrics_at(8, 0.1, 0.1))])
    file = sweep / "runs" / "topk-8-0" / "record.json"
    file.write_text(
        json.dumps({key: value for key, value in json.loads(file.read_text()).items() if key not in ("latent_densities", "checksum")})
    )
    assert LatentDensities.info(load_table(sweep), histories_of(sweep)) is None
