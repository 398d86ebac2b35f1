import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from saelens_folders import D_IN, D_OUT, D_SAE, V5, V6, foreign, transcoder_cfg, weights, write
from torch import Tensor

from sae_core.errors import ConfigError
from sae_core.sae.base import SparseAutoencoder
from sae_core.sae.saelens_files import StoredSAE, cfg_of, read


def x() -> Tensor:
    return torch.randn(64, D_IN, generator=torch.Generator().manual_seed(1))


def keep_largest(z: Tensor, k: int, *, of_any_sign: bool) -> Tensor:
    indices = (z.abs() if of_any_sign else z).topk(k, dim=1).indices
    values = z.gather(1, indices)
    return torch.zeros_like(z).scatter(1, indices, values if of_any_sign else values.relu())


def pursued(residual: Tensor, W_dec: Tensor, cfg: dict[str, Any]) -> Tensor:
    """Matching pursuit of one token: until the same latents were active in two steps, or the rest is small."""
    latents = torch.zeros(len(W_dec))
    for _ in range(cfg.get("max_iterations") or len(residual)):
        before, best = latents != 0, int((W_dec @ residual).argmax())
        value = (W_dec[best] @ residual).relu()
        latents[best] += value
        residual = residual - value * W_dec[best]
        repeats = cfg.get("stop_on_duplicate_support", True) and bool(((latents != 0) == before).all())
        if repeats or residual.norm() < cfg.get("residual_threshold", 0.01):
            break
    return latents


