"""What every architecture that `transcodes` owes as a transcoder, with and without a skip connection: run from the registry."""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import D_IN, D_OUT, D_SAE, heldout, pairs_of, random_sae, run_of, stream_of, targets, tokens
from torch import Tensor

from sae_core.config.run import ARCHITECTURES, ArchitectureConfig, RunConfig
from sae_core.errors import ConfigError
from sae_core.sae.base import SparseAutoencoder
from sae_core.sae.loss import LossContext
from sae_core.sae.normalization import PairNormalization
from sae_core.training import initialization
from sae_core.training.loop import Learner, TrainResult, train_group

NAMES = [name for name, cls in ARCHITECTURES.items() if cls.transcodes]
SKIPS = [False, True]
NORMALIZATIONS = ["expected_norm", "none", "whitening"]

transcoders = pytest.mark.parametrize("name", NAMES)
with_and_without_skip = pytest.mark.parametrize("skip", SKIPS, ids=["plain", "skip"])


def transcoder(name: str, skip: bool, d_out: int = 9, **fields: Any) -> SparseAutoencoder:
    return random_sae(name, d_out=d_out, skip_connection=skip, **fields)


def batch(d: int = 12, n_tokens: int = 32) -> Tensor:
    return torch.randn(n_tokens, d, generator=torch.Generator().manual_seed(d))


def some_dead(n_dead: int) -> Tensor:
    dead = torch.zeros(40, dtype=torch.bool)
    dead[torch.randperm(40, generator=torch.Generator().manual_seed(0))[:n_dead]] = True
    return dead


def config_of(name: str, skip: bool, **fields: object) -> ArchitectureConfig:
    """The example, as a definition of transcoders makes it."""
    cls = ARCHITECTURES[name].Config
    config: ArchitectureConfig = cls.model_validate(
        cls.example(D_IN, D_SAE).model_dump() | {"skip_connection": skip, **cls.transcoder_start} | fields
    )
    return config


@cache
def trained(normalize_activations: str) -> dict[tuple[str, bool], TrainResult]:
    cases = [(name, skip) for name in NAMES for skip in SKIPS]
    train = {"n_steps": 80, "batch_size": 128, "lr": 4e-3, "normalize_activations": normalize_activations}
    runs = [run_of(config_of(name, skip), **train) for name, skip in cases]
    return dict(zip(cases, train_group(runs, pairs_of(runs[0])), strict=True))


@transcoders
@with_and_without_skip
def test_shapes(name: str, skip: bool) -> None:
    sae, x = transcoder(name, skip), batch()
    assert (sae.d_in, sae.d_out, sae.sizes) == (12, 9, (12, 9))
    shapes = {key: tuple(value.shape) for key, value in sae.named_parameters()}
    assert {
        "W_enc": (12, 40),
        "b_enc": (40,),
        "W_dec": (40, 9),
        "b_dec": (9,),
        **({"W_skip": (9, 12)} if skip else {}),
    }.items() <= shapes.items()
    assert ("W_skip" in shapes) == skip
    latents, y_hat = sae.reconstruct(x)
    assert latents.shape == (32, 40) and y_hat.shape == sae(x).shape == sae.decode(latents).shape == (32, 9)
    assert "d_out=9" in repr(sae) and "transcoder" in sae._repr_html_()


@transcoders
@with_and_without_skip
def test_b_dec_is_of_the_output_alone(name: str, skip: bool) -> None:
    sae, x = transcoder(name, skip).eval(), batch()
    latents, y_hat = sae.reconstruct(x)
    with torch.no_grad():
        sae.b_dec += 3
    again, shifted = sae.reconstruct(x)
    assert torch.equal(latents, again)
    torch.testing.assert_close(shifted, y_hat + 3)


@pytest.mark.usefixtures("kernels")
@transcoders
@with_and_without_skip
def test_every_parameter_gets_a_finite_gradient(name: str, skip: bool) -> None:
    sae = transcoder(name, skip)
    loss = sae.loss(batch(), LossContext(dead=some_dead(4), target=batch(9)))
    torch.testing.assert_close(loss.total, sum(loss.terms.values(), torch.zeros(())))
    loss.total.backward()
    for key, parameter in sae.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), key


