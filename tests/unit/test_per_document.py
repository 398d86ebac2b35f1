"""Sums per document: they are those of the whole text, taken apart."""

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from observations import Evaluated, added, made_up
from small_runs import heldout, random_sae, sae_with
from torch import Tensor

from analysis.documents import DocumentSums
from sae_core.activations.source import EvalChunk, NextToken
from sae_core.config.run import ARCHITECTURES
from sae_core.documents import Ratio, StoredDocuments
from sae_core.errors import ConfigError
from sae_core.evaluation import Measured, evaluate_chunk, measured
from sae_core.latents import densities
from sae_core.metrics import METRICS
from sae_core.metrics.metric import Observation, RatioOfSums, Terms
from sae_core.metrics.per_document import ChunkDocuments
from sae_core.records import MetricSpec
from sae_core.sae.normalization import LayerNorm

RATIOS = [name for name, metric in METRICS.items() if issubclass(metric, RatioOfSums)]
N_TOKENS = 60


def sums_of(stored: StoredDocuments) -> DocumentSums:
    """As `read_documents` gives them for one run."""
    return DocumentSums(
        ("run",), stored.documents, stored.sums["n_tokens"], {name: sums[None] for name, sums in stored.sums.items()}, stored.ratios
    )


def cut(data: Evaluated, documents: Tensor, cuts: list[int]) -> Measured:
    ends = [0, *sorted(cuts), len(data.x)]
    return added(*((data.rows(slice(start, end)), documents[start:end]) for start, end in pairwise(ends)))


@settings(max_examples=10)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=9), st.lists(st.integers(0, N_TOKENS), max_size=4))
@pytest.mark.slow
def test_documents_add_up_to_every_metric_however_the_text_is_cut(lengths: list[int], cuts: list[int]) -> None:
    data = made_up(N_TOKENS)
    documents = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    documents = torch.cat([documents, torch.full((N_TOKENS,), len(lengths))])[:N_TOKENS]
    found, whole = cut(data, documents, cuts), cut(data, documents, [])
    assert set(found.documents.ratios) == set(RATIOS)
    assert found.documents.documents.tolist() == documents.unique().tolist()
    for name in RATIOS:
        assert sums_of(found.documents).values(name)[0] == pytest.approx(found.metrics[name], rel=1e-9)
    for name, sums in whole.documents.sums.items():
        assert found.documents.sums[name] == pytest.approx(sums, rel=1e-9, abs=1e-12)


@settings(max_examples=10)
@given(st.lists(st.integers(0, 3), min_size=6, max_size=6).filter(any))
@pytest.mark.slow
def test_documents_drawn_several_times_are_a_text_that_repeats_them(weights: list[int]) -> None:
    data = made_up(N_TOKENS)
    documents = torch.arange(N_TOKENS).mul(6).div(N_TOKENS, rounding_mode="floor")
    found = sums_of(cut(data, documents, [7, 31]).documents)
    repeated = torch.cat([(documents == number).nonzero().flatten() for number, times in enumerate(weights) for _ in range(times)])
    rows = data.rows(repeated)
    expected = dict(added((rows, documents[repeated])).metrics)
    # The mean that variance is about stays that of the whole text.
    variance = float((rows.x.double() - data.x.double().mean(dim=0)).pow(2).sum())
    fvu = float((rows.x.double() - rows.x_hat.double()).pow(2).sum()) / variance
    without_latents = float((rows.x.double() - (rows.x_hat / 2).double()).pow(2).sum()) / variance
    expected |= {"fvu": fvu, "explained_variance": 1 - fvu, "fvu_without_latents": without_latents}
    drawn = {name: found.values(name, np.array([weights], dtype=float))[0, 0] for name in RATIOS}
    assert drawn == pytest.approx({name: expected[name] for name in RATIOS}, rel=1e-9)


def test_documents_need_not_lie_side_by_side() -> None:
    data = made_up(N_TOKENS)
    documents = torch.arange(N_TOKENS) % 7
    order = documents.argsort(stable=True)
    mixed, sorted_ones = cut(data, documents, [11]), cut(data.rows(order), documents[order], [30])
    for name, sums in sorted_ones.documents.sums.items():
        assert mixed.documents.sums[name] == pytest.approx(sums, rel=1e-9, abs=1e-12)


def test_by_hand() -> None:
    # Two documents of two tokens and one; errors 1, 4 and 9; mean (2, 0), so that the variances are 4 + 0 and 4.
    x = torch.tensor([[0.0, 0.0], [2.0, 0.0], [4.0, 0.0]])
    x_hat = x + torch.tensor([[0.0, 1.0], [0.0, 2.0], [0.0, 3.0]])
    data = dataclasses.replace(made_up(3, d_in=2), x=x, x_hat=x_hat)
    stored = cut(data, torch.tensor([5, 5, 8]), [1]).documents
    assert stored.documents.tolist() == [5, 8]
    assert {name: stored.sums[name].tolist() for name in ("n_tokens", "error", "variance")} == {
        "n_tokens": [2, 1],
        "error": [5, 9],
        "variance": [4, 4],
    }
    assert stored.ratios["fvu"] == Ratio({"error": 1}, {"variance": 1})


