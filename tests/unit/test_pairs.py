"""Pairs of activations, for transcoders: in memory, in a cache, in training and in measurements."""

import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import run_of
from torch import Tensor

from sae_core.activations.shards import finish, harvest, make_again, read_manifest, shard_path
from sae_core.activations.source import ActivationSource, EvalChunk, NextToken
from sae_core.activations.stream import Stream, TensorStream
from sae_core.activations.synthetic import SyntheticActivations, SyntheticSource
from sae_core.config.run import ARCHITECTURES
from sae_core.errors import ConfigError
from sae_core.evaluation import evaluate_chunk, measured
from sae_core.latents import EXPLAINED
from sae_core.sae.base import SparseAutoencoder
from sae_core.sae.normalization import PairNormalization
from sae_core.training.loop import train_run

D_IN, D_OUT = 6, 4
GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(512, D_IN, generator=GENERATOR) * 3 + 1
Y = (X @ torch.randn(D_IN, D_OUT, generator=GENERATOR)).relu() * 20 - 5


class Pairs(ActivationSource):
    """X and Y, in shards of 200 rows."""

    Config = SyntheticActivations
    d_in, d_out = D_IN, D_OUT
    shard_tokens = 200

    def shard(self, directory: Path, index: int) -> Tensor:
        return torch.cat([X, Y], dim=1)[slice(*self.train_span(index))]

    def eval_chunk(self, directory: Path, index: int, mean: Tensor) -> EvalChunk:
        return EvalChunk(X, target=Y)


def source() -> Pairs:
    return Pairs(SyntheticActivations(d_in=D_IN, n_features=8, n_active=2.0, train_tokens=512, eval_tokens=100))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    harvest(source(), tmp_path)
    finish(source(), tmp_path)
    return tmp_path


def rows(stream: Stream | TensorStream, n: int = 4, start: int = 0) -> Tensor:
    return torch.cat(list(islice(stream.batches(start), n)))


def stream(name: str = "expected_norm") -> TensorStream:
    return TensorStream(X, target=Y, batch_size=128, normalize_activations=name)


@pytest.mark.parametrize("name", ["expected_norm", "whitening", "none"])
def test_each_part_is_normalized_by_its_own_statistics_and_rows_stay_pairs(name: str) -> None:
    pairs = stream(name)
    assert (pairs.d_in, pairs.d_out) == (D_IN, D_OUT)
    assert isinstance(pairs.normalization, PairNormalization)
    alone = [TensorStream(part, batch_size=128, normalize_activations=name) for part in (X, Y)]
    assert torch.equal(rows(pairs), torch.cat([rows(one) for one in alone], dim=1))


def test_pairs_resume_anywhere() -> None:
    assert torch.equal(rows(stream(), 6)[128 * 3 :], rows(stream(), 3, start=3))


def test_what_has_another_scale_for_each_token_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"same map for every token .* but got 'layer_norm'"):
        stream("layer_norm")


def test_every_row_needs_its_target() -> None:
    with pytest.raises(ConfigError, match="but got 512 rows and 511 targets"):
        TensorStream(X, target=Y[:-1], batch_size=8)
    with pytest.raises(ConfigError, match=r"targets must be finite .* but got 1 of 512 rows"):
        TensorStream(X, target=Y.clone().index_fill_(0, torch.tensor([3]), torch.nan), batch_size=8)


def test_a_cache_of_pairs_says_both_widths_and_scales(cache: Path) -> None:
    manifest = read_manifest(cache)
    assert (manifest.d_in, manifest.d_out, manifest.shard_tokens) == (D_IN, D_OUT, [200, 200, 112])
    assert manifest.scale == pytest.approx(D_IN**0.5 / float(X.norm(dim=1).mean()))
    assert manifest.target_scale == pytest.approx(D_OUT**0.5 / float(Y.norm(dim=1).mean()))
    assert manifest.target_mean == pytest.approx(Y.mean(dim=0).tolist(), rel=1e-5)
    assert source().bytes_per_token == 4 * (D_IN + D_OUT)


@pytest.mark.parametrize("name", ["expected_norm", "whitening"])
def test_a_cached_stream_of_pairs_has_the_units_of_one_in_memory(cache: Path, name: str) -> None:
    cached = Stream(cache, batch_size=512, normalize_activations=name)
    in_memory = TensorStream(X, target=Y, batch_size=512, normalize_activations=name)
    found, expected = (batch[batch[:, 0].argsort()] for batch in (rows(cached, 1), rows(in_memory, 1)))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_shards_of_pairs_that_are_not_stored_are_made_again(cache: Path) -> None:
    shard_path(cache, 1).unlink()
    assert torch.equal(make_again(source(), cache, 1, "float32"), torch.cat([X, Y], dim=1)[200:400])
    assert torch.equal(rows(Stream(cache, batch_size=100, source=source())), rows(Stream(cache, batch_size=100, source=source())))


