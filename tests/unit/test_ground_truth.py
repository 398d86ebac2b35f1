"""Every definition is SAELens' (sae_lens.synthetic.evals 6.54), written here once more in plain NumPy."""

import numpy as np
import pytest
import torch
from observations import Evaluated, made_up, value
from torch import Tensor

from sae_core.activations.source import EvalChunk, GroundTruth
from sae_core.metrics import METRICS, Observation
from sae_core.sparse.active import active_latents

NAMES = ("mcc", "uniqueness", "feature_precision", "feature_recall", "feature_f1")


def measured(name: str, W_dec: Tensor, directions: Tensor, fired: Tensor | None = None, active: Tensor | None = None) -> float:
    latents = torch.zeros(1, len(W_dec)) if fired is None else fired.float()
    truth = GroundTruth(directions, torch.zeros(1, len(directions), dtype=torch.bool) if active is None else active)
    x = torch.zeros(len(latents), W_dec.shape[1])
    metric = METRICS[name]()
    found = metric.value(metric.sums(Observation(EvalChunk(x, ground_truth=truth), active_latents(latents)[0], x, None, W_dec)), len(x))
    assert found is not None
    return found


def cosines(data: Evaluated) -> np.ndarray:
    rows, directions = data.W_dec.double().numpy(), data.directions.double().numpy()
    return np.abs(rows @ directions.T) / np.linalg.norm(rows, axis=1)[:, None] / np.linalg.norm(directions, axis=1)


def test_the_true_directions_are_found_whatever_their_order_sign_and_norm() -> None:
    directions = torch.randn(12, 6, generator=torch.Generator().manual_seed(0))
    W_dec = -3 * directions[torch.randperm(12, generator=torch.Generator().manual_seed(1))]
    assert measured("mcc", W_dec, directions) == pytest.approx(1, abs=1e-6)
    assert measured("uniqueness", W_dec, directions) == 1


def test_mcc_by_hand() -> None:
    # Both rows are nearest to feature 0 (|cos| 1 and 0.8); one of them has to take feature 1: 1 + 0.6 beats 0.8 + 0.
    W_dec = torch.tensor([[2.0, 0.0], [-0.8, 0.6]])
    assert measured("mcc", W_dec, torch.eye(2)) == pytest.approx((1 + 0.6) / 2)
    assert measured("uniqueness", W_dec, torch.eye(2)) == 1 / 2


def test_more_latents_than_features_and_the_other_way_round() -> None:
    # The mean is over the pairs there are, as SAELens has it; a row of zeros is like no feature at all.
    three = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.6, 0.8]])
    assert measured("mcc", three, torch.eye(2)) == pytest.approx((1 + 0.8) / 2)
    assert measured("mcc", torch.tensor([[0.6, 0.8]]), torch.eye(2)) == pytest.approx(0.8)
    assert measured("uniqueness", torch.eye(2)[[0, 0, 0, 1]], torch.eye(2)) == 2 / 4
    assert measured("uniqueness", torch.eye(2)[[0]], torch.eye(2)) == 1


def test_detection_by_hand() -> None:
    # Latents 0 and 1 both belong to feature 0, latent 2 to feature 1; feature 0 is active on tokens 0 and 1, feature 1 on token 2.
    W_dec = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
    active = torch.tensor([[1, 0], [1, 0], [0, 1], [0, 0]]).bool()
    fired = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 0, 0], [0, 0, 0]])
    # Latent 0: 2 of its 3 tokens, 2 of 2. Latent 1: 1 of 1, 1 of 2. Latent 2 is never active.
    assert measured("feature_precision", W_dec, torch.eye(2), fired, active) == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert measured("feature_recall", W_dec, torch.eye(2), fired, active) == pytest.approx((1 + 1 / 2 + 0) / 3)
    assert measured("feature_f1", W_dec, torch.eye(2), fired, active) == pytest.approx((4 / 5 + 2 / 3 + 0) / 3)


def test_numpy_agrees() -> None:
    data = made_up(error=0.6)
    best = cosines(data).argmax(axis=1)
    fired, present = (data.latents != 0).numpy(), data.active.numpy()[:, best]
    right = (fired & present).sum(axis=0)
    precision = np.divide(right, fired.sum(axis=0), out=np.zeros(12), where=fired.sum(axis=0) > 0)
    recall = np.divide(right, present.sum(axis=0), out=np.zeros(12), where=present.sum(axis=0) > 0)
    both = precision + recall
    f1 = np.divide(2 * precision * recall, both, out=np.zeros(12), where=both > 0)
    expected = {"uniqueness": len(set(best)) / 12, "feature_precision": precision.mean(), "feature_recall": recall.mean()}
    expected["feature_f1"] = f1.mean()
    assert {name: value(name, data) for name in expected} == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_without_known_features_there_is_nothing_to_add(name: str) -> None:
    assert METRICS[name]().sums(made_up().observation(bare=True)) == {}


def test_what_needs_no_tokens_is_measured_once() -> None:
    for name in ("mcc", "uniqueness"):
        assert METRICS[name]().sums(made_up().observation(index=1)) == {}
        assert value(name, made_up(5)) == value(name, made_up(5), made_up(50))
