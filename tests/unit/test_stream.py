import re
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
import torch

from sae_core.activations.shards import finish, harvest
from sae_core.activations.stream import ActivationStream, Stream, TensorStream, shuffled_rows
from sae_core.activations.synthetic import SyntheticActivations, SyntheticSource
from sae_core.config.run import NORMALIZATIONS
from sae_core.errors import ConfigError
from sae_core.sae.normalization import Affine


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("cache")
    source = SyntheticSource(SyntheticActivations(d_in=4, n_features=8, n_active=2.0, train_tokens=40_000, eval_tokens=10))
    harvest(source, directory)
    finish(source, directory)
    return directory


def first(stream: ActivationStream, n: int, start: int = 0) -> torch.Tensor:
    return torch.cat(list(islice(stream.batches(start), n)))


def numbered(n: int, batch_size: int, data_seed: int = 0) -> TensorStream:
    """Rows that tell which they are: row i is (i, 1), before scaling."""
    x = torch.stack([torch.arange(n, dtype=torch.float32), torch.ones(n)], dim=1)
    return TensorStream(x, batch_size=batch_size, data_seed=data_seed)


def row_numbers(batches: torch.Tensor) -> list[int]:
    return (batches[:, 0] / batches[:, 1]).round().int().tolist()


def test_every_epoch_has_every_row_once_in_another_order() -> None:
    rows = row_numbers(first(numbered(10, batch_size=5), 4))
    assert sorted(rows[:10]) == sorted(rows[10:]) == list(range(10))
    assert rows[:10] != rows[10:]
    assert rows[:10] != list(range(10))


def test_batches_go_on_across_the_end_of_an_epoch() -> None:
    rows = row_numbers(first(numbered(10, batch_size=4), 5))  # 20 rows, the third batch is half of each epoch
    assert sorted(rows[:10]) == sorted(rows[10:]) == list(range(10))


def test_batch_larger_than_the_data_repeats_it() -> None:
    rows = row_numbers(first(numbered(3, batch_size=7), 1))
    assert sorted(rows[:3]) == sorted(rows[3:6]) == [0, 1, 2]


@pytest.mark.parametrize("start", [1, 3, 9, 20, 47])
def test_resumed_equals_uninterrupted(cache: Path, start: int) -> None:
    stream = Stream(cache, batch_size=1_000)  # 40 batches an epoch, shards of 16,384 rows
    assert torch.equal(first(stream, start + 3)[start * 1_000 :], first(stream, 3, start=start))


