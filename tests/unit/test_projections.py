"""The decoder projection: by hand, and that it is smallest near the L0 that activations were made with."""

from pathlib import Path

import numpy as np
import pytest
import torch
from fake_results import metrics_at, record_of, write_sweep
from observations import made_up, value

from analysis.plots.right_l0 import RightL0
from analysis.table import load_table
from sae_core.activations.source import EvalChunk
from sae_core.metrics.metric import METRICS, Observation
from sae_core.metrics.projections import TOKENS
from sae_core.sparse.active import active_latents


def observation(x: torch.Tensor, W_dec: torch.Tensor, b_dec: torch.Tensor | None, index: int = 0) -> Observation:
    latents = torch.ones(len(x), len(W_dec))
    return Observation(EvalChunk(x), active_latents(latents)[0], x, None, W_dec, index, b_dec)


def test_by_hand() -> None:
    x, b_dec = torch.tensor([[2.0, 1.0], [1.0, 5.0]]), torch.tensor([1.0, 1.0])
    W_dec = torch.tensor([[3.0, 0.0], [0.0, 2.0], [-1.0, 0.0], [0.0, 0.0]])
    # Of x - b_dec = (1, 0), (0, 4) on the unit rows (1, 0), (0, 1), (-1, 0), (0, 0): 1 0 -1 0 and 0 4 0 0. The 2 * 2-th largest is 0.
    sums = METRICS["decoder_projection"]().sums(observation(x, W_dec, b_dec))
    assert METRICS["decoder_projection"]().value(sums, 2) == 0
    # Of x itself: 2 1 -2 0 and 1 5 -1 0. The fourth largest of 5 2 1 1 0 0 -1 -2 is 1.
    sums = METRICS["decoder_projection"]().sums(observation(x, W_dec, torch.zeros(2)))
    assert METRICS["decoder_projection"]().value(sums, 2) == 1


def test_numpy_agrees_on_many_tokens() -> None:
    generator = torch.Generator().manual_seed(0)
    x, W_dec = torch.randn(3 * TOKENS, 8, generator=generator), torch.randn(33, 8, generator=generator)
    found = METRICS["decoder_projection"]().value(METRICS["decoder_projection"]().sums(observation(x, W_dec, torch.zeros(8))), 1)
    rows = np.linspace(0, 3 * TOKENS - 1, TOKENS).round().astype(int)
    unit = (W_dec / W_dec.norm(dim=1, keepdim=True)).double().numpy()
    projections = np.sort((x.double().numpy()[rows] @ unit.T).ravel())[::-1]
    assert found == pytest.approx(projections[TOKENS * 16 - 1], abs=1e-6)


def test_cosines_by_hand() -> None:
    W_dec = torch.tensor([[2.0, 0.0], [0.0, 1.0], [-3.0, -3.0]])  # |cos| 0, 1/sqrt(2) and 1/sqrt(2)
    sums = METRICS["decoder_cosine"]().sums(observation(torch.ones(2, 2), W_dec, None))
    assert METRICS["decoder_cosine"]().value(sums, 2) == pytest.approx(2 / 3 / 2**0.5)
    assert METRICS["decoder_cosine"]().sums(observation(torch.ones(2, 2), W_dec[:1], None)) == {}


def test_it_is_measured_on_the_first_chunk_alone() -> None:
    data = made_up()
    assert value("decoder_projection", data, made_up(seed=5)) == value("decoder_projection", data)


def test_saes_that_normalize_each_token_have_no_value() -> None:
    assert METRICS["decoder_projection"]().sums(observation(torch.ones(2, 2), torch.ones(3, 2), None)) == {}


def test_the_plot_circles_the_smallest_and_says_where_it_is_at_an_end(tmp_path: Path) -> None:
    values = {"topk": [0.5, 0.3, 0.2, 0.4], "batchtopk": [0.5, 0.4, 0.3, 0.2]}
    records = [
        record_of(name, k, {**metrics_at(k, 1 / k, 1 / k), "decoder_cosine": y, "decoder_projection": -y})
        for name, ys in values.items()
        for k, y in zip((8, 16, 32, 64), ys, strict=True)
    ]
    info = RightL0.info(load_table(write_sweep(tmp_path / "demo", records)), {})
    assert info is not None and info.smallest["decoder_cosine"] == {"topk": (32, 0.2, False), "batchtopk": (64, 0.2, True)}
    assert info.smallest["decoder_projection"]["topk"] == (8, -0.5, True)
    note = RightL0.note(info)
    assert "Rows are least alike at L0 32 for TopK." in note and "at an end of the front for BatchTopK" in note
