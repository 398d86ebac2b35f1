from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from small_runs import D_IN, random_sae, run_of, stream_of, with_weights
from torch import Tensor

from sae_core import evaluation
from sae_core.activations.source import EvalChunk, GroundTruth, NextToken
from sae_core.activations.synthetic import SyntheticActivations, SyntheticSource
from sae_core.errors import ConfigError
from sae_core.evaluation import combine, evaluate, evaluate_chunk, measure
from sae_core.metrics import METRICS
from sae_core.sae.base import SparseAutoencoder
from sae_core.training.loop import train_run

OF_SKIPS = {"fvu_without_latents"}
"""Metrics of transcoders with a skip connection."""
GROUND_TRUTH = {"mcc", "uniqueness", "feature_precision", "feature_recall", "feature_f1", "true_l0"}

# Latents relu(x - 1), decoded as they are: x = (3, 1) gives latents (2, 0) and x_hat = (2, 0).
IDENTITY = {"W_enc": [[1.0, 0.0], [0.0, 1.0]], "b_enc": [-1.0, -1.0], "W_dec": [[1.0, 0.0], [0.0, 1.0]], "b_dec": [0.0, 0.0]}


def next_token(*ce: float) -> NextToken:
    return NextToken(torch.tensor(ce), torch.tensor([0.5] * len(ce)))


def chunk(x: list[list[float]], spliced: list[Tensor] | None = None) -> EvalChunk:
    """A chunk whose language model gets worse by 1 nat whatever is spliced in; what was is appended to `spliced`."""

    def splice(x_hats: Sequence[Tensor]) -> list[NextToken]:
        assert spliced is not None
        spliced.extend(x_hats)
        return [next_token(*[3.0] * len(x)) for _ in x_hats]

    nats = {"clean": 2.0, "zero_ablated": 6.0, "mean_ablated": 5.0}
    baselines = {name: next_token(*[value] * len(x)) for name, value in nats.items()} if spliced is not None else {}
    return EvalChunk(torch.tensor(x), splice if spliced is not None else None, **baselines)


def test_activations_in_memory_are_measured_as_chunks_are() -> None:
    sae = with_weights("standard", IDENTITY)
    x = torch.tensor([[3.0, 1.0], [1.0, 3.0]])
    assert measure(sae, x) == combine([evaluate_chunk(EvalChunk(x), {"run": sae})])[0]["run"]
    with pytest.raises(ValueError, match="0 tokens"):
        measure(sae, x[:0])


def test_one_chunk_by_hand() -> None:
    spliced: list[Tensor] = []
    sae = with_weights("standard", IDENTITY)
    values, n_tokens = combine([evaluate_chunk(chunk([[3.0, 1.0], [1.0, 3.0]], spliced), {"run": sae})])
    assert n_tokens == 2
    assert spliced[0].tolist() == [[2, 0], [0, 2]]
    # Errors (1, 1) twice: mse 2. Mean (2, 2), deviations (1, -1) and (-1, 1): variance 4 over both, errors 4: fvu 1.
    expected = {"mse": 2, "fvu": 1, "explained_variance": 0, "l0": 1, "dead_fraction": 0, "reconstruction_bias": 8 / 12}
    expected |= {"ce_loss_clean": 2, "ce_loss_spliced": 3, "ce_loss_zero_ablated": 6, "ce_loss_mean_ablated": 5}
    expected |= {"delta_ce": 1, "ce_loss_recovered": 3 / 4, "kl": 0.5, "cosine": 3 / 10**0.5}
    expected |= {"decoder_projection": 3, "decoder_cosine": 0}  # the second largest of 3, 1, 1, 3; rows at right angles
    assert values == {"run": pytest.approx(expected)}
    assert set(expected) == set(METRICS) - GROUND_TRUTH - OF_SKIPS


def test_without_a_language_model_its_metrics_are_left_out() -> None:
    values, _ = combine([evaluate_chunk(chunk([[3.0, 1.0], [1.0, 3.0]]), {"run": with_weights("standard", IDENTITY)})])
    left_out = {name for name in METRICS if name.startswith("ce_loss") or name in ("delta_ce", "kl")} | GROUND_TRUTH | OF_SKIPS
    assert set(values["run"]) == set(METRICS) - left_out


