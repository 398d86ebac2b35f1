from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

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


def activity(made: SyntheticSource, n_chunks: int = 10) -> Tensor:
    """Which features are active on the held-out tokens, [N, F], as numbers."""
    chunks = [made.eval_chunk(Path(), i, torch.zeros(made.d_in)) for i in range(n_chunks)]
    return torch.cat([chunk.ground_truth.active for chunk in chunks if chunk.ground_truth]).double()


HIERARCHY = {"n_roots": 3, "n_children": 2}
CORRELATED = {"correlation": 0.6, "group_size": 3}
MANY = {"n_features": 12, "n_active": 3.0, "eval_tokens": 40_960}


def test_defaults_are_what_they_always_were(tmp_path: Path) -> None:
    # Golden losses and results of earlier versions rest on these rows.
    x = SyntheticSource(SyntheticActivations.example()).shard(tmp_path, 0)
    assert x[0, :3].tolist() == pytest.approx([0.6616987, -0.0182439, -0.8144892], abs=1e-6)
    assert x[1, :3].tolist() == pytest.approx([0.3277040, -0.3160622, 0.3372730], abs=1e-6)


def test_ground_truth_is_what_the_rows_were_made_of(tmp_path: Path) -> None:
    made = source()
    chunk = made.eval_chunk(tmp_path, 1, torch.zeros(256))
    assert chunk.ground_truth is not None
    assert torch.equal(chunk.ground_truth.directions, made.features)
    magnitudes = torch.linalg.lstsq(made.features.T, chunk.x.T).solution.T
    assert torch.equal(magnitudes.abs() > 1e-3, chunk.ground_truth.active)


@pytest.mark.parametrize("fields", [{}, HIERARCHY, CORRELATED, HIERARCHY | CORRELATED, {"zipf_exponent": 1.0}, {"zipf_exponent": 0.0}])
@pytest.mark.slow
def test_frequencies_are_those_said_whatever_the_structure(fields: dict[str, object]) -> None:
    exponent = float(fields.get("zipf_exponent", 0.5))  # type: ignore[arg-type]
    active = activity(source(**MANY, **fields))
    expected = torch.arange(1, 13, dtype=torch.float64) ** -exponent
    assert torch.allclose(active.mean(dim=0), 3.0 * expected / expected.sum(), atol=0.012)
    assert float(active.sum(dim=1).mean()) == pytest.approx(3.0, abs=0.06)


def test_children_are_active_only_where_their_parent_is() -> None:
    made = source(**MANY, **HIERARCHY)
    active = activity(made)
    assert made.parents == [None, None, None, 0, 0, 1, 1, 2, 2, 3, 3, 4]
    for child, parent in enumerate(made.parents):
        if parent is not None:
            assert bool((active[:, child] <= active[:, parent]).all())
            assert float(active[:, parent].mean()) > float(active[:, child].mean()) > 0


def test_features_of_a_group_are_active_together_and_others_independently() -> None:
    correlations = torch.corrcoef(activity(source(**MANY, **CORRELATED)).T)
    same_group = torch.arange(12)[:, None] // 3 == torch.arange(12) // 3
    assert float(correlations[same_group].min()) > 0.2
    assert float(correlations[~same_group].abs().max()) < 0.03


def test_noise_is_added_to_every_coordinate(tmp_path: Path) -> None:
    clean, noisy = (source(noise_std=std).shard(tmp_path, 0) for std in (0.0, 0.25))
    assert float((noisy - clean).std()) == pytest.approx(0.25, rel=0.01)
    assert float((noisy - clean).mean()) == pytest.approx(0, abs=1e-3)


def test_structure_keeps_every_shard_a_function_of_its_index(tmp_path: Path) -> None:
    fields = {**HIERARCHY, **CORRELATED, "noise_std": 0.1, "n_features": 12}
    first, again, other = source(**fields), source(**fields), source(**fields, feature_seed=1)
    assert not torch.equal(first.shard(tmp_path, 0)[:100], first.shard(tmp_path, 1)[:100])
    assert torch.equal(first.shard(tmp_path, 1), again.shard(tmp_path, 1))
    assert not torch.equal(first.shard(tmp_path, 1), other.shard(tmp_path, 1))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"correlation": 0.5}, r"given together, but got correlation=0\.5 and group_size=None"),
        ({"group_size": 3}, r"given together, but got correlation=0\.0 and group_size=3"),
        ({"correlation": 0.5, "group_size": 9}, r"<= n_features.*group_size=9, n_features=8 and n_roots=None"),
        ({"correlation": 0.5, "group_size": 4, **HIERARCHY}, r"<= n_roots in a hierarchy.*group_size=4, n_features=8 and n_roots=3"),
        ({"n_roots": 3}, r"given together, but got n_roots=3 and n_children=None"),
        ({"n_children": 2}, r"given together, but got n_roots=None and n_children=2"),
        ({"n_roots": 8, "n_children": 2}, r"< n_features.*n_roots=8 and n_features=8"),
        ({"zipf_exponent": 0.0, **HIERARCHY}, r"> 0 in a hierarchy.*zipf_exponent=0\.0"),
        ({"zipf_exponent": 3.0}, r"n_active=2\.0\. Lower it, raise `n_features` or lower `zipf_exponent`"),
        ({"correlation": 1.0, "group_size": 2}, r"correlation\n.*less than 1.*input_value=1\.0"),
        ({"noise_std": -1.0}, r"noise_std\n.*input_value=-1\.0"),
        ({"zipf_exponent": -0.5}, r"zipf_exponent\n.*input_value=-0\.5"),
        ({"correlation": 0.5, "group_size": 1}, r"group_size\n.*input_value=1"),
    ],
)
def test_impossible_structure_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        source(**fields)
