import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from small_runs import random_sae, with_weights
from torch import Tensor

from sae_core.architectures.matching_pursuit import MatchingPursuit
from sae_core.config.run import ARCHITECTURES
from sae_core.errors import ConfigError
from sae_core.sae.base import SparseAutoencoder
from sae_core.sae.loss import LossContext
from sae_core.sae.normalization import Affine

# Rows (1, 0), (0.6, 0.8) and (-1, 0); b_dec (1, 1).
WEIGHTS = {"W_dec": [[1.0, 0.0], [0.6, 0.8], [-1.0, 0.0]], "b_dec": [1.0, 1.0]}
X = torch.tensor([[4.0, 5.0], [1.0, 1.0], [1.0, -4.0]])
"""Less b_dec: (3, 4), (0, 0) and (0, -5)."""


def normal(n: int, d: int = 12) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(0))


def unit_sae(k: int, **fields: object) -> MatchingPursuit:
    sae = random_sae("matching_pursuit", k=k, **fields)
    sae.constrain()
    assert isinstance(sae, MatchingPursuit)
    return sae


def test_latents_by_hand() -> None:
    # Token 0: row 1 has 3 * 0.6 + 4 * 0.8 = 5, which leaves 0: nothing follows. Token 2: no row points down.
    latents = with_weights("matching_pursuit", WEIGHTS, k=2).encode(X)
    torch.testing.assert_close(latents, torch.tensor([[0.0, 5, 0], [0, 0, 0], [0, 0, 0]]), rtol=0, atol=1e-6)
    # (3, 1): row 0 has 3, row 1 has 2.6. What is left, (0, 1), goes to row 1: 0.8; then (-0.48, 0.36) to row 2: 0.48.
    x = torch.tensor([[4.0, 2.0]])
    for k, expected in ((1, [3.0, 0, 0]), (2, [3.0, 0.8, 0]), (3, [3.0, 0.8, 0.48])):
        torch.testing.assert_close(with_weights("matching_pursuit", WEIGHTS, k=k).encode(x), torch.tensor([expected]))


def test_what_is_left_shrinks_with_every_latent() -> None:
    x = normal(64)
    errors = [(x - unit_sae(k)(x)).norm(dim=1) for k in (1, 2, 4, 8, 16)]
    assert all((after <= before + 1e-6).all() for before, after in pairwise(errors))


@pytest.mark.parametrize("stops", [False, True])
def test_a_latent_chosen_again_adds_and_may_be_the_last(stops: bool) -> None:
    # (2, 1) to row 0: 2; (0, 1) to row 1: 0.8; (-0.48, 0.36) to row 2: 0.48; (0, 0.36) to row 1 again: 0.288; then there may be more.
    sae = with_weights("matching_pursuit", WEIGHTS, k=10, stop_on_duplicate_support=stops)
    latents = sae.encode(torch.tensor([[3.0, 2.0]]))[0]
    assert latents[1] == pytest.approx(0.8 + 0.288, abs=1e-6) if stops else latents[1] > 0.8 + 0.288 + 1e-3


def test_tokens_below_the_threshold_are_done() -> None:
    x = normal(64)
    sae, endless = unit_sae(60, residual_threshold=2.0), unit_sae(60)
    left = (x - sae(x)).norm(dim=1)
    assert (left < 2).all() and (left > 1).all()
    assert ((sae.encode(x) != 0).sum(dim=1) < (endless.encode(x) != 0).sum(dim=1)).all()


def test_gradients_are_those_of_plain_autograd() -> None:
    x, sae = normal(32), unit_sae(6)
    sae.loss(x, LossContext()).total.backward()
    b_dec, W_dec = sae.b_dec.detach().clone().requires_grad_(), sae.W_dec.detach().clone().requires_grad_()
    residual = x - b_dec
    for _ in range(6):
        rows = W_dec[(residual @ W_dec.T).argmax(dim=1)]
        residual = residual - (residual * rows).sum(dim=1, keepdim=True).relu() * rows
    residual.square().sum(dim=1).mean().backward()
    torch.testing.assert_close(sae.W_dec.grad, W_dec.grad)
    torch.testing.assert_close(sae.b_dec.grad, b_dec.grad)


def test_folding_a_scale_and_a_shift_keeps_rows_and_moves_the_threshold() -> None:
    sae, x = unit_sae(12, residual_threshold=2.0).to_inference(), normal(64)
    normalization = Affine("of_a_plugin", 4.0, 0.25, torch.full((12,), 0.5))
    y = normalization(x)
    with torch.no_grad():
        expected_latents, expected = sae.encode(y) / 4, sae(y) / 4 + 0.5
        rows = sae.W_dec.clone()
        sae.fold(normalization)
        torch.testing.assert_close(sae.encode(x), expected_latents, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(sae(x), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(sae.W_dec, rows)
    assert sae.saelens_fields()["residual_threshold"] == 0.5


def test_a_matrix_cannot_be_folded() -> None:
    matrix = torch.eye(12) + 0.1
    with pytest.raises(ConfigError, match=r"must be normalized by a scale, .* but got normalize_activations='of_a_plugin'"):
        unit_sae(3).fold(Affine("of_a_plugin", matrix, matrix.inverse()))


def test_files_name_the_fields_of_saelens(tmp_path: Path) -> None:
    sae, x = unit_sae(5, stop_on_duplicate_support=True).to_inference(), normal(64)
    sae.save_pretrained(tmp_path)
    cfg = json.loads((tmp_path / "cfg.json").read_text())
    fields = ("architecture", "max_iterations", "residual_threshold", "stop_on_duplicate_support")
    assert {name: cfg[name] for name in fields} == dict(zip(fields, ("matching_pursuit", 5, 0.0, True), strict=True))
    assert torch.equal(SparseAutoencoder.from_pretrained(tmp_path)(x), sae(x))


def test_absent_fields_mean_what_they_mean_to_saelens(tmp_path: Path) -> None:
    unit_sae(5).to_inference().save_pretrained(tmp_path)
    path = tmp_path / "cfg.json"
    cfg = json.loads(path.read_text())
    for name in ("max_iterations", "residual_threshold", "stop_on_duplicate_support", "checksum"):
        del cfg[name]
    path.write_text(json.dumps(cfg))
    config = SparseAutoencoder.from_pretrained(tmp_path).config
    assert config == ARCHITECTURES["matching_pursuit"].Config(d_sae=40, k=12, residual_threshold=0.01, stop_on_duplicate_support=True)
