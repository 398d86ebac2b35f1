"""Small SAEs, activations and runs for the tests of `sae_core`: known features, a few seconds of training at most."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae_core.activations.stream import TensorStream
from sae_core.activations.synthetic import SyntheticActivations, SyntheticSource
from sae_core.config.run import ARCHITECTURES, ArchitectureConfig, RunConfig, TrainConfig
from sae_core.sae.base import SparseAutoencoder
from sae_core.sae.loss import LossContext

D_IN, D_OUT, D_SAE = 16, 10, 64


def activations_config(n_tokens: int) -> SyntheticActivations:
    """Sums of about three of 32 features in 16 dimensions."""
    return SyntheticActivations(train_tokens=n_tokens, eval_tokens=512, d_in=D_IN, n_features=32, n_active=3.0)


def tokens(n_tokens: int) -> Tensor:
    """[n_tokens, D_IN], unscaled."""
    return SyntheticSource(activations_config(n_tokens)).shard(Path(), 0)


def targets(x: Tensor) -> Tensor:
    """What a transcoder is to make of tokens x: an MLP of them, [N, D_OUT], of a mean that is not 0."""
    first, second = (
        torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) for seed, shape in ((0, (D_IN, 32)), (1, (32, D_OUT)))
    )
    return (x @ first).relu() @ second / 5 + 0.3


def heldout(n_tokens: int) -> Tensor:
    """Further tokens with the same features, [n_tokens, D_IN], unscaled."""
    config = activations_config(1).model_copy(update={"eval_tokens": n_tokens})
    return SyntheticSource(config).eval_chunk(Path(), 0, torch.zeros(D_IN)).x


def run_of(sae: str | ArchitectureConfig, *, n_steps: int = 20, batch_size: int = 64, seed: int = 0, **train: Any) -> RunConfig:
    """A run; `sae` is a config, or a name for the architecture's example. The rest goes into `TrainConfig`."""
    config = ARCHITECTURES[sae].Config.example(D_IN, D_SAE) if isinstance(sae, str) else sae
    schedule = TrainConfig(batch_size=batch_size, **train)
    return RunConfig(activations=activations_config(n_steps * batch_size), sae=config, train=schedule, seed=seed)


def stream_of(run: RunConfig, n_tokens: int = 4096) -> TensorStream:
    """The stream every run of the same batch size and normalisation shares."""
    train = run.train
    return TensorStream(
        tokens(n_tokens), batch_size=train.batch_size, data_seed=run.data_seed, normalize_activations=train.normalize_activations
    )


def pairs_of(run: RunConfig, n_tokens: int = 4096) -> TensorStream:
    """As `stream_of`, of pairs: what transcoders are trained on."""
    x, train = tokens(n_tokens), run.train
    return TensorStream(
        x,
        target=targets(x),
        batch_size=train.batch_size,
        data_seed=run.data_seed,
        normalize_activations=train.normalize_activations,
    )


def context_of(sae: SparseAutoencoder, *args: Any, **fields: Any) -> LossContext:
    """A `LossContext` with these fields, and with the architecture's further coefficients as they are after their warm-ups."""
    return LossContext(*args, coefficients={name: of.value for name, of in sae.config.coefficients.items()}, **fields)


def with_weights(name: str, weights: dict[str, list[Any]], **fields: Any) -> SparseAutoencoder:
    """An SAE with these weights, for arithmetic by hand."""
    d_sae, d_in = len(weights["W_dec"]), len(weights["b_dec"])
    sae: SparseAutoencoder = ARCHITECTURES[name](ARCHITECTURES[name].Config(d_sae=d_sae, **fields), d_in)
    sae.load_state_dict({key: torch.tensor(value) for key, value in weights.items()}, strict=False)
    return sae


def sae_with(few_active: bool, name: str, d_in: int, d_sae: int, **fields: Any) -> SparseAutoencoder:
    """Few latents active on a token, about 4 of 96, or most of them."""
    if ARCHITECTURES[name].Config.example(d_in, d_sae).sparsity_parameter == "k":
        return random_sae(name, d_in, d_sae, k=4 if few_active else 60, **fields)
    sae = random_sae(name, d_in, d_sae, **fields)
    with torch.no_grad():
        for bias in ("b_enc", "b_gate"):
            if hasattr(sae, bias):
                getattr(sae, bias).add_(-0.7 if few_active else 0.3)
    return sae


def random_sae(name: str, d_in: int = 12, d_sae: int = 40, seed: int = 0, *, d_out: int | None = None, **fields: Any) -> SparseAutoencoder:
    """An SAE, or with `d_out` a transcoder, whose every parameter is away from its initial value; thresholds between 0.05 and 0.15."""
    cls = ARCHITECTURES[name]
    config = cls.Config.model_validate(cls.Config.example(d_in, d_sae).model_dump() | fields)
    generator = torch.Generator().manual_seed(seed)
    sae: SparseAutoencoder = cls(config, d_in, *([] if d_out is None else [d_out]), generator=generator)
    with torch.no_grad():
        for parameter_name, parameter in sae.named_parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
            if parameter_name == "threshold":
                parameter.copy_(0.05 + 0.1 * torch.rand(parameter.shape, generator=generator))
    return sae
