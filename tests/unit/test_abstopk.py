from pathlib import Path

import torch
from hand_computed import WEIGHTS, X
from small_runs import random_sae, with_weights

from sae_core.sae.base import SparseAutoencoder
from sae_core.sae.loss import LossContext


def test_latents_are_chosen_by_size_and_keep_their_signs() -> None:
    z = with_weights("abstopk", WEIGHTS, k=3).encode(X)
    kept = with_weights("abstopk", WEIGHTS, k=1).encode(X)
    norms = torch.tensor(WEIGHTS["W_dec"]).norm(dim=1)
    best = (z.abs() * norms).argmax(dim=1)
    assert (z[1] < 0).any()
    assert torch.equal(kept, z * torch.nn.functional.one_hot(best, z.shape[1]))


def test_every_token_has_k_latents_of_either_sign() -> None:
    sae, x = random_sae("abstopk", k=5), torch.randn(64, 12, generator=torch.Generator().manual_seed(0))
    latents = sae.encode(x)
    assert (latents != 0).sum(dim=1).tolist() == [5] * 64
    assert (latents < 0).any() and (latents > 0).any()
    assert float(sae.loss(x, LossContext()).l0) == 5


def test_the_list_of_latents_is_that_of_the_matrix() -> None:
    sae, x = random_sae("abstopk", k=5), torch.randn(64, 12, generator=torch.Generator().manual_seed(0))
    active, values = sae.encode_sparse(x)
    torch.testing.assert_close(active.dense(values), sae.encode(x))


def test_files_keep_the_outputs(tmp_path: Path) -> None:
    sae, x = random_sae("abstopk", k=5).to_inference(), torch.randn(64, 12, generator=torch.Generator().manual_seed(0))
    sae.save_pretrained(tmp_path / "sae")
    assert torch.equal(SparseAutoencoder.from_pretrained(tmp_path / "sae")(x), sae(x))