def test_caches_of_activations_alone_say_nothing_of_pairs(tmp_path: Path) -> None:
    alone = SyntheticSource(SyntheticActivations(d_in=D_IN, n_features=8, n_active=2.0, train_tokens=512, eval_tokens=100))
    harvest(alone, tmp_path)
    finish(alone, tmp_path)
    assert not {"d_out", "target_scale", "target_norm_sum"} & {
        key for file in tmp_path.glob("*.json") for key in json.loads(file.read_text())
    }
    manifest = read_manifest(tmp_path)
    assert manifest.d_out is None and manifest.target_mean == manifest.mean


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("gated", {}, "`architecture` of a transcoder must be one of .*, but got 'gated'"),
        (
            "topk",
            {"resample_every_steps": 20, "dead_after_tokens": 64},
            "`resample_every_steps` must be left out of transcoders, but got .*20",
        ),
    ],
)
def test_what_is_for_saes_alone_is_refused(name: str, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        train_run(run_of(name, n_steps=40, **changes), stream())


def linear_transcoder(*, skips: bool) -> SparseAutoencoder:
    """Latents relu(x), each of which writes a row of W_dec, b_dec = 1, and a skip connection of half of the first coordinate."""
    kind = ARCHITECTURES["standard"]
    sae: SparseAutoencoder = kind(kind.Config(d_sae=2, l1_coefficient=1.0, skip_connection=skips), 2, 1).eval()
    weights: dict[str, Tensor] = {
        "W_enc": torch.eye(2),
        "b_enc": torch.zeros(2),
        "W_dec": torch.tensor([[1.0], [-2.0]]),
        "b_dec": torch.ones(1),
    }
    sae.load_state_dict(weights | ({"W_skip": torch.tensor([[0.5, 0.0]])} if skips else {}))
    return sae


@pytest.mark.parametrize("skips", [False, True])
def test_metrics_compare_with_the_target(skips: bool) -> None:
    x, y = torch.tensor([[2.0, -1.0], [0.0, 3.0], [1.0, 1.0]]), torch.tensor([[4.0], [-5.0], [1.0]])
    # relu(x) @ W_dec + 1 is 3, -5, 0, and the skip connection adds 1, 0, 0.5.
    skipped = np.array([1.0, 0.0, 0.5]) if skips else np.zeros(3)
    y_hat, without = np.array([3.0, -5.0, 0.0]) + skipped, 1.0 + skipped
    spliced: list[Tensor] = []

    def splice(y_hats: Sequence[Tensor]) -> list[NextToken]:
        spliced.extend(y_hats)
        return [NextToken(torch.ones(3), torch.zeros(3)) for _ in y_hats]

    scores = NextToken(torch.ones(3), torch.zeros(3))
    chunk = EvalChunk(x, splice, scores, scores, scores, target=y)
    mean = torch.tensor([0.5])
    found = measured([evaluate_chunk(chunk, {"run": linear_transcoder(skips=skips)}, mean=mean)])["run"]
    assert spliced[0].flatten().tolist() == y_hat.tolist()
    target = y.flatten().numpy()
    variance = ((target - target.mean()) ** 2).sum()
    assert found.metrics["fvu"] == pytest.approx(((target - y_hat) ** 2).sum() / variance)
    assert found.metrics["mse"] == pytest.approx(((target - y_hat) ** 2).mean())
    assert found.metrics["reconstruction_bias"] == pytest.approx((y_hat**2).sum() / (target * y_hat).sum())
    assert found.metrics["l0"] == pytest.approx(4 / 3)
    assert found.metrics.get("fvu_without_latents") == (pytest.approx(((target - without) ** 2).sum() / variance) if skips else None)
    # sum over tokens of a * W_dec * (y - mean): 2 * 3.5 + 1 * 0.5 and -2 * (3 * -5.5 + 1 * 0.5)
    assert found.latents[EXPLAINED].tolist() == pytest.approx([7.5, 32.0])


def test_saes_are_not_measured_on_pairs_nor_transcoders_on_activations_alone() -> None:
    transcoder = {"run": linear_transcoder(skips=False)}
    with pytest.raises(ConfigError, match="d_out=1 of 'run' and d_out=None"):
        evaluate_chunk(EvalChunk(torch.ones(3, 2)), transcoder)
    with pytest.raises(ConfigError, match="d_out=1 of 'run' and d_out=3"):
        evaluate_chunk(EvalChunk(torch.ones(3, 2), target=torch.ones(3, 3)), transcoder)
    with pytest.raises(ConfigError, match="but got 2 rows for 3 tokens in chunk 0"):
        chunk = EvalChunk(torch.ones(3, 2), target=torch.ones(3, 1))
        object.__setattr__(chunk, "target", torch.ones(2, 1))  # in tests its constructor checks shapes
        evaluate_chunk(chunk, transcoder)
    with pytest.raises(ConfigError, match="held-out activations must be finite, but got 1 of 3 rows"):
        broken = torch.tensor([[1.0], [torch.nan], [1.0]])
        evaluate_chunk(EvalChunk(torch.ones(3, 2), target=broken), transcoder)
