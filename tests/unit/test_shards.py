import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sae_core.activations.shards import (
    ROWS_AT_A_TIME,
    damaged_files,
    finish,
    harvest,
    is_complete,
    read_manifest,
    remove_damaged,
    shard_path,
    write_shard,
)
from sae_core.activations.stream import Stream
from sae_core.activations.synthetic import SyntheticActivations, SyntheticSource
from sae_core.errors import ConfigError, DamagedFileError


@pytest.fixture
def source() -> SyntheticSource:
    return SyntheticSource(SyntheticActivations(d_in=4, n_features=8, n_active=2.0, train_tokens=40_000, eval_tokens=10))


def test_statistics_by_hand(tmp_path: Path) -> None:
    stats = write_shard(tmp_path, 0, torch.tensor([[3.0, 4.0], [0.0, 1.0]]), "float16")
    assert (stats.n_tokens, stats.norm_sum, stats.x_sum) == (2, 6.0, [3.0, 5.0])  # norms 5 and 1
    assert load_file(shard_path(tmp_path, 0))["x"].dtype == torch.float16


def test_statistics_are_of_the_stored_values(tmp_path: Path) -> None:
    stats = write_shard(tmp_path, 0, torch.tensor([[1.0001, 0.0]]), "bfloat16")  # bfloat16 has no 1.0001
    assert stats.norm_sum == 1.0


def test_overflow_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"7e\+04 in shard 3 with float16.*data\.activations_dtype: float32"):
        write_shard(tmp_path, 3, torch.tensor([[7e4, 0.0]]), "float16")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("bad", [[float("nan")], [float("inf")], [float("inf"), -float("inf")]])
def test_one_value_that_is_not_finite_is_found(bad: list[float], tmp_path: Path) -> None:
    x = torch.zeros(ROWS_AT_A_TIME + len(bad), 2)
    x[-len(bad) :, 1] = torch.tensor(bad)
    with pytest.raises(ConfigError, match="activations must be finite"):
        write_shard(tmp_path, 0, x, "float32")
    assert not is_complete(tmp_path, 0)


def test_the_largest_values_are_finite(tmp_path: Path) -> None:
    assert write_shard(tmp_path, 0, torch.full((2, 1), 3e38), "float32").x_sum == [2 * torch.tensor(3e38).double().item()]


def test_statistics_are_of_all_rows(tmp_path: Path) -> None:
    x = torch.randn(2 * ROWS_AT_A_TIME + 1, 3, generator=torch.Generator().manual_seed(0))
    assert write_shard(tmp_path, 0, x, "float32").x_sum == pytest.approx(x.double().sum(dim=0).tolist(), rel=1e-12)


def test_what_is_not_finite_is_told_with_its_row(tmp_path: Path) -> None:
    x = torch.zeros(5, 2)
    x[3:, 1] = float("nan")
    with pytest.raises(ConfigError, match="got NaN or infinity in 2 of the 5 rows of shard 7, first in row 3"):
        write_shard(tmp_path, 7, x, "float16")


def test_activations_that_are_all_0_are_refused(tmp_path: Path) -> None:
    source = SyntheticSource(SyntheticActivations(d_in=2, n_features=2, n_active=1.0, train_tokens=4, eval_tokens=1))
    write_shard(tmp_path, 0, torch.zeros(4, 2), "float32")
    with pytest.raises(ConfigError, match="activations must not all be 0, but got 4 rows of zeros"):
        finish(source, tmp_path)


def test_rows_far_from_all_others_are_counted(tmp_path: Path) -> None:
    source = SyntheticSource(SyntheticActivations(d_in=2, n_features=2, n_active=1.0, train_tokens=40, eval_tokens=1))
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]).repeat(10, 1)
    x[7] = torch.tensor([1000.0, 0.0])
    stats = write_shard(tmp_path, 0, x, "float32")
    manifest = finish(source, tmp_path)
    mean = x.mean(dim=0)
    assert stats.variance == pytest.approx(float((x - mean).square().sum()), rel=1e-6)
    assert (stats.outlier_rows, manifest.outlier_rows) == (1, 1)
    assert manifest.outlier_share == pytest.approx(float((x[7] - mean).square().sum()) / stats.variance, rel=1e-6)
    assert write_shard(tmp_path, 1, torch.randn(4096, 8, generator=torch.Generator().manual_seed(0)), "float32").outlier_rows == 0


