"""What is broken in an SAE is noticed, whatever the architecture and the kernels: a byte of its files, or a weight that is not a number."""

import json
import os
import random
import re
from collections.abc import Sequence
from itertools import count
from pathlib import Path

import pytest
import torch
from small_runs import D_IN, heldout, random_sae, run_of, stream_of
from torch import Tensor

from sae_core.activations.source import EvalChunk
from sae_core.config.run import ARCHITECTURES
from sae_core.errors import ConfigError
from sae_core.evaluation import combine, evaluate_chunk
from sae_core.sae.base import SparseAutoencoder
from sae_core.training.loop import Learner, train_group

NAMES = list(ARCHITECTURES)
FLIPS = 150
"""Bytes of each file that are flipped, one at a time."""


def outputs(sae: SparseAutoencoder) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        return sae.reconstruct(torch.randn(8, 12, generator=torch.Generator().manual_seed(1)))


@pytest.mark.slow
@pytest.mark.parametrize("file", ["cfg.json", "sae_weights.safetensors"])
@pytest.mark.parametrize("name", NAMES)
def test_a_flipped_byte_is_refused_or_changes_nothing(name: str, file: str, tmp_path: Path) -> None:
    random_sae(name).to_inference().save_pretrained(tmp_path, {"model_name": "demo"})
    expected, path = outputs(SparseAutoencoder.from_pretrained(tmp_path)), tmp_path / file
    content, draw, now = path.read_bytes(), random.Random(0), count(path.stat().st_mtime_ns + 1)
    refused = 0
    for place in draw.sample(range(len(content)), min(FLIPS, len(content))):
        flipped = bytearray(content)
        flipped[place] ^= draw.randrange(1, 256)
        path.write_bytes(flipped)
        os.utime(path, ns=(0, next(now)))  # files that are written this fast can have the same time
        try:
            found = outputs(SparseAutoencoder.from_pretrained(tmp_path))
        except ConfigError as error:
            assert str(path) in str(error) or file == "cfg.json"
            refused += 1
        else:
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)), f"{place=}"
    assert refused > 0.5 * min(FLIPS, len(content))


def broken(name: str, weight: str, value: float) -> SparseAutoencoder:
    """An SAE in inference form with weights that are not finite."""
    sae = random_sae(name, D_IN).to_inference()
    if weight not in sae.state_dict():
        pytest.skip("encoder and decoder are tied")
    with torch.no_grad():
        sae.state_dict()[weight][..., 3] = value
    return sae


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("weight", ["W_enc", "W_dec", "b_dec"])
@pytest.mark.parametrize("name", NAMES)
def test_an_sae_with_a_weight_that_is_not_finite_is_neither_measured_nor_saved(
    name: str, weight: str, value: float, tmp_path: Path
) -> None:
    sae, x = broken(name, weight, value), heldout(64)
    with pytest.raises(ConfigError, match=rf"SAE 'a' cannot be measured: .* got \{{'{weight}': \d+\}} numbers that are not"):
        evaluate_chunk(EvalChunk(x), {"a": sae})
    with pytest.raises(ConfigError, match=rf"got \{{'{weight}': \d+\}} numbers"):
        sae.save_pretrained(tmp_path / "sae")


@pytest.mark.slow
@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", NAMES)
def test_training_that_ends_with_a_weight_that_is_not_finite_has_failed(name: str, value: float) -> None:
    run = run_of(name)
    weight = "W_dec" if run.sae.is_tied else "W_enc"

    def at_the_end(learners: Sequence[Learner]) -> None:
        if learners[0].step == run.n_steps:
            learners[0].sae.get_parameter(weight).data[0, 3] = value

    result, other = train_group([run, run_of("standard", seed=1)], stream_of(run), on_step=at_the_end)
    assert result.sae is None and result.error is not None
    assert result.error["type"] == "DivergedError"
    assert re.match(f"run {run.run_id} ended with .*weights of an SAE must be finite, but got {{'{weight}': 1}}", result.error["message"])
    assert other.sae is not None and other.error is None


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("name", NAMES)
def test_metrics_that_overflow_have_no_value(name: str) -> None:
    sae = random_sae(name, D_IN).to_inference()
    with torch.no_grad():
        sae.W_dec.fill_(3e38)
    values, _ = combine([evaluate_chunk(EvalChunk(heldout(64)), {"a": sae})])
    assert values["a"]["l0"] is not None and values["a"]["mse"] is None and values["a"]["fvu"] is None
    assert json.loads(json.dumps(values, allow_nan=False)) == values


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_activations_in_any_precision_are_cast(name: str, layer_norm: bool, dtype: torch.dtype) -> None:
    sae = random_sae(name).to_inference()
    sae.layer_norm = layer_norm
    x = (4 * torch.randn(8, 12, generator=torch.Generator().manual_seed(1))).to(dtype)
    with torch.no_grad():
        for method in (sae.encode, sae.reconstruct, sae.forward):
            found, expected = method(x), method(x.float())
            pairs = [(found, expected)] if isinstance(found, Tensor) else zip(found, expected, strict=True)
            assert all(a.dtype == torch.float32 and torch.equal(a, b) for a, b in pairs)
        active, _, x_hat = sae.reconstruct_sparse(x)
        assert torch.equal(x_hat, sae.reconstruct_sparse(x.float())[2])
        assert torch.equal(active.mask(), sae.reconstruct(x.float())[0] != 0)