def gradients(sae: SparseAutoencoder, x: Tensor, ctx: LossContext) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The terms of a loss, and the gradients of its total."""
    loss = sae.loss(x, ctx)
    loss.total.backward()
    return loss.terms, {key: value.grad for key, value in sae.named_parameters() if value.grad is not None}


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("n_dead", [0, 4, 11])
@transcoders
def test_a_transcoder_of_x_to_x_is_the_sae_that_reads_without_b_dec(name: str, n_dead: int) -> None:
    sae, same = random_sae(name), transcoder(name, False, d_out=12)
    with torch.no_grad():
        for key, value in sae.state_dict().items():
            same.state_dict()[key].copy_(value)
        same.b_enc -= sae.b_dec @ sae.W_enc
    x, dead = batch(), some_dead(n_dead) if n_dead else None
    (terms, grads), (wanted, wanted_grads) = (
        gradients(sae, x, LossContext(0.7, dead)),
        gradients(same, x, LossContext(0.7, dead, target=x)),
    )
    torch.testing.assert_close(terms, wanted, rtol=1e-5, atol=1e-5)
    # The SAE's b_dec and W_enc have a part in the reading that the transcoder's do not.
    for key in wanted_grads.keys() - {"b_dec", "W_enc"}:
        torch.testing.assert_close(wanted_grads[key], grads[key], rtol=1e-4, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}")
    torch.testing.assert_close(grads["W_enc"], wanted_grads["W_enc"] - torch.outer(sae.b_dec, wanted_grads["b_enc"]), rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("kernels")
@transcoders
def test_outputs_that_are_always_0_change_nothing(name: str) -> None:
    narrow, wide = transcoder(name, True, d_out=9), transcoder(name, True, d_out=14)
    with torch.no_grad():
        for key, value in narrow.state_dict().items():
            into = wide.state_dict()[key].zero_()
            into[tuple(slice(n) for n in value.shape)].copy_(value)
    x, y = batch(), batch(9)
    (terms, grads), (wanted, wanted_grads) = (
        gradients(wide, x, LossContext(target=torch.nn.functional.pad(y, (0, 5)))),
        gradients(narrow, x, LossContext(target=y)),
    )
    torch.testing.assert_close(terms, wanted)
    for key, value in wanted_grads.items():
        torch.testing.assert_close(grads[key][tuple(slice(n) for n in value.shape)], value, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("kernels")
@transcoders
def test_a_skip_connection_leaves_the_rest_to_the_latents(name: str) -> None:
    skips, plain = transcoder(name, True), transcoder(name, False)
    with torch.no_grad():
        for key, value in plain.state_dict().items():
            value.copy_(skips.state_dict()[key])
        assert skips.W_skip is not None
        W_skip = skips.W_skip.detach().clone()
    x, y = batch(), batch(9)
    torch.testing.assert_close(skips(x), plain(x) + x @ W_skip.T)
    torch.testing.assert_close(skips.output_offset(x), x @ W_skip.T + skips.b_dec)
    (terms, grads), (wanted, _) = (
        gradients(skips, x, LossContext(target=y)),
        gradients(plain, x, LossContext(target=y - x @ W_skip.T)),
    )
    torch.testing.assert_close(terms, wanted, rtol=1e-5, atol=1e-5)
    # The loss is a square in W_skip, of which a central difference is exact.
    step = 0.1 * batch(12, 9)

    def loss(factor: float) -> Tensor:
        with torch.no_grad():
            skips.state_dict()["W_skip"].copy_(W_skip + factor * step)
            return skips.loss(x, LossContext(target=y)).total

    torch.testing.assert_close((grads["W_skip"] * step).sum(), (loss(1) - loss(-1)) / 2, rtol=1e-4, atol=1e-4)


def in_units_of_y(y_hat: Tensor, normalization: PairNormalization) -> Tensor:
    y = normalization.target.map_decoder(y_hat)
    return y if normalization.target.mean is None else y + normalization.target.mean


@pytest.mark.slow
@pytest.mark.parametrize("normalize_activations", NORMALIZATIONS)
@transcoders
@with_and_without_skip
def test_inference_form_normalization_and_files_keep_the_outputs(name: str, skip: bool, normalize_activations: str, tmp_path: Path) -> None:
    result, x = trained(normalize_activations)[name, skip], heldout(512)
    assert result.sae is not None and isinstance(result.normalization, PairNormalization)
    read = result.normalization.input(x)
    with torch.no_grad():
        inference, exported = result.sae.to_inference(), result.exported()
        latents, y_hat = inference.reconstruct(read)
        if name != "topk":  # which selects in training, and compares with a threshold at inference
            torch.testing.assert_close(y_hat, result.sae(read), rtol=1e-4, atol=1e-5)
        assert float((latents != 0).sum(dim=1).float().mean()) > 1
        torch.testing.assert_close(exported.encode(x), latents, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(exported(x), in_units_of_y(y_hat, result.normalization), rtol=1e-4, atol=1e-4)
        listed = exported.reconstruct_sparse(x)
        assert torch.equal(listed[0].mask(), exported.encode(x) != 0)
        torch.testing.assert_close(listed[2], exported(x), rtol=1e-4, atol=1e-4)
        exported.save_pretrained(tmp_path / "sae", {"hook_name": "in", "hook_name_out": "out"})
        loaded = SparseAutoencoder.from_pretrained(tmp_path / "sae")
    cfg = json.loads((tmp_path / "sae" / "cfg.json").read_text())
    kind = "standard" if inference.config.architecture == "standard" else "jumprelu"
    names = {"standard": "transcoder", "jumprelu": "jumprelu_transcoder"}
    assert cfg["architecture"] == (names[kind].replace("transcoder", "skip_transcoder") if skip else names[kind])
    assert (cfg["d_in"], cfg["d_out"], cfg["apply_b_dec_to_input"], cfg["metadata"]["hook_name_out"]) == (D_IN, D_OUT, False, "out")
    assert loaded.d_out == D_OUT and not loaded.training
    assert loaded.state_dict().keys() == exported.state_dict().keys()
    assert all(torch.equal(value, exported.state_dict()[key]) for key, value in loaded.state_dict().items())
    assert torch.equal(loaded(x), exported(x))


@pytest.mark.slow
@transcoders
@with_and_without_skip
def test_it_learns_and_latents_add_to_the_skip_connection(name: str, skip: bool) -> None:
    result, x = trained("expected_norm")[name, skip], heldout(2048)
    y, exported = targets(x), result.exported()

    def fvu(y_hat: Tensor) -> float:
        return float((y - y_hat).square().sum() / (y - y.mean(dim=0)).square().sum())

    with torch.no_grad():
        without = fvu(exported.output_offset(x).expand_as(y))
        assert fvu(exported(x)) < min(0.5, 0.7 * without)
        assert (without < 0.9) == skip


@pytest.mark.slow
@transcoders
def test_heldout_l0_ends_within_ten_percent(name: str) -> None:
    # With a skip connection, which takes its part from the latents while they learn: more steps than an SAE needs.
    configs = [config_of(name, True, **ARCHITECTURES[name].Config.aimed_at(target, {})) for target in (4.0, 8.0)]
    runs = [run_of(config, n_steps=600 if config.controls_l0 else 100, batch_size=128, lr=8e-3) for config in configs]
    for run, result in zip(runs, train_group(runs, pairs_of(runs[0], 16_384)), strict=True):
        with torch.no_grad():
            l0 = float((result.exported().encode(heldout(4096)) != 0).sum() / 4096)
        assert l0 == pytest.approx(run.sae.target_l0, rel=0.1)


def run_with_everything(name: str) -> RunConfig:
    options = {"decoder_init_norm": "search", "b_dec_init": "geometric_median"}
    train = {"normalize_activations": "whitening", "dead_after_tokens": 64, "lr": 1e-2, "lr_factors": {"W_skip": 0.5}}
    return run_of(config_of(name, True, **options), **train)


@pytest.mark.slow
@transcoders
def test_with_every_option_packed_is_alone_and_resumed_is_uninterrupted(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(initialization, "SEARCH_TOKENS", 128)  # for speed
    run, other = run_with_everything(name), run_with_everything("standard").model_copy(update={"seed": 1})
    alone = train_group([run], pairs_of(run))[0]

    def stop(learners: Sequence[Learner]) -> None:
        if learners[0].step == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_group([run], pairs_of(run), directory=tmp_path, checkpoint_seconds=0, on_step=stop)
    for result in (train_group([other, run], pairs_of(run))[1], train_group([run], pairs_of(run), directory=tmp_path)[0]):
        assert result.sae is not None and alone.sae is not None
        assert result.history == alone.history
        assert all(torch.equal(value, alone.sae.state_dict()[key]) for key, value in result.sae.state_dict().items())


@transcoders
def test_decoder_rows_write_and_encoder_columns_read_the_same_tokens(name: str) -> None:
    run = run_of(config_of(name, False))
    sae = ARCHITECTURES[name](run.sae, D_IN, D_OUT, generator=torch.Generator().manual_seed(0))
    sample = initialization.Sample(pairs_of(run))
    initialization.initialize(sae, sample, run)
    assert torch.equal(sae.b_dec, sample.mean)
    written = torch.nn.functional.normalize(sae.W_dec) @ torch.nn.functional.normalize(sample.y - sample.mean).T
    read = torch.nn.functional.normalize(sae.W_enc.T) @ torch.nn.functional.normalize(sample.x - sample.x_mean).T
    torch.testing.assert_close((written + read).max(dim=1).values, torch.full((D_SAE,), 2.0))
    assert not sae.b_enc.any()


@transcoders
@with_and_without_skip
def test_initial_values(name: str, skip: bool) -> None:
    cls, config = ARCHITECTURES[name], config_of(name, skip)
    sae, again, other = (cls(config, D_IN, D_OUT, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in sae.state_dict().items())
    assert not torch.equal(sae.W_enc, other.W_enc) and not torch.equal(sae.W_dec, other.W_dec)
    assert sae.W_skip is None if not skip else not sae.W_skip.any()
    torch.testing.assert_close(sae.W_enc.norm(dim=0), sae.W_dec.norm(dim=1))
    assert {key: len(value) for key, value in sae.initial_values().items()} == {
        key: D_SAE for key, value in sae.named_parameters() if value.shape == (D_SAE,)
    }
    assert cls.parameter_names(config) == tuple(key for key, _ in sae.named_parameters())
    with torch.device("meta"):
        meta = cls(config, D_IN, D_OUT).state_dict()
    assert {key: value.shape for key, value in meta.items()} == {key: value.shape for key, value in sae.state_dict().items()}


@transcoders
def test_a_config_without_skip_connection_is_that_of_an_sae(name: str) -> None:
    plain, skips = config_of(name, False), config_of(name, True)
    assert "skip_connection" not in plain.model_dump() and skips.model_dump()["skip_connection"] is True
    for config in (plain, skips):
        assert type(config).model_validate(config.model_dump(mode="json")) == config
    assert run_of(plain).run_id != run_of(skips).run_id


@transcoders
def test_an_sae_does_not_skip(name: str) -> None:
    with pytest.raises(ConfigError, match="`skip_connection` must be left to transcoders, but got skip_connection=True"):
        ARCHITECTURES[name](config_of(name, True), D_IN)
    run = run_of(config_of(name, True))
    with pytest.raises(ConfigError, match="`skip_connection` must be left to transcoders"):
        train_group([run], stream_of(run))


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name not in NAMES])
def test_others_are_refused(name: str) -> None:
    run = run_of(name)
    message = rf"`architecture` of a transcoder must be one of \[.*\], but got '{name}'"
    with pytest.raises(ConfigError, match=message):
        ARCHITECTURES[name].check_d_out(run.sae, D_OUT)
    with pytest.raises(ConfigError, match=message):
        train_group([run], pairs_of(run))
    assert not hasattr(run.sae, "skip_connection") and len(tokens(8)) == 8