@pytest.mark.slow
def test_whatever_is_damaged_is_found_and_made_again(source: SyntheticSource, tmp_path: Path) -> None:
    harvest(source, tmp_path)
    manifest = finish(source, tmp_path)
    files = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert damaged_files(tmp_path) == []
    for path, content in files.items():
        for place in (0, len(content) // 2, len(content) - 30):
            changed = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
            path.write_bytes(changed)
            assert damaged_files(tmp_path) == [path], (path, place)
            assert remove_damaged(tmp_path) == [path]
            harvest(source, tmp_path)
            assert finish(source, tmp_path) == manifest
            assert {path: path.read_bytes() for path in tmp_path.iterdir()} == files


def test_files_without_a_checksum_are_made_again(source: SyntheticSource, tmp_path: Path) -> None:
    harvest(source, tmp_path)
    save_file({"x": torch.zeros(3, 4)}, shard_path(tmp_path, 1))
    assert remove_damaged(tmp_path) == [shard_path(tmp_path, 1)]


def test_a_stream_reads_no_damaged_shard(source: SyntheticSource, tmp_path: Path) -> None:
    harvest(source, tmp_path)
    finish(source, tmp_path)
    for index in range(3):
        path = shard_path(tmp_path, index)
        content = bytearray(path.read_bytes())
        content[-5] ^= 8
        path.write_bytes(content)
    with pytest.raises(DamagedFileError, match=r"train-0000\d.safetensors' is damaged"):
        next(Stream(tmp_path, batch_size=8).batches())


def test_manifest_adds_up(source: SyntheticSource, tmp_path: Path) -> None:
    harvest(source, tmp_path)
    manifest = finish(source, tmp_path)
    x = torch.cat([source.shard(tmp_path, index) for index in range(3)])
    assert manifest.shard_tokens == [16_384, 16_384, 7_232]
    assert (manifest.n_tokens, manifest.d_in, manifest.dtype) == (40_000, 4, "float32")
    assert manifest.scale == pytest.approx(2.0 / float(x.norm(dim=1).mean()), rel=1e-5)  # sqrt(4) / mean norm
    assert torch.allclose(torch.tensor(manifest.mean), x.mean(dim=0), atol=1e-5)
    assert manifest.activations_hash == source.fingerprint()
    assert read_manifest(tmp_path) == manifest


def test_manifest_is_the_same_for_any_split_of_the_work(source: SyntheticSource, tmp_path: Path) -> None:
    harvest(source, tmp_path / "one")
    for indices in ([2], [0, 1]):
        harvest(source, tmp_path / "two", indices=indices)
    assert finish(source, tmp_path / "one") == finish(source, tmp_path / "two")


def test_finished_shards_are_not_made_again(source: SyntheticSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    harvest(source, tmp_path, indices=[0, 2])
    made, seen = [], []
    make = source.shard
    monkeypatch.setattr(source, "shard", lambda directory, index: made.append(index) or make(directory, index))
    harvest(source, tmp_path, on_shard=lambda index, n_tokens: seen.append((index, n_tokens)))
    assert made == [1]
    assert seen == [(0, 16_384), (1, 16_384), (2, 7_232)]


def test_interrupted_shard_is_made_again(source: SyntheticSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(path: Path, content: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("sae_core.activations.shards.write_json", interrupted)
        harvest(source, tmp_path, indices=[0])
    assert not is_complete(tmp_path, 0)
    harvest(source, tmp_path, indices=[0])
    assert is_complete(tmp_path, 0)


def test_manifest_needs_every_shard(source: SyntheticSource, tmp_path: Path) -> None:
    harvest(source, tmp_path, indices=[1])
    with pytest.raises(ValueError, match=r"missing=\[0, 2\] of 3"):
        finish(source, tmp_path)


def test_statistics_file_is_plain_json(source: SyntheticSource, tmp_path: Path) -> None:
    harvest(source, tmp_path, indices=[0])
    stats = json.loads((tmp_path / "train-00000.json").read_text())
    assert sorted(stats) == ["checksum", "n_tokens", "norm_sum", "outlier_rows", "outlier_variance", "variance", "x_sum"]