def test_known_features_by_hand() -> None:
    # The SAE's rows are the features; feature 0 is active with x_0 = 3 and feature 1 with x_1 = 3, but also, too weakly, on token 2.
    truth = GroundTruth(torch.eye(2), torch.tensor([[True, False], [False, True], [False, True]]))
    first = EvalChunk(torch.tensor([[3.0, 0.0]]), ground_truth=GroundTruth(truth.directions, truth.active[:1]))
    second = EvalChunk(torch.tensor([[0.0, 3.0], [0.0, 0.5]]), ground_truth=GroundTruth(truth.directions, truth.active[1:]))
    sae = with_weights("standard", IDENTITY)
    values, _ = combine([evaluate_chunk(first, {"run": sae}, 0), evaluate_chunk(second, {"run": sae}, 1)])
    # Latent 1 misses one of its two tokens: precision 1, recall 1/2, F1 2/3.
    expected = {"mcc": 1, "uniqueness": 1, "feature_precision": 1, "feature_recall": 3 / 4, "feature_f1": 5 / 6, "true_l0": 1}
    assert {name: values["run"][name] for name in GROUND_TRUTH} == pytest.approx(expected)


def test_chunks_add_up_to_the_same_values_in_any_order() -> None:
    x = torch.randn(40, 12)
    saes = {"a": random_sae("standard"), "b": random_sae("gated")}
    whole, _ = combine([evaluate_chunk(EvalChunk(x), saes)])
    parts = [evaluate_chunk(EvalChunk(part), saes, index) for index, part in enumerate(x.split([7, 1, 20, 12]))]
    (forward, n_tokens), (backward, _) = combine(parts), combine(reversed(parts))
    assert n_tokens == 40
    assert forward == backward  # bit for bit: chunks are added in the order of their index
    for name, values in whole.items():
        known = {key: value for key, value in values.items() if value is not None and not METRICS[key].first_chunk_only}
        assert {key: forward[name][key] for key in known} == pytest.approx(known, rel=1e-5)


def test_rows_encoded_at_a_time_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(40, 12)
    saes = {"a": random_sae("topk"), "b": random_sae("jumprelu")}
    whole, _ = combine([evaluate_chunk(EvalChunk(x), saes)])
    monkeypatch.setitem(evaluation.ROWS, "cpu", 7)
    in_parts, _ = combine([evaluate_chunk(EvalChunk(x), saes)])
    for name in saes:
        assert in_parts[name] == pytest.approx(whole[name], rel=1e-5)


def test_no_gradient_is_kept() -> None:
    sums = evaluate_chunk(EvalChunk(torch.randn(8, 12)), {"run": random_sae("standard")}).by_sae["run"]
    assert not any(value.requires_grad for metric in (*sums.metrics.values(), sums.documents) for value in metric.values())


def test_nothing_to_evaluate_raises() -> None:
    with pytest.raises(ValueError, match="at least one token, but got 0 chunks with 0 tokens"):
        combine([])


@pytest.mark.slow
def test_a_source_is_evaluated_on_all_its_held_out_chunks(tmp_path: Path) -> None:
    source = SyntheticSource(SyntheticActivations(train_tokens=100, eval_tokens=6000, d_in=D_IN, n_features=32, n_active=3.0))
    assert source.n_eval_chunks(tmp_path) == 2
    saes: dict[str, SparseAutoencoder] = {}
    for name in ("standard", "topk"):
        result = train_run(run_of(name, n_steps=60, lr=3e-3), stream_of(run_of(name)))
        saes[name] = result.exported()
    measured = evaluate(saes, source, tmp_path, torch.zeros(D_IN))
    assert measured.keys() == saes.keys() and all(found.n_tokens == 6000 for found in measured.values())
    for found in measured.values():
        fvu, l0 = found.metrics["fvu"], found.metrics["l0"]
        assert fvu is not None and l0 is not None and 0 < fvu < 0.8 and 1 < l0 < 64


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_held_out_activations_that_are_not_finite_are_blamed_and_not_the_sae(value: float) -> None:
    with pytest.raises(ConfigError, match=r"held-out activations must be finite, but got 1 of 3 rows that are not in chunk 7, .* row 2"):
        evaluate_chunk(chunk([[3.0, 1.0], [1.0, 1.0], [value, 1.0]]), {"a": with_weights("standard", IDENTITY)}, index=7)


def test_an_sae_for_activations_of_another_width_is_refused() -> None:
    with pytest.raises(ConfigError, match="got d_in=2 of SAE 'a' and activations of 3"):
        evaluate_chunk(chunk([[3.0, 1.0, 2.0]]), {"a": with_weights("standard", IDENTITY)})
