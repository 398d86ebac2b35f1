from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from sae_core.activations.synthetic import SyntheticActivations, SyntheticSource


def source(**changes: object) -> SyntheticSource:
    fields = {"d_in": 256, "n_features": 8, "n_active": 2.0, "train_tokens": 20_000, "eval_tokens": 5_000}
    return SyntheticSource(SyntheticActivations.model_validate(fields | changes))


def test_shards_hold_exactly_the_tokens_asked(tmp_path: Path) -> None:
    made = source()
    assert [len(made.shard(tmp_path, i)) for i in range(made.n_shards(tmp_path))] == [16_384, 3_616]
    chunks = [made.eval_chunk(tmp_path, i, torch.zeros(256)) for i in range(made.n_eval_chunks(tmp_path))]
    assert [len(chunk.x) for chunk in chunks] == [4_096, 904]
    assert chunks[0].splice is None


def test_features_are_active_as_often_as_said(tmp_path: Path) -> None:
    made = source()
    # 8 random directions in 256 dimensions are nearly orthogonal: least squares gives the magnitudes back
    magnitudes = torch.linalg.lstsq(made.features.T, made.shard(tmp_path, 0).T).solution.T
    active = (magnitudes > 1e-3).float().mean(dim=0)
    expected = torch.arange(1, 9).rsqrt()
    assert torch.allclose(active, 2.0 * expected / expected.sum(), atol=0.02)
    assert float(magnitudes[magnitudes > 1e-3].mean()) == pytest.approx(1.0, abs=0.01)
    assert float(magnitudes[magnitudes > 1e-3].std()) == pytest.approx(0.3, abs=0.01)


def test_held_out_tokens_are_others_with_the_same_features(tmp_path: Path) -> None:
    made = source()
    held_out = made.eval_chunk(tmp_path, 0, torch.zeros(256)).x
    assert not torch.equal(held_out[:100], made.shard(tmp_path, 0)[:100])
    residual = held_out - torch.linalg.lstsq(made.features.T, held_out.T).solution.T @ made.features
    assert float(residual.norm() / held_out.norm()) < 1e-4


def test_seed_decides_everything(tmp_path: Path) -> None:
    assert torch.equal(source().shard(tmp_path, 1), source().shard(tmp_path, 1))
    assert not torch.equal(source().shard(tmp_path, 1), source(feature_seed=1).shard(tmp_path, 1))
    assert source().fingerprint() != source(feature_seed=1).fingerprint()


def test_impossible_frequency_is_refused() -> None:
    # 1 + 1/sqrt(2) = 1.707 for two features
    with pytest.raises(ValidationError, match=r"<= 1\.707 for 2 features.*n_active=2\.0"):
        source(n_features=2)
