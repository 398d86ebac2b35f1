"""Laws of scaling: planted exponents are found again, too few sizes are refused, and predictions say where they extrapolate."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fake_results import write_sweep
from fake_sizes import BETTER, LAW, fvu_of, sized_records

from analysis.scaling import fit, frontier
from analysis.table import load_table
from sae_core.errors import ConfigError

WIDTHS = (512, 2048, 8192, 32_768)
TOKENS = (1_000_000, 4_000_000, 16_000_000)


def sized(directory: Path, **changes: Any) -> pd.DataFrame:
    options = {"architectures": ("topk",), "widths": WIDTHS, "tokens": TOKENS, **changes}
    return load_table(write_sweep(directory / "sizes", sized_records(**options)))


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    return sized(tmp_path_factory.mktemp("exact"))


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    return sized(tmp_path_factory.mktemp("noisy"), noise=0.01, seeds=(0, 1, 2))


@pytest.mark.slow
def test_planted_exponents_are_recovered(exact: pd.DataFrame) -> None:
    law = fit(exact)["topk"]
    planted = {"l0": LAW["l0"], "d_sae": LAW["d_sae"], "l0 x d_sae": LAW["cross"], "train_tokens": LAW["tokens"]}
    planted |= {"irreducible": LAW["irreducible"], "irreducible l0": LAW["irreducible_l0"]}
    planted["a"] = LAW["a"] + BETTER["topk"] - LAW["tokens"] * np.log(1e6)
    assert {name: law.parameters[name].value for name in planted} == pytest.approx(planted, rel=1e-3)
    assert law.error < 1e-6


@pytest.mark.slow
def test_with_noise_intervals_hold_the_truth_and_the_widest_width_is_predicted(noisy: pd.DataFrame) -> None:
    law = fit(noisy)["topk"]
    planted = {"d_sae": LAW["d_sae"], "l0 x d_sae": LAW["cross"], "train_tokens": LAW["tokens"]}
    for name, value in planted.items():
        found = law.parameters[name]
        assert found.low - 0.02 < value < found.high + 0.02 and found.high - found.low < 0.2, name
    assert law.held_out is not None and (law.held_out.size, law.held_out.value) == ("d_sae", 32_768)
    assert law.held_out.error < 0.05 < law.held_out.error_of_last


@pytest.mark.slow
def test_a_front_that_was_not_trained_is_predicted_and_says_so(noisy: pd.DataFrame) -> None:
    law = fit(noisy)["topk"]
    inside, beyond = law.predict(32, 4096, 4e6), law.predict(32, 131_072, 4e6)
    assert inside.extrapolated == () and beyond.extrapolated == ("d_sae",)
    assert inside.value == pytest.approx(fvu_of("topk", 4096, 4_000_000, 32), rel=0.02)
    assert beyond.value == pytest.approx(fvu_of("topk", 131_072, 4_000_000, 32), rel=0.1)
    assert beyond.low < beyond.value < beyond.high and "(extrapolated in d_sae)" in str(beyond)
    front = frontier(law, 131_072, 4e6, [8, 256])
    assert front["extrapolated"].tolist() == ["d_sae", "l0, d_sae"] and (front["low"] < front["fvu"]).all()
    with pytest.raises(ConfigError, match="sizes must be numbers above 0, but got l0=32, d_sae=0,"):
        law.predict(32, 0, 4e6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widths": (1024, 2048), "tokens": (1_000_000,)}, r"topk: 2 width\(s\) and 1 token budget\(s\)"),
        ({"l0s": (16, 32)}, r"topk: 2 L0\(s\)"),
        ({"widths": (512, 2048, 8192), "tokens": (1_000_000,), "l0s": (8, 16)}, r"topk: 2 L0\(s\)"),
    ],
)
def test_too_few_sizes_are_refused_with_what_is_missing(options: dict[str, tuple[float, ...]], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        fit(sized(tmp_path, **options))


def test_metrics_that_rise_and_several_texts_are_refused(exact: pd.DataFrame) -> None:
    with pytest.raises(ConfigError, match="must be of a metric that falls, but got 'explained_variance'"):
        fit(exact, "explained_variance")
    with pytest.raises(ConfigError, match="one held-out text to share a law, but got several"):
        fit(exact.assign(eval_hash=["a", "b"] * (len(exact) // 2)))
