"""Decoder rows of norm 1, and encoders aligned with their decoders: held through training, in every architecture that can."""

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from small_runs import D_IN, D_OUT, D_SAE, pairs_of, random_sae, run_of, stream_of

from sae_core.architectures.standard import StandardConfig
from sae_core.architectures.topk import TopKConfig
from sae_core.config.run import ARCHITECTURES, ArchitectureConfig
from sae_core.errors import ConfigError
from sae_core.sae.base import SparseAutoencoder
from sae_core.sae.loss import LossContext
from sae_core.training.loop import Learner, train_group

UNTIED = [name for name, cls in ARCHITECTURES.items() if not cls.Config.is_tied]
ALIGNED = {"aligned": True, "decoder_init_norm": 1.0}


def config(name: str, **fields: object) -> ArchitectureConfig:
    cls: type[ArchitectureConfig] = ARCHITECTURES[name].Config
    return cls.model_validate(cls.example(D_IN, D_SAE).model_dump() | fields)


def trained(sae: ArchitectureConfig, n_steps: int = 3) -> SparseAutoencoder:
    """After steps in which the weights move far."""
    run = run_of(sae, n_steps=n_steps, lr=3e-2)
    learner = Learner.start(run, D_IN, torch.device("cpu"))
    for _, x in zip(range(n_steps), stream_of(run).batches(), strict=False):
        learner.train_step(x)
    return learner.sae


def products(sae: SparseAutoencoder) -> torch.Tensor:
    return (sae.W_enc.T * sae.W_dec).sum(dim=1)


def assert_ones(values: torch.Tensor) -> None:
    torch.testing.assert_close(values, torch.ones(D_SAE), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", UNTIED)
def test_aligned_training_holds_the_products_and_the_norms(name: str) -> None:
    sae, start = trained(config(name, **ALIGNED)), ARCHITECTURES[name](config(name, **ALIGNED), D_IN)
    for some in (sae, start):
        assert_ones(products(some))
        assert_ones(some.W_dec.norm(dim=1))
    assert not torch.equal(sae.W_dec, start.W_dec)


@pytest.mark.parametrize("sae", [config("standard", normalize_decoder=True, decoder_init_norm=1.0), config("matching_pursuit")])
def test_rows_are_held_at_norm_1(sae: ArchitectureConfig) -> None:
    assert_ones(trained(sae).W_dec.norm(dim=1))


def test_rows_are_free_where_nothing_is_asked_for() -> None:
    sae = trained(config("standard", decoder_init_norm=1.0))
    assert ((sae.W_dec.norm(dim=1) - 1).abs() > 1e-3).any() and ((products(sae) - 1).abs() > 1e-3).any()


@pytest.mark.parametrize("fields", [ALIGNED, {"normalize_decoder": True, "decoder_init_norm": 1.0}])
def test_gradients_leave_the_constraints_alone(fields: dict[str, object]) -> None:
    sae = random_sae("standard", **fields)
    sae.constrain()
    sae.loss(torch.randn(32, 12, generator=torch.Generator().manual_seed(0)), LossContext()).total.backward()
    before = sae.W_dec.grad
    assert before is not None and sae.W_enc.grad is not None
    before = before.clone()
    sae.constrain_gradients()
    along_rows = (sae.W_dec.grad * sae.W_dec).sum(dim=1)
    torch.testing.assert_close(along_rows, torch.zeros(40), rtol=0, atol=1e-4)
    assert ((before * sae.W_dec).sum(dim=1).abs() > 1e-2).any()
    if sae.config.aligned:
        change = (sae.W_enc.grad.T * sae.W_dec + sae.W_enc.T * sae.W_dec.grad).sum(dim=1)
        torch.testing.assert_close(change, torch.zeros(40), rtol=0, atol=1e-4)


def test_what_training_leaves_satisfies_the_constraints_with_initial_values_of_the_data_and_resampling() -> None:
    sae = config("topk", decoder_init="data", **ALIGNED)
    run = run_of(sae, lr=1e-2, dead_after_tokens=64, resample_every_steps=4)
    result = train_group([run], stream_of(run))[0]
    assert result.sae is not None
    assert_ones(products(result.sae))


@pytest.mark.parametrize("name", ["standard", "topk", "matching_pursuit"])
def test_a_run_starts_from_an_sae_that_was_trained_so(name: str, tmp_path: Path) -> None:
    fields = {} if name == "matching_pursuit" else ALIGNED
    run = run_of(config(name, **fields), n_steps=3, lr=1e-2)
    train_group([run], stream_of(run))[0].exported().save_pretrained(tmp_path)
    again = run_of(config(name, **fields), n_steps=3, init_from=str(tmp_path))
    result = train_group([again], stream_of(again))[0]
    assert result.error is None and result.sae is not None
    assert_ones(result.sae.W_dec.norm(dim=1))


@pytest.mark.parametrize("fields", [ALIGNED, {"normalize_decoder": True, "decoder_init_norm": 1.0}])
def test_a_run_does_not_start_from_an_sae_that_was_trained_otherwise(fields: dict[str, object], tmp_path: Path) -> None:
    run = run_of(config("standard"), n_steps=3)
    train_group([run], stream_of(run))[0].exported().save_pretrained(tmp_path)
    again = run_of(config("standard", **fields), n_steps=3, init_from=str(tmp_path))
    with pytest.raises(ConfigError, match=r"`init_from` must have decoder rows of norm 1.* but got others in"):
        train_group([again], stream_of(again))


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("topk", {"aligned": True}, "`decoder_init_norm` must be 1 where decoder rows are held at norm 1, but got 0.1"),
        ("topk", {"aligned": True, "decoder_init_norm": "search"}, "but got 'search'"),
        ("standard", {"normalize_decoder": True}, "but got 0.1"),
        ("matching_pursuit", {"decoder_init_norm": 0.1}, "but got 0.1"),
        ("matching_pursuit", {"aligned": True}, r"no encoder of its own, but got \{'aligned': True\}"),
        ("matching_pursuit", {"encoder_init": "independent"}, "no encoder of its own, but got .*'independent'"),
    ],
)
def test_what_does_not_fit_is_refused(name: str, fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config(name, **fields)


def test_transcoders_are_not_aligned() -> None:
    run = run_of(TopKConfig(d_sae=D_SAE, k=4, aligned=True, decoder_init_norm=1.0))
    with pytest.raises(ConfigError, match="`aligned` must be left to SAEs, but got aligned=True for a transcoder"):
        train_group([run], pairs_of(run))


def test_a_transcoder_may_hold_its_rows() -> None:
    run = run_of(StandardConfig(d_sae=D_SAE, normalize_decoder=True, decoder_init_norm=1.0), n_steps=3)
    result = train_group([run], pairs_of(run))[0]
    assert result.sae is not None and result.sae.W_dec.shape[1] == D_OUT
    assert_ones(result.sae.W_dec.norm(dim=1))
