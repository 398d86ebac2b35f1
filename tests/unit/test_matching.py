"""Latents of two SAEs, matched by their decoders."""

import itertools

import numpy as np
import pytest
import torch
from learned_runs import of_known_features
from small_runs import random_sae

from analysis import features
from sae_core.errors import ConfigError


def shuffled(sae, order, scale=1.0):
    other = random_sae("topk", sae.d_in, sae.d_sae, k=3)
    with torch.no_grad():
        other.W_dec.copy_(sae.W_dec[order] * scale)
    return other


def test_a_shuffled_sae_is_matched_latent_by_latent():
    sae = random_sae("topk", 12, 40, k=3)
    order = torch.randperm(40)
    matches = features.match_latents(sae, shuffled(sae, order, scale=3.0))
    assert np.array_equal(order.numpy()[matches.assigned], np.arange(40))
    assert np.array_equal(matches.nearest, matches.assigned)
    assert matches.assigned_cosine == pytest.approx(np.ones(40), abs=1e-5)
    assert matches.mean_cosine == pytest.approx(1, abs=1e-5)


def test_the_assignment_is_the_best_of_all():
    one, other = random_sae("topk", 4, 6, k=2), random_sae("topk", 4, 6, seed=1, k=2)
    unit = [sae.W_dec.detach() / sae.W_dec.detach().norm(dim=1, keepdim=True) for sae in (one, other)]
    cosines = (unit[0] @ unit[1].T).double().numpy()
    best = max(itertools.permutations(range(6)), key=lambda order: cosines[np.arange(6), list(order)].sum())
    matches = features.match_latents(one, other)
    assert matches.assigned.tolist() == list(best)
    assert matches.assigned_cosine == pytest.approx(cosines[np.arange(6), list(best)], abs=1e-6)
    assert matches.nearest.tolist() == cosines.argmax(axis=1).tolist()
    assert matches.nearest_cosine == pytest.approx(cosines.max(axis=1), abs=1e-6)


def test_the_opposite_direction_is_not_the_same_latent():
    sae = random_sae("topk", 12, 12, k=3)
    assert features.match_latents(sae, shuffled(sae, torch.arange(12), scale=-1.0)).mean_cosine < 0.9


def test_latents_that_are_never_active_are_left_out(tmp_path):
    run = of_known_features(tmp_path, d_sae=40, k=3)
    with torch.no_grad():  # latents 0 and 1 are never active
        run.sae.b_enc[:2] = -1e6
    matches = features.match_latents(run, run.sae)
    dead = np.flatnonzero(run.activations.counts == 0)
    assert {0, 1} <= set(dead.tolist())
    assert (matches.nearest[dead] == -1).all() and np.isnan(matches.nearest_cosine[dead]).all() and (matches.assigned[dead] == -1).all()
    assert 0 <= matches.mean_cosine <= 1.0001


def test_wide_saes_are_matched_by_nearest_ones(monkeypatch):
    monkeypatch.setattr("analysis.features.matching.MOST_ASSIGNED", 10)
    sae = random_sae("topk", 12, 40, k=3)
    matches = features.match_latents(sae, shuffled(sae, torch.arange(40)))
    assert matches.assigned is None and matches.nearest.tolist() == list(range(40))
    some = features.match_latents(sae, shuffled(sae, torch.arange(40)), [3, 17])
    assert some.nearest[[3, 17]].tolist() == [3, 17] and (some.nearest >= 0).sum() == 2


def test_other_widths_are_refused():
    with pytest.raises(ConfigError, match="got d_in=12 and d_in=8"):
        features.match_latents(random_sae("topk", 12, 40, k=3), random_sae("topk", 8, 40, k=3))