def test_resuming_reads_no_skipped_shard(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream, read = Stream(cache, batch_size=100), []
    load = stream._shard
    monkeypatch.setattr(stream, "_shard", lambda index: read.append(index) or load(index))
    next(stream.batches(start=10_000))  # row 1,000,000: epoch 25, at its start
    assert len(read) == 1


def test_order_depends_on_the_data_seed_only(cache: Path) -> None:
    one, again, other = (Stream(cache, batch_size=500, data_seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first(one, 3), first(again, 3))
    assert not torch.equal(first(one, 3), first(other, 3))


def test_batch_size_cuts_the_same_sequence() -> None:
    assert row_numbers(first(numbered(50, batch_size=10), 5)) == row_numbers(first(numbered(50, batch_size=25), 2))


def test_shards_are_mixed_over_an_epoch() -> None:
    order = [shard for (shard, rows), _ in zip(shuffled_rows([3, 1, 2], 0, 0), range(6), strict=False)]
    assert sorted(order[:3]) == sorted(order[3:]) == [0, 1, 2]


def test_batches_are_scaled_to_norm_sqrt_d_in(cache: Path) -> None:
    stream = Stream(cache, batch_size=2_000)
    x = first(stream, 20)
    assert x.dtype == torch.float32
    assert float(x.norm(dim=1).mean()) == pytest.approx(stream.d_in**0.5, rel=1e-5)
    assert isinstance(stream.normalization, Affine) and isinstance(stream.normalization.inverse, float)
    assert torch.allclose(x.mean(dim=0) * stream.normalization.inverse, stream.mean, atol=1e-5)


def test_tensor_stream_scale_and_mean_by_hand() -> None:
    stream = TensorStream(torch.tensor([[3.0, 4.0], [0.0, 5.0]]), batch_size=2)
    # both norms are 5, so the scale is sqrt(2) / 5
    assert isinstance(stream.normalization, Affine) and stream.normalization.matrix == pytest.approx(2**0.5 / 5)
    assert stream.mean.tolist() == [1.5, 4.5]
    assert first(stream, 1).norm(dim=1).tolist() == pytest.approx([2**0.5, 2**0.5])


@pytest.mark.parametrize("name", ["none", "layer_norm", "whitening"])
def test_batches_are_normalised_as_asked(cache: Path, name: str) -> None:
    plain, stream = (Stream(cache, batch_size=500, normalize_activations=asked) for asked in ("none", name))
    assert stream.normalization.name == name
    assert torch.equal(first(stream, 3), stream.normalization(first(plain, 3)))


def test_statistics_are_of_the_first_rows_whatever_is_asked_of_the_stream(cache: Path) -> None:
    one, other = (
        Stream(cache, batch_size=size, data_seed=seed, normalize_activations="whitening").normalization for size, seed in ((10, 0), (99, 1))
    )
    assert isinstance(one, Affine) and isinstance(other, Affine)
    assert torch.equal(one.matrix, other.matrix) and torch.equal(one.mean, other.mean)


def test_a_normalisation_that_needs_no_statistics_reads_no_rows(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Stream, "_shard", None)
    Stream(cache, batch_size=10, normalize_activations="layer_norm")


def test_both_are_activation_streams(cache: Path) -> None:
    assert isinstance(Stream(cache, batch_size=1), ActivationStream)
    assert isinstance(numbered(3, batch_size=1), ActivationStream)


@pytest.mark.parametrize(("n_rows", "batch_size", "value"), [(0, 4, "n_tokens=0"), (4, 0, "batch_size=0")])
def test_empty_streams_are_refused(n_rows: int, batch_size: int, value: str) -> None:
    with pytest.raises(ConfigError, match=value):
        TensorStream(torch.ones(n_rows, 2), batch_size=batch_size)


@pytest.mark.parametrize("name", NORMALIZATIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_activations_in_any_precision_become_float32(dtype: torch.dtype, name: str) -> None:
    x = torch.randn(100, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    stream, same = (TensorStream(y, batch_size=10, normalize_activations=name) for y in (x, x.float()))
    assert first(stream, 3).dtype == stream.mean.dtype == torch.float32
    torch.testing.assert_close(first(stream, 3), first(same, 3), rtol=0, atol=0)
    torch.testing.assert_close(stream.mean, same.mean, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("x", "problem"),
    [
        (torch.tensor([[1.0, 2.0], [1.0, torch.nan], [torch.inf, 1.0]]), "2 of 3 rows that are not, the first of them row 1"),
        (torch.tensor([[1.0, 2.0], [1e300, 1.0]], dtype=torch.float64), "1 of 2 rows that are not, the first of them row 1"),
        (torch.zeros(3, 2), "a mean norm of 0"),
        (torch.full((3, 2), 1e-300, dtype=torch.float64), "a mean norm of 0"),
        (torch.full((3, 2), 1e30), "a mean norm of inf"),
        (torch.full((3, 2), 1e-30), "a mean norm of 0"),
    ],
)
def test_activations_that_are_no_numbers_to_train_on_are_refused(x: torch.Tensor, problem: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(problem)):
        TensorStream(x, batch_size=2)


@pytest.mark.slow
def test_integers_are_cast_and_other_shapes_refused() -> None:
    # Without the checks of types and shapes that tests run under.
    code = """
import torch
from sae_core.activations.stream import TensorStream
print(next(TensorStream(torch.tensor([[3, 4]]), batch_size=1, normalize_activations="none").batches()).tolist())
TensorStream(torch.zeros(3), batch_size=2)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "[[3.0, 4.0]]\n"
    assert "ConfigError: activations must be real numbers of shape [N, d_in], but got torch.float32 of [3]. Flatten them." in done.stderr


def test_incomplete_cache_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"manifest\.json"):
        Stream(tmp_path, batch_size=1)


@pytest.mark.gpu
def test_gpu_batches_equal_cpu_batches(cache: Path) -> None:
    on_gpu = first(Stream(cache, batch_size=1_000, device="cuda"), 45)
    assert torch.equal(on_gpu.cpu(), first(Stream(cache, batch_size=1_000), 45))
