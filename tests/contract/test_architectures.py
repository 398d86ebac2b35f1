"""What every architecture owes: run from the registry, so a new one is tested without a line here."""

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from small_runs import D_IN, D_SAE, context_of, random_sae, run_of, stream_of, tokens
from torch import Tensor, nn
from torch.func import functional_call

from sae_core.architectures.topk_family import TopKFamily
from sae_core.config.run import ARCHITECTURES, NORMALIZATIONS, ArchitectureConfig, RunConfig
from sae_core.sae.base import SparseAutoencoder
from sae_core.sae.loss import LossContext, LossTerms
from sae_core.sae.normalization import Affine, Normalization, layer_norm
from sae_core.sparse import pre_acts
from sae_core.sparse.active import ActiveLatents
from sae_core.sparse.kernels.choice import using_kernels
from sae_core.training import initialization
from sae_core.training import loop as training
from sae_core.training.loop import Learner, TrainResult, train_group
from sae_core.training.resampling import resample

NAMES = list(ARCHITECTURES)

pytestmark = pytest.mark.parametrize("name", NAMES)


def batch(n_tokens: int = 32, d_in: int = 12) -> Tensor:
    return torch.randn(n_tokens, d_in, generator=torch.Generator().manual_seed(1))


def some_dead(d_sae: int = 40) -> Tensor:
    dead = torch.zeros(d_sae, dtype=torch.bool)
    dead[[1, 5, 7, 20]] = True
    return dead


@cache
def trained(normalize_activations: str = "expected_norm") -> dict[str, TrainResult]:
    """The example of every architecture that can be trained in these units, trained as one group."""
    names = [name for name in NAMES if takes(name, normalize_activations)]
    runs = [run_of(name, n_steps=80, batch_size=128, normalize_activations=normalize_activations) for name in names]
    return dict(zip(names, train_group(runs, stream_of(runs[0])), strict=True))


def takes(name: str, normalize_activations: str) -> bool:
    """Whether an architecture can be trained in these units."""
    return normalize_activations != "whitening" or not ARCHITECTURES[name].Config.is_tied


def in_units_of(x: Tensor, y_hat: Tensor, normalization: Normalization) -> Tensor:
    """A reconstruction of normalised activations, brought back to the units of x."""
    if isinstance(normalization, Affine):
        x_hat = normalization.map_decoder(y_hat)
        return x_hat if normalization.mean is None else x_hat + normalization.mean
    _, mean, std = layer_norm(x)
    return y_hat * std + mean


def run_with_everything(name: str) -> RunConfig:
    """Initial values from the activations, whitening, and latents that are dead after a batch without activation and are resampled."""
    example: ArchitectureConfig = ARCHITECTURES[name].Config.example(D_IN, D_SAE)
    start: dict[str, object] = {"decoder_init": "data", "b_dec_init": "geometric_median"}
    if not example.is_tied:
        start |= {"decoder_init_norm": "search", "encoder_init": "independent"}
    if example.has_coefficient:
        start |= {example.sparsity_parameter: 20.0}
    units = "layer_norm" if example.is_tied else "whitening"
    train = {"normalize_activations": units, "dead_after_tokens": 64, "resample_every_steps": 4, "resample_until": 0.7}
    return run_of(type(example).model_validate(example.model_dump() | start), lr=1e-2, **train)


@pytest.mark.slow
def test_shapes(name: str) -> None:
    sae, x = random_sae(name), batch()
    assert sae.encode(x).shape == (32, 40)
    assert sae.decode(sae.encode(x)).shape == sae(x).shape == (32, 12)
    loss = sae.loss(x, context_of(sae))
    assert loss.total.shape == loss.l0.shape == ()
    assert loss.active.shape == (40,)
    assert 0 <= float(loss.l0) <= 40


@pytest.mark.usefixtures("kernels")
@pytest.mark.slow
def test_the_loss_is_the_sum_of_its_terms(name: str) -> None:
    sae = random_sae(name)
    loss = sae.loss(batch(), context_of(sae, dead=some_dead()))
    assert "mse_loss" in loss.terms
    torch.testing.assert_close(loss.total, sum(loss.terms.values(), torch.zeros(())))


@pytest.mark.usefixtures("kernels")
def test_the_loss_changes_nothing_but_gradients(name: str) -> None:
    sae, x = random_sae(name), batch()
    before = {key: value.clone() for key, value in sae.named_parameters()}
    first, second = sae.loss(x, context_of(sae)), sae.loss(x, context_of(sae))
    assert torch.equal(first.total, second.total)
    assert all(torch.equal(value, before[key]) for key, value in sae.named_parameters())


