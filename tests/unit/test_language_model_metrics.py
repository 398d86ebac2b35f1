"""sae_core/metrics/language_model.py, by hand."""

import pytest
import torch

from sae_core.activations.source import EvalChunk, NextToken
from sae_core.metrics import METRICS, Observation
from sae_core.metrics.metric import Sums
from sae_core.sparse.active import active_latents

NAMES = ["ce_loss_clean", "ce_loss_spliced", "ce_loss_zero_ablated", "ce_loss_mean_ablated", "delta_ce", "ce_loss_recovered", "kl"]


def sums(name: str, clean: list[float], spliced: list[float], zero: list[float], kl: list[float]) -> Sums:
    """Of a chunk with len(kl) tokens, of which len(clean) have a next token."""

    def next_token(ce: list[float]) -> NextToken:
        return NextToken(torch.tensor(ce), torch.tensor(kl))

    x = torch.zeros(len(kl), 2)
    chunk = EvalChunk(x, clean=next_token(clean), zero_ablated=next_token(zero), mean_ablated=next_token([z - 1 for z in zero]))
    return METRICS[name]().sums(Observation(chunk, active_latents(torch.zeros(len(kl), 3))[0], x, next_token(spliced), torch.zeros(3, 2)))


def value(name: str) -> float | None:
    """Two chunks: 2 predicted positions of 3 tokens, and 1 of 1."""
    one = sums(name, [1.0, 2.0], [2.0, 2.5], [5.0, 6.0], [0.1, 0.2, 0.3])
    other = sums(name, [3.0], [3.5], [10.0], [0.4])
    return METRICS[name]().value({key: one[key] + other[key] for key in one}, 4)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ce_loss_clean", (1 + 2 + 3) / 3),
        ("ce_loss_spliced", (2 + 2.5 + 3.5) / 3),
        ("ce_loss_zero_ablated", (5 + 6 + 10) / 3),
        ("ce_loss_mean_ablated", (4 + 5 + 9) / 3),
        ("delta_ce", 8 / 3 - 2),
        # A ratio of means, 13/3 over 15/3; the mean of the chunks' ratios would be (6.5 / 8 + 6.5 / 7) / 2.
        ("ce_loss_recovered", 13 / 15),
        # Over all tokens, those without a next one too.
        ("kl", (0.1 + 0.2 + 0.3 + 0.4) / 4),
    ],
)
def test_by_hand(name: str, expected: float) -> None:
    assert value(name) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_without_a_language_model_there_is_nothing_to_add(name: str) -> None:
    x = torch.zeros(3, 2)
    seen = Observation(EvalChunk(x), active_latents(torch.zeros(3, 3))[0], x, None, torch.zeros(3, 2))
    assert METRICS[name]().sums(seen) == {}


def test_nothing_is_recovered_where_nothing_was_lost() -> None:
    same = sums("ce_loss_recovered", [2.0], [2.0], [2.0], [0.0])
    assert METRICS["ce_loss_recovered"]().value(same, 1) is None


def test_tokens_without_a_next_one_predict_nothing() -> None:
    found = sums("ce_loss_clean", [], [], [], [0.0])
    assert METRICS["ce_loss_clean"]().value(found, 1) is None
    assert METRICS["delta_ce"]().value(found, 1) is None