def test_without_documents_they_are_blocks_of_128_tokens_counted_on_from_chunk_to_chunk() -> None:
    x, saes = heldout(400), {"run": random_sae("topk", d_in=16)}
    chunks = [evaluate_chunk(EvalChunk(part), saes, index) for index, part in enumerate(x.split([200, 129, 71]))]
    stored = measured(reversed(chunks))["run"].documents
    assert stored.documents.tolist() == [0, 1, 2, 3, 4]
    assert stored.sums["n_tokens"].tolist() == [128, 72, 128, 1, 71]


def test_positions_whose_document_is_not_known_are_left_out() -> None:
    data = made_up(6)
    some = NextToken(torch.ones(4), torch.zeros(6))
    bare = EvalChunk(data.x, lambda x_hats: [some for _ in x_hats], some, some, some)
    saes = {"run": random_sae("topk", d_in=5)}
    found = measured([evaluate_chunk(bare, saes)])["run"]
    assert "delta_ce" in found.metrics and "delta_ce" not in found.documents.ratios and "kl" in found.documents.ratios
    known = dataclasses.replace(bare, documents=torch.tensor([0, 0, 0, 1, 1, 1]), predicted_documents=torch.tensor([0, 0, 1, 1]))
    found = measured([evaluate_chunk(known, saes)])["run"]
    assert found.documents.sums["n_predicted"].tolist() == [2, 2] and "delta_ce" in found.documents.ratios


def test_documents_of_another_length_are_refused() -> None:
    chunk = EvalChunk(torch.zeros(3, 2))
    object.__setattr__(chunk, "documents", torch.tensor([0, 0]))  # shapes are checked in tests alone
    with pytest.raises(ConfigError, match="got 2 numbers for 3 tokens"):
        ChunkDocuments.of(chunk)


def test_a_metric_of_its_own_terms_is_kept_beside_ours() -> None:
    @METRICS.register("norm_ratio")
    class NormRatio(RatioOfSums):
        spec = MetricSpec("norm_ratio", "Norm of x_hat relative to x", "", "none")
        ratio = Ratio({"error": 1}, {"squared_norm": 2})  # names that other metrics have, too

        def terms(self, seen: Observation) -> Terms:
            return {"error": seen.x_hat.double().norm(dim=-1)}

    try:
        data, documents = made_up(N_TOKENS), torch.arange(N_TOKENS) // 20
        found = cut(data, documents, [17])
    finally:
        METRICS.forget([__name__])
    expected = float(data.x_hat.double().norm(dim=1).sum() / (2 * data.x_hat.double().pow(2).sum()))
    assert found.metrics["norm_ratio"] == pytest.approx(expected)
    assert found.documents.ratios["norm_ratio"] == Ratio({"norm_ratio.error": 1}, {"squared_norm": 2})
    assert sums_of(found.documents).values("norm_ratio")[0] == pytest.approx(expected)
    assert found.documents.sums["error"].sum() == pytest.approx(float((data.x - data.x_hat).double().pow(2).sum()))


@pytest.mark.parametrize("few_active", [True, False], ids=["few active", "many active"])
@pytest.mark.parametrize("layer_norm", [False, True], ids=["as they are", "layer-normed"])
@pytest.mark.parametrize("name", list(ARCHITECTURES))
@pytest.mark.slow
def test_what_latents_explain_adds_up_to_what_the_reconstruction_does(name: str, layer_norm: bool, few_active: bool) -> None:
    sae = sae_with(few_active, name, 16, 96).eval().to_inference()
    if layer_norm:
        sae.fold(LayerNorm())
    x = heldout(1000)
    mean = x.mean(dim=0)
    found = measured([evaluate_chunk(EvalChunk(some), {"run": sae}, index, mean) for index, some in enumerate(x.split([600, 400]))])["run"]
    sae.requires_grad_(False)
    latents, x_hat = sae.reconstruct(x)
    std = x.std(dim=1, keepdim=True) if layer_norm else torch.ones(len(x), 1)
    expected = ((latents * std).double() * ((x - mean).double() @ sae.W_dec.double().T)).sum(dim=0)
    assert torch.allclose(found.latents["explained"], expected, rtol=1e-4, atol=1e-3)
    assert found.latents["times_active"].tolist() == (latents != 0).sum(dim=0).tolist()
    if not layer_norm:
        total = ((x_hat - sae.b_dec).double() * (x - mean).double()).sum()
        assert float(found.latents["explained"].sum()) == pytest.approx(float(total), rel=1e-5)


def test_without_a_mean_nothing_is_said_of_what_latents_explain() -> None:
    found = measured([evaluate_chunk(EvalChunk(heldout(50)), {"run": random_sae("topk", d_in=16)})])["run"]
    assert found.latents.keys() == {"times_active"}


def test_densities_by_hand() -> None:
    # Never; 1 of 1,000 (1e-3, the lower end of its bin); 2 of 1,000 (the next, which ends at 10^-2.5); always.
    found = densities(torch.tensor([0.0, 1.0, 2.0, 1000.0]), 1000)
    assert len(found) == 33 and sum(found) == 4
    assert {index: count for index, count in enumerate(found) if count} == {0: 1, 21: 1, 22: 1, 32: 1}
    assert densities(torch.tensor([1.0]), 10**9)[1] == 1