@pytest.mark.usefixtures("kernels")
def test_every_parameter_gets_a_finite_gradient(name: str) -> None:
    sae = random_sae(name)
    sae.loss(batch(), context_of(sae, dead=some_dead())).total.backward()
    for parameter_name, parameter in sae.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all() and parameter.grad.any(), parameter_name


class LossOf(nn.Module):
    """The loss as a function of the parameters."""

    def __init__(self, sae: SparseAutoencoder) -> None:
        super().__init__()
        self.sae = sae

    def forward(self, x: Tensor, ctx: LossContext) -> Tensor:
        return self.sae.loss(x, ctx).total


def fixed_selection(sae: TopKFamily, x: Tensor) -> Callable[[Tensor, float], tuple[ActiveLatents, Tensor]]:
    """A `select` that keeps the entries chosen now: which entries win is piecewise constant, and its jumps have no derivative."""
    active = sae.select(sae.products(x), sae.config.sparsity_value)[0]

    def select(products: Tensor, k: float) -> tuple[ActiveLatents, Tensor]:
        return active, (products + sae.b_enc)[active.tokens, active.indices].detach()

    return select


@pytest.fixture(params=["matrix", "list"])
def float64(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What finite differences need: no rounding to float32, which losses do on purpose, and kernels that know float64."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    monkeypatch.setattr(pre_acts, "sparse_is_faster", lambda x: request.param == "list")
    monkeypatch.setattr(pre_acts, "SPARSE_FRACTION", 1.0)
    torch.set_default_dtype(torch.float64)
    with using_kernels("reference"):
        yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("float64")
@pytest.mark.slow
def test_gradients_are_derivatives_of_the_loss(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sae, x = random_sae(name, d_in=8, d_sae=20).double(), batch(6, 8).double()
    if isinstance(sae, TopKFamily):
        monkeypatch.setattr(sae, "select", fixed_selection(sae, x))
    parameters = {key: value.detach() for key, value in sae.named_parameters()}
    for key in parameters.keys() - sae.straight_through:
        parameters[key].requires_grad_()

    def loss(*values: Tensor) -> Tensor:
        # Clones, because a loss may put its parameters in bounds in place.
        named = {f"sae.{key}": value.clone() for key, value in zip(parameters, values, strict=True)}
        return functional_call(LossOf(sae), named, (x, context_of(sae, 0.7)))  # no dead latents: their loss takes the residual as given

    assert torch.autograd.gradcheck(loss, tuple(parameters.values()), fast_mode=True)


@pytest.mark.usefixtures("kernels")
def test_inference_on_a_token_ignores_the_rest_of_the_batch(name: str) -> None:
    sae, x = random_sae(name).eval(), batch()
    other = torch.cat([x[:1], 10 * batch(31)])
    torch.testing.assert_close(sae.encode(x)[0], sae.encode(other)[0])
    torch.testing.assert_close(sae.encode(x[:1])[0], sae.encode(x)[0])


@pytest.mark.slow
@pytest.mark.parametrize("normalize_activations", NORMALIZATIONS)
def test_inference_form_normalisation_and_files_keep_the_outputs(name: str, normalize_activations: str, tmp_path: Path) -> None:
    if not takes(name, normalize_activations):
        with pytest.raises(ValidationError, match=f"but got 'whitening' for '{name}'"):
            run_of(name, normalize_activations=normalize_activations)
        return
    result, x = trained(normalize_activations)[name], tokens(256)
    assert result.sae is not None
    y = result.normalization(x)
    assert torch.equal(y, x) == (normalize_activations == "none")
    with torch.no_grad():
        inference = result.sae.to_inference()
        latents, y_hat = inference.reconstruct(y)
        torch.testing.assert_close(y_hat, result.sae(y), rtol=1e-4, atol=1e-5)
        inference.fold(result.normalization)
        units = result.normalization.inverse if inference.config.is_tied and isinstance(result.normalization, Affine) else 1.0
        torch.testing.assert_close(inference.reconstruct(x)[0], latents * units, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(inference(x), in_units_of(x, y_hat, result.normalization), rtol=1e-4, atol=1e-5)
        inference.save_pretrained(tmp_path / "sae", {"model_name": "synthetic"})
        loaded = SparseAutoencoder.from_pretrained(tmp_path / "sae")
        assert all(torch.equal(a, b) for a, b in zip(loaded.reconstruct(x), inference.reconstruct(x), strict=True))
    assert not loaded.training
    assert inference.saelens_architecture in (None, inference.config.architecture)


@pytest.mark.slow
def test_with_every_option_packed_is_alone_and_resumed_is_uninterrupted(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(initialization, "SEARCH_TOKENS", 128)  # for speed
    resampled: list[int] = []
    monkeypatch.setattr(training, "resample", lambda *given, seed: resampled.append(int(given[2].sum())) or resample(*given, seed=seed))
    run, other = run_with_everything(name), run_with_everything("standard").model_copy(update={"seed": 1})
    other = other.model_copy(update={"train": run.train})
    alone = train_group([run], stream_of(run))[0]
    assert sum(resampled) > 0

    def stop(learners: Sequence[Learner]) -> None:
        if learners[0].step == 9:  # after the resamplings of steps 4 and 8, before that of step 12
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_group([run], stream_of(run), directory=tmp_path, checkpoint_seconds=0, on_step=stop)
    for result in (train_group([other, run], stream_of(run))[1], train_group([run], stream_of(run), directory=tmp_path)[0]):
        assert result.sae is not None and alone.sae is not None
        assert result.history == alone.history
        assert all(torch.equal(value, alone.sae.state_dict()[key]) for key, value in result.sae.state_dict().items())


def test_resampled_latents_start_anew(name: str) -> None:
    sae, fresh = random_sae(name), ARCHITECTURES[name](ARCHITECTURES[name].Config.example(12, 40), 12)
    values = sae.initial_values()
    assert values.keys() == {key for key, value in sae.named_parameters() if value.shape == (40,)}
    assert all(torch.equal(value, getattr(fresh, key)) for key, value in values.items())


def test_on_the_meta_device_nothing_is_drawn(name: str) -> None:
    cls = ARCHITECTURES[name]
    config = cls.Config.example(D_IN, D_SAE)
    with torch.device("meta"):
        sae = cls(config, D_IN)
    real = cls(config, D_IN).state_dict()
    assert all(tensor.is_meta for tensor in sae.state_dict().values())
    assert {key: value.shape for key, value in sae.state_dict().items()} == {key: value.shape for key, value in real.items()}


def test_the_seed_decides_the_weights(name: str) -> None:
    cls = ARCHITECTURES[name]

    def weights(seed: int) -> Tensor:
        sae: SparseAutoencoder = cls(cls.Config.example(D_IN, D_SAE), D_IN, generator=torch.Generator().manual_seed(seed))
        return torch.cat([parameter.detach().flatten() for parameter in sae.parameters()])

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


@pytest.mark.slow
def test_the_loss_falls(name: str) -> None:
    history = trained()[name].history
    # The sparsity warm-up (4 of 80 steps) is over at row 4; from there the loss has one definition.
    first, last = history[4]["loss"], history[-1]["loss"]
    assert first is not None and last is not None and last < 0.8 * first


@pytest.mark.usefixtures("kernels")
@pytest.mark.slow
def test_autocast_gives_nearly_the_same_loss(name: str) -> None:
    def loss(autocast: bool) -> LossTerms:
        sae = random_sae(name)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            terms = sae.loss(batch(), context_of(sae, dead=some_dead()))
        terms.total.backward()
        assert all(p.grad is not None and p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in sae.parameters())
        return terms

    exact, rounded = loss(False), loss(True)
    assert rounded.total.dtype == torch.float32
    torch.testing.assert_close(rounded.total, exact.total, rtol=0.02, atol=0)


def test_the_sparsity_parameter_is_a_field(name: str) -> None:
    config: ArchitectureConfig = ARCHITECTURES[name].Config.example(D_IN, D_SAE)
    assert config.sparsity_parameter in type(config).model_fields
    assert config.sparsity_value == getattr(config, config.sparsity_parameter)


def test_config_survives_a_round_trip(name: str) -> None:
    config: ArchitectureConfig = ARCHITECTURES[name].Config.example(D_IN, D_SAE)
    assert config.architecture == name and config.d_sae == D_SAE
    assert type(config).model_validate(config.model_dump()) == config
    assert type(config).model_validate(config.model_dump(mode="json")) == config
    assert type(config).model_validate_json(config.model_dump_json()) == config


def test_config_is_frozen_and_strict(name: str) -> None:
    cls = ARCHITECTURES[name].Config
    config = cls.example(D_IN, D_SAE)
    with pytest.raises(ValidationError, match="frozen"):
        config.d_sae = 8
    with pytest.raises(ValidationError, match="dsae"):
        cls.model_validate(config.model_dump() | {"dsae": 8})
    with pytest.raises(ValidationError, match="input_value='64'"):
        cls.model_validate(config.model_dump() | {"d_sae": "64"})
    with pytest.raises(ValidationError, match="input_value=0"):
        cls.model_validate(config.model_dump() | {"d_sae": 0})
