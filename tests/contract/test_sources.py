"""What every activation source promises, whichever it is. A new source is tested from its `Config.example()`."""

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_model import language_model_config

from sae_core.activations.shards import finish, harvest
from sae_core.activations.source import ActivationSource
from sae_core.activations.stream import Stream
from sae_core.config.run import SOURCES, ActivationsConfig
from sae_core.sparse.kernels.choice import using_kernels

EXAMPLES: dict[str, Callable[[Path], ActivationsConfig]] = {"language_model": language_model_config}
"""Sources that need files: how to make their config in a directory."""


@pytest.fixture(scope="module", params=list(SOURCES))
def make(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], ActivationSource]:
    """A function that makes a fresh source of one config."""
    cls = SOURCES[request.param]
    example = EXAMPLES.get(request.param)
    config = example(tmp_path_factory.mktemp("inputs")) if example else cls.Config.example()
    return lambda: cls(config)


@pytest.fixture(scope="module")
def prepared(make: Callable[[], ActivationSource], tmp_path_factory: pytest.TempPathFactory) -> tuple[ActivationSource, Path]:
    source, directory = make(), tmp_path_factory.mktemp("cache")
    source.check()
    source.prepare(directory)
    return source, directory


def test_config_survives_json(make: Callable[[], ActivationSource]) -> None:
    config = make().config
    assert type(config).model_validate_json(config.model_dump_json()) == config
    assert SOURCES[config.source].Config is type(config)


@pytest.mark.slow
def test_shards_are_finite_rows_of_width_d_in(prepared: tuple[ActivationSource, Path]) -> None:
    source, directory = prepared
    for index in range(source.n_shards(directory)):
        x = source.shard(directory, index)
        assert x.shape[1] == source.d_in
        assert x.dtype == torch.float32
        assert x.device.type == "cpu"
        assert bool(x.isfinite().all())


@pytest.mark.slow
def test_there_are_the_tokens_asked_for(prepared: tuple[ActivationSource, Path]) -> None:
    source, directory = prepared
    assert sum(len(source.shard(directory, index)) for index in range(source.n_shards(directory))) >= source.config.train_tokens
    chunks = [source.eval_chunk(directory, index, torch.zeros(source.d_in)) for index in range(source.n_eval_chunks(directory))]
    assert sum(len(chunk.x) for chunk in chunks) >= source.config.eval_tokens


@pytest.mark.slow
def test_another_worker_makes_the_same(make: Callable[[], ActivationSource], prepared: tuple[ActivationSource, Path]) -> None:
    source, directory = prepared
    other = make()
    last = source.n_shards(directory) - 1
    assert torch.equal(source.shard(directory, last), other.shard(directory, last))
    mean = torch.ones(source.d_in)
    assert torch.equal(source.eval_chunk(directory, 0, mean).x, other.eval_chunk(directory, 0, mean).x)
    assert source.fingerprint() == other.fingerprint()
    assert source.eval_fingerprint(directory) == other.eval_fingerprint(directory)


@pytest.mark.slow
def test_shards_can_be_counted_before_anything_is_prepared(
    make: Callable[[], ActivationSource], prepared: tuple[ActivationSource, Path]
) -> None:
    source, directory = make(), prepared[1]
    sizes = [len(source.shard(directory, index)) for index in range(source.n_shards(directory))]
    assert max(sizes) <= source.shard_tokens
    assert len(sizes) == -(-source.config.train_tokens // source.shard_tokens)
    assert -(-source.config.eval_tokens // source.chunk_tokens) == source.n_eval_chunks(directory)
    assert source.bytes_per_token in (2 * source.d_in, 4 * source.d_in)
    assert source.flops_per_token >= 0


@pytest.mark.slow
def test_held_out_rows_are_not_trained_on(prepared: tuple[ActivationSource, Path]) -> None:
    source, directory = prepared
    trained = {tuple(row) for row in source.shard(directory, 0)[:, :8].round(decimals=3).tolist()}
    held_out = [tuple(row) for row in source.eval_chunk(directory, 0, torch.zeros(source.d_in)).x[:, :8].round(decimals=3).tolist()]
    assert sum(row in trained for row in held_out) < 0.05 * len(held_out)


def test_chunks_hold_what_the_source_offers(prepared: tuple[ActivationSource, Path]) -> None:
    source, directory = prepared
    chunk = source.eval_chunk(directory, 0, torch.zeros(source.d_in))
    optional = {field.name for field in dataclasses.fields(chunk) if field.name != "x"}
    assert source.offers == {name for name in optional if getattr(chunk, name) is not None}


def test_chunks_with_a_model_can_be_spliced(prepared: tuple[ActivationSource, Path]) -> None:
    source, directory = prepared
    with using_kernels("reference"):  # with the fast ones, what a splice changes may be rounded
        chunk = source.eval_chunk(directory, 0, torch.zeros(source.d_in))
        baselines = (chunk.clean, chunk.zero_ablated, chunk.mean_ablated)
        if chunk.splice is None:
            assert baselines == (None, None, None)
            return
        same, worse = chunk.splice([chunk.x, torch.zeros_like(chunk.x)])
    assert same.kl.shape == chunk.x.shape[:1]
    assert float(same.kl.abs().max()) < 1e-4 < float(worse.kl.mean())
    assert all(torch.isfinite(one.ce).all() and one.ce.shape == same.ce.shape for one in (*baselines, worse))
    assert torch.equal(worse.ce, chunk.mean_ablated.ce)  # the mean given is zero


@pytest.mark.slow
def test_harvest_gives_a_stream(prepared: tuple[ActivationSource, Path]) -> None:
    source, directory = prepared
    harvest(source, directory)
    manifest = finish(source, directory)
    stream = Stream(directory, batch_size=256)
    assert (stream.d_in, stream.n_tokens, manifest.dtype) == (source.d_in, manifest.n_tokens, source.activations_dtype)
    assert next(iter(stream.batches())).shape == (256, source.d_in)


@pytest.mark.slow
def test_importing_the_sources_imports_no_heavy_library() -> None:
    heavy = ("ray", "transformer_lens", "transformers", "datasets", "wandb")
    code = f"import sys, sae_core.config.run; list(sae_core.config.run.SOURCES); print([name for name in {heavy} if name in sys.modules])"
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root, env=environment)
    assert shown.stdout.strip() == "[]"