def by_hand(cfg: dict[str, Any], t: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Latents and reconstruction by SAELens' formulas, written out."""
    kept = x()
    mean, std = torch.zeros(()), torch.ones(())
    if cfg.get("normalize_activations") == "layer_norm":
        mean = kept.mean(dim=1, keepdim=True)
        std = kept.std(dim=1, keepdim=True)
        kept = (kept - mean) / (std + 1e-5)
    read = kept - t["b_dec"] if cfg.get("apply_b_dec_to_input", True) else kept
    if "W_enc" not in t:
        a = torch.stack([pursued(row, t["W_dec"], cfg) for row in read])
        b_dec = t["b_dec"] if cfg.get("apply_b_dec_to_input", True) else 0  # then SAELens does not add it either
        return a, (a @ t["W_dec"] + b_dec) * std + mean
    if "b_gate" in t:
        gate = read @ t["W_enc"] + t["b_gate"] > 0
        a = gate * (read @ (t["W_enc"] * t["r_mag"].exp()) + t["b_mag"]).relu()
        return a, (a @ t["W_dec"] + t["b_dec"]) * std + mean
    z = read @ t["W_enc"] + t["b_enc"]
    norms = t["W_dec"].norm(dim=1) if cfg.get("rescale_acts_by_decoder_norm") else torch.ones(D_SAE)
    k = cfg.get("k") or cfg.get("activation_fn_kwargs", {}).get("k")
    of_any_sign = cfg.get("architecture") == "abstopk"
    a = keep_largest(z * norms, k, of_any_sign=of_any_sign) if k else z.relu() * (z > t.get("threshold", torch.zeros(D_SAE)))
    skip = x() @ t["W_skip"].T if "W_skip" in t else 0
    return a, (a / norms @ t["W_dec"] + t["b_dec"]) * std + mean + skip


@pytest.mark.parametrize("name", list(foreign()))
def test_files_of_other_versions_and_programs_are_read_as_what_they_are(tmp_path: Path, name: str) -> None:
    cfg, tensors = foreign()[name]
    sae = SparseAutoencoder.from_pretrained(write(tmp_path / name, cfg, tensors))
    latents, x_hat = by_hand(cfg, tensors)
    with torch.no_grad():
        found = sae.reconstruct(x())
    assert 1 < float((latents != 0).sum(dim=1).float().mean()) < 30
    torch.testing.assert_close(found[0], latents, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[1], x_hat, rtol=1e-4, atol=1e-4)


def test_a_folded_sae_does_not_keep_its_file_in_memory_beside_it(tmp_path: Path) -> None:
    cfg = V6 | {"architecture": "topk", "k": 3, "rescale_acts_by_decoder_norm": True}
    sae = SparseAutoencoder.from_pretrained(write(tmp_path / "a", cfg, weights("topk")))
    assert sae.d_sae == D_SAE and str(tmp_path) not in Path("/proc/self/maps").read_text()


def test_thresholds_may_be_stored_as_logarithms(tmp_path: Path) -> None:
    tensors = weights("jumprelu")
    log_threshold = tensors.pop("threshold").abs().log()
    sae = SparseAutoencoder.from_pretrained(
        write(tmp_path / "a", V6 | {"architecture": "jumprelu"}, tensors | {"log_threshold": log_threshold})
    )
    torch.testing.assert_close(sae.state_dict()["threshold"], log_threshold.exp(), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["scaling_factor", "finetuning_scaling_factor"])
def test_factors_of_latents_are_folded_into_the_decoder(tmp_path: Path, name: str) -> None:
    tensors, factor = weights("standard"), 1 + torch.arange(D_SAE) / D_SAE
    sae = SparseAutoencoder.from_pretrained(write(tmp_path / "a", V5 | {"finetuning_scaling_factor": True}, tensors | {name: factor}))
    latents, _ = by_hand({}, tensors)
    with torch.no_grad():
        torch.testing.assert_close(sae(x()), (latents * factor) @ tensors["W_dec"] + tensors["b_dec"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("cfg", "tensors", "message"),
    [
        (V5, {"scaling_factor": 2 * torch.ones(D_SAE)}, "`finetuning_scaling_factor` must say"),
        (V5 | {"finetuning_scaling_factor": True}, {}, "`finetuning_scaling_factor` must say"),
        (V5 | {"finetuning_scaling_factor": True}, {"scaling_factor": torch.ones(3)}, "must match the size of tensor"),
    ],
)
def test_factors_that_do_not_fit_are_refused(tmp_path: Path, cfg: dict[str, Any], tensors: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SparseAutoencoder.from_pretrained(write(tmp_path / "a", cfg, weights("standard") | tensors))


def test_what_overflows_in_folding_is_refused(tmp_path: Path) -> None:
    tensors = weights("standard") | {"W_dec": torch.full((D_SAE, D_IN), 1e30), "scaling_factor": torch.full((D_SAE,), 1e30)}
    with pytest.raises(ConfigError, match=r"must be finite, but got \{'W_dec': 480\} numbers"):
        SparseAutoencoder.from_pretrained(write(tmp_path / "a", V5 | {"finetuning_scaling_factor": True}, tensors))


def stored(directory: Path, ours: Mapping[str, Collection[str]] | None = None, **cfg: Any) -> StoredSAE:
    return read(write(directory / "a", cfg, weights("standard")), ours or {})


def test_absent_keys_mean_what_they_meant(tmp_path: Path) -> None:
    old = stored(tmp_path / "old")
    assert (old.architecture, old.fields, old.d_in, old.layer_norm) == ("standard", {"d_sae": 40}, 12, False)
    topk = {"d_sae": 40, "k": 3, "rescale_acts_by_decoder_norm": False}
    assert stored(tmp_path / "new", **V6, architecture="topk", k=3).fields == topk
    assert stored(tmp_path / "between", architecture="topk", activation_fn_kwargs={"k": 3}).fields == topk


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        ({"architecture": "temporal"}, "`architecture` .* got 'temporal'"),
        (V6, "`architecture` .* but got 'None'"),
        *(({"architecture": "topk", "k": k}, "valid, .*`k`|`k` must") for k in ("a", True, 0, -1, 41, 4.0, None)),
        ({"architecture": "topk", "k": 10**400}, "too large"),
        ({"architecture": "topk"}, "valid, .*`k`"),
        ({"architecture": "topk", "k": 3, "rescale_acts_by_decoder_norm": 1}, "`rescale_acts_by_decoder_norm` .* got .*=1"),
        ({"rescale_acts_by_decoder_norm": True}, "must be known or be in `metadata`, but got 'rescale_acts_by_decoder_norm': True"),
        ({"architecture": "jumprelu", "k": 3}, "must be known or be in `metadata`, but got 'k': 3"),
        ({"architecture": "jumprelu", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 3}}, "`activation_fn` .*='jumprelu'"),
        ({"activation_fn_str": "topk"}, r"`activation_fn` .* got \['topk'\]"),
        ({"activation_fn_str": "tanh-relu"}, r"`activation_fn` .* got \['tanh-relu'\]"),
        ({"activation_fn": "relu", "activation_fn_str": "topk"}, r"`activation_fn` .* got \['relu', 'topk'\]"),
        ({"activation_fn": "topk", "activation_fn_kwargs": {"k": 3, "p": 1}}, "`activation_fn` .*'p': 1"),
        ({"architecture": "topk", "k": 4, "activation_fn_kwargs": {"k": 3}}, "`activation_fn` .*'k': 3"),
        ({"activation_fn_kwargs": {"k": 3}}, "`activation_fn` .*'k': 3"),
        (V6 | {"architecture": "standard", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 3}}, "`activation_fn` .* below 6"),
        *(
            ({"normalize_activations": value}, "`normalize_activations` .* got normalize_activations=")
            for value in (True, "expected_average_only_in", "constant_norm_rescale", "covariance_whitening", 0, ["none"])
        ),
        *(({"apply_b_dec_to_input": value}, "`apply_b_dec_to_input` .* got apply_b_dec_to_input=") for value in (None, 0, "false")),
        ({"reshape_activations": "hook_q"}, "`reshape_activations` .* got reshape_activations='hook_q'"),
        ({"noise_scale": 0.1}, "`noise_scale` .* got noise_scale=0.1"),
        ({"noise_scale": float("nan")}, "`noise_scale` .* got noise_scale=nan"),
        ({"dtype": "int8"}, "`dtype` .* got dtype='int8'"),
        ({"finetuning_scaling_factor": "yes"}, "`finetuning_scaling_factor` .* got finetuning_scaling_factor='yes'"),
        ({"metadata": "x"}, "but got"),
        ({"metadata": {"sae_lens_version": 7}}, "but got"),
        ({"sae_lens_version": "six"}, "but got"),
        (
            {"hook_name": "a", "hook_name_out": "b"},
            r"`hook_name_out` must be the hook that the SAE reads, but got 'b' beside \['a', None\]",
        ),
        ({"metadata": {"hook_name_out": "b"}}, "got 'b' beside"),
        ({"d_out": 12}, "must be known or be in `metadata`, but got 'd_out': 12"),
        ({"\ud800": [0] * 999}, r"but got '\\ud800': \[0, 0, 0, 0, 0, 0, \.\.\.\]"),
        ({"reshape_activations": 3, "noise_scale": 1, "d_out": 3}, r"(?s)`reshape_activations`.*\n`noise_scale`.*\nkeys .*"),
    ],
)
def test_what_cannot_be_interpreted_is_refused_by_name(tmp_path: Path, cfg: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        SparseAutoencoder.from_pretrained(write(tmp_path / "a", cfg, weights("standard")))
    assert str(caught.value).isascii()
    assert all(len(line) < 500 for line in str(caught.value).splitlines())


TRANSCODERS = ["transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder"]


@pytest.mark.parametrize("name", TRANSCODERS)
def test_a_transcoder_is_written_as_it_was_read(tmp_path: Path, name: str) -> None:
    tensors = weights(name) | ({"threshold": weights(name)["threshold"].abs()} if "jumprelu" in name else {})
    sae = SparseAutoencoder.from_pretrained(write(tmp_path / "theirs", transcoder_cfg(name), tensors))
    assert (sae.d_in, sae.d_out, sae.W_skip is not None) == (D_IN, D_OUT, "skip" in name)
    sae.save_pretrained(tmp_path / "ours", transcoder_cfg(name)["metadata"])
    theirs, ours = (json.loads((tmp_path / folder / "cfg.json").read_text()) for folder in ("theirs", "ours"))
    assert theirs.items() <= ours.items()
    again = SparseAutoencoder.from_pretrained(tmp_path / "ours").state_dict()
    assert again.keys() == tensors.keys() and all(torch.equal(again[key], value) for key, value in tensors.items())


def test_the_width_of_an_output_is_768_where_the_file_does_not_say(tmp_path: Path) -> None:
    cfg, tensors = transcoder_cfg("transcoder"), weights("transcoder")
    del cfg["d_out"]
    with pytest.raises(ConfigError, match=r"must have the shapes .*\[40, 768\].* but got .*\[40, 9\]"):
        SparseAutoencoder.from_pretrained(write(tmp_path / "narrow", cfg, tensors))
    wide = tensors | {"W_dec": torch.randn(D_SAE, 768), "b_dec": torch.randn(768)}
    assert SparseAutoencoder.from_pretrained(write(tmp_path / "wide", cfg, wide)).d_out == 768


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        ({"apply_b_dec_to_input": True}, "`apply_b_dec_to_input` of a transcoder's cfg.json must be False, but got .*=True"),
        ({"normalize_activations": "layer_norm"}, "`normalize_activations` of a transcoder's .* must be 'none', but got .*='layer_norm'"),
        ({"reshape_activations": "hook_z"}, "`reshape_activations` of a transcoder's .* must be 'none', but got .*='hook_z'"),
        ({"finetuning_scaling_factor": True}, "`finetuning_scaling_factor` of a transcoder's .* must be False, but got .*=True"),
        *(({"d_out": value}, "`d_out` of a transcoder's .* must be a whole number above 0, but got d_out=") for value in (0, "9", 9.0)),
        ({"k": 3}, "must be known or be in `metadata`, but got 'k': 3"),
        ({"rescale_acts_by_decoder_norm": True}, "must be known or be in `metadata`, but got 'rescale_acts_by_decoder_norm'"),
        ({"d_out": 12}, r"must have the shapes .*\[40, 12\]"),
        ({"architecture": "skip_transcoder"}, "must have the shapes .*'W_skip'"),
    ],
)
def test_a_transcoder_that_would_compute_something_else_is_refused(tmp_path: Path, cfg: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SparseAutoencoder.from_pretrained(write(tmp_path / "a", transcoder_cfg("transcoder") | cfg, weights("transcoder")))


def test_a_transcoder_of_an_architecture_that_saelens_does_not_know(tmp_path: Path) -> None:
    ours = {"log_penalty": ["architecture", "d_sae", "alpha", "skip_connection"]}
    cfg = transcoder_cfg("log_penalty") | {"alpha": 2, "skip_connection": True}
    found = stored(tmp_path, ours, **cfg)
    assert found.fields == {"architecture": "log_penalty", "d_sae": 40, "alpha": 2, "skip_connection": True}
    assert (found.d_in, found.d_out) == (D_IN, D_OUT)
    assert (
        cfg_of("log_penalty", {"alpha": 2}, D_IN, D_OUT, d_sae=D_SAE, skips=True).items() <= {**cfg, "d_in": D_IN, "d_sae": D_SAE}.items()
    )


@pytest.mark.parametrize(("key", "value"), [("apply_b_dec_to_input", False), ("finetuning_scaling_factor", True)])
def test_nothing_is_folded_into_an_architecture_that_saelens_does_not_know(tmp_path: Path, key: str, value: bool) -> None:
    ours, cfg = {"log_penalty": ["architecture", "d_sae", "alpha"]}, {"architecture": "log_penalty", "alpha": 2}
    with pytest.raises(ConfigError, match=f"`{key}` .* for the architecture 'log_penalty'"):
        stored(tmp_path / "with", ours, **cfg, **{key: value})
    assert stored(tmp_path / "without", ours, **cfg).fields == {"architecture": "log_penalty", "d_sae": 40, "alpha": 2}
