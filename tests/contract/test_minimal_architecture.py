"""An architecture that is its formula and no more passes the contract: dense latents, no fast path."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

import contract.test_architectures as contract
import pytest
import torch
from pydantic import Field
from small_runs import random_sae, run_of, stream_of, tokens
from torch import Tensor, nn

from sae_core.config import ARCHITECTURES, ArchitectureConfig
from sae_core.sae import LossContext, LossTerms, SparseAutoencoder, mse
from sae_core.training.loop import train_run

NAME = "minimal"


class MinimalConfig(ArchitectureConfig):
    sparsity_parameter: ClassVar[str] = "l1_coefficient"
    architecture: Literal["minimal"] = "minimal"
    l1_coefficient: Annotated[float, Field(ge=0)] = 1.0

    @classmethod
    def example(cls, d_in: int, d_sae: int) -> Self:
        return cls(d_sae=d_sae, l1_coefficient=0.5)


class Minimal(SparseAutoencoder):
    Config = MinimalConfig
    saelens_architecture = "standard"
    config: MinimalConfig

    def __init__(self, config: MinimalConfig, d_in: int, *, generator: torch.Generator | None = None) -> None:
        super().__init__(config, d_in, generator=generator)
        self.b_enc = nn.Parameter(torch.zeros(self.d_sae))

    def encode(self, x: Tensor) -> Tensor:
        return ((x - self.b_dec) @ self.W_enc + self.b_enc).relu()

    def loss(self, x: Tensor, ctx: LossContext) -> LossTerms:
        latents = self.encode(x)
        l1 = (latents @ self.W_dec.norm(dim=1)).mean()
        terms = {"mse_loss": mse(self.decode(latents), x), "l1_loss": self.config.l1_coefficient * ctx.sparsity_scale * l1}
        return LossTerms.of(terms, latents)


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    len(ARCHITECTURES)  # discovers the others
    monkeypatch.setitem(ARCHITECTURES._entries, NAME, Minimal)


@pytest.mark.parametrize(
    "check",
    [
        contract.test_shapes,
        contract.test_the_loss_is_the_sum_of_its_terms,
        contract.test_every_parameter_gets_a_finite_gradient,
        contract.test_inference_on_a_token_ignores_the_rest_of_the_batch,
        contract.test_resampled_latents_start_anew,
        contract.test_on_the_meta_device_nothing_is_drawn,
        contract.test_the_seed_decides_the_weights,
        contract.test_config_survives_a_round_trip,
    ],
)
def test_it_keeps_the_contract(check: object) -> None:
    check(NAME)  # type: ignore[operator]


def test_its_loss_is_that_of_standard() -> None:
    x = torch.randn(32, 12)
    ours, fast = random_sae(NAME).loss(x, LossContext(0.7)), random_sae("standard").loss(x, LossContext(0.7))
    torch.testing.assert_close(ours.total, fast.total)
    assert torch.equal(ours.l0, fast.l0) and torch.equal(ours.active, fast.active)


def test_it_trains_and_is_saved_as_what_saelens_knows(tmp_path: Path) -> None:
    run = run_of(NAME, n_steps=60, batch_size=128)
    result, x = train_run(run, stream_of(run)), tokens(64)
    first, last = result.history[4]["loss"], result.history[-1]["loss"]
    assert first is not None and last is not None and last < first
    sae = result.exported()
    sae.save_pretrained(tmp_path)
    loaded = SparseAutoencoder.from_pretrained(tmp_path)
    assert loaded.config.architecture == "standard"
    torch.testing.assert_close(loaded(x), sae(x))
