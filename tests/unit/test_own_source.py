"""A source of one's own, in one file: what the defaults of `ActivationSource` make of three members."""

from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from sae_core.activations.shards import finish, harvest
from sae_core.activations.source import ActivationSource, EvalChunk
from sae_core.activations.stream import Stream
from sae_core.config.run import ActivationsConfig
from sae_core.errors import ConfigError


class ArrayActivations(ActivationsConfig):
    source: Literal["array"] = "array"
    path: str


class ArraySource(ActivationSource):
    Config = ArrayActivations
    path_fields = (("path",),)

    @cached_property
    def rows(self):
        return np.load(self.config.path, mmap_mode="r")

    @property
    def d_in(self):
        return self.rows.shape[1]

    def shard(self, directory, index):
        start, stop = self.train_span(index)
        return torch.tensor(self.rows[start:stop])

    def eval_chunk(self, directory, index, mean):
        start, stop = self.eval_span(index)
        first = self.config.train_tokens
        return EvalChunk(torch.tensor(self.rows[first + start : first + stop], device=self.device))


@pytest.fixture
def make(tmp_path):
    """A function that makes a source of the array at `path`."""
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).standard_normal((75_000, 8), dtype=np.float32))
    return lambda path=tmp_path / "rows.npy": ArraySource(ArrayActivations(path=str(path), train_tokens=70_000, eval_tokens=5_000))


def test_it_is_harvested_and_streamed(make, tmp_path):
    source, directory = make(), tmp_path / "cache"
    source.check()
    source.prepare(directory)
    harvest(source, directory)
    assert finish(source, directory).shard_tokens == [65_536, 70_000 - 65_536]
    assert next(iter(Stream(directory, batch_size=64).batches())).shape == (64, 8)
    chunks = [source.eval_chunk(directory, index, torch.zeros(8)).x for index in range(source.n_eval_chunks(directory))]
    assert torch.equal(torch.cat(chunks), torch.tensor(source.rows[70_000:]))
    assert (source.bytes_per_token, source.flops_per_token) == (32, 0)


def test_its_hash_is_that_of_the_content_not_of_the_path(make, tmp_path):
    before = make().fingerprint()
    moved = Path(tmp_path / "rows.npy").rename(tmp_path / "moved.npy")
    assert make(moved).fingerprint() == before
    np.save(moved, np.zeros((75_000, 8), np.float32))
    assert make(moved).fingerprint() != before


def test_a_missing_file_is_named(make, tmp_path):
    with pytest.raises(ConfigError, match=r"`path` must exist, but got .*nowhere"):
        make(tmp_path / "nowhere.npy").check()
