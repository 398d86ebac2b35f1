"""The architectures in examples/, as plugins: their contracts, their formulas by brute force, and what is saved of them."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from documents import ROOT
from small_runs import D_IN, D_SAE, context_of, random_sae, run_of, stream_of, tokens

from sae_core import plugins
from sae_core.config import ARCHITECTURES, Coefficient
from sae_core.sae import SparseAutoencoder
from sae_core.training.loop import train_group

FILES = {"topk_matryoshka": "topk_matryoshka.py", "gelu": "gelu_sae.py", "orthogonal": "orthogonal_sae.py"}

pytestmark = pytest.mark.slow


@pytest.fixture
def loaded(request):
    """The plugin of this name, as long as the test runs: other tests take their cases from the registry."""
    location = str(ROOT / "examples" / FILES[request.param])
    plugins.load([location])
    yield request.param
    plugins.unload(location)


def test_they_are_short_and_pass_the_contract_tests():
    for file in FILES.values():
        assert len((ROOT / "examples" / file).read_text().splitlines()) < 80
    locations = os.pathsep.join(str(ROOT / "examples" / file) for file in FILES.values())
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-n",
        "0",
        "-m",
        "not slow",
        "-p",
        "no:cacheprovider",
        "tests/contract/test_architectures.py",
    ]
    done = subprocess.run(
        [*command, "-k", " or ".join(FILES)],
        cwd=ROOT,
        env={**os.environ, "SAE_SWEEP_TEST_PLUGINS": locations},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 30


@pytest.mark.parametrize("loaded", ["topk_matryoshka"], indirect=True)
def test_topk_matryoshka_adds_the_errors_of_prefixes_and_is_saved_as_topk(loaded, tmp_path):
    sae = random_sae(loaded, D_IN, D_SAE, k=4, inner_widths=(8, 32))
    x = tokens(50)
    terms = sae.loss(x, context_of(sae)).terms
    with torch.no_grad():
        pre_acts = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
        for width, name in ((8, "inner_mse_loss_8"), (32, "inner_mse_loss_32"), (D_SAE, "mse_loss")):
            errors = []
            for row, z in zip(x, pre_acts, strict=True):
                scores = z[:width] * sae.W_dec[:width].norm(dim=1)
                kept = sorted(range(width), key=lambda latent, scores=scores: -float(scores[latent]))[:4]
                x_hat = sae.b_dec + sum(z[latent].relu() * sae.W_dec[latent] for latent in kept)
                errors.append((x_hat - row).square().sum())
            torch.testing.assert_close(terms[name], torch.stack(errors).mean())
    sae.to_inference().save_pretrained(tmp_path)
    cfg = json.loads((tmp_path / "cfg.json").read_text())
    assert (cfg["architecture"], cfg["k"]) == ("topk", 4) and "plugins" not in cfg["metadata"]
    torch.testing.assert_close(SparseAutoencoder.from_pretrained(tmp_path)(x), sae.eval()(x))


@pytest.mark.parametrize("loaded", ["topk_matryoshka"], indirect=True)
def test_prefixes_that_cannot_hold_k_latents_are_refused(loaded):
    with pytest.raises(ValueError, match=r"from k=4 to below d_sae=64, but got \[2, 64\]"):
        ARCHITECTURES[loaded].Config(d_sae=64, k=4, inner_widths=(2, 8, 64))


@pytest.mark.parametrize("loaded", ["gelu"], indirect=True)
def test_gelu_is_computed_after_training_too(loaded, tmp_path):
    sae, x = random_sae(loaded, D_IN, D_SAE).to_inference(), tokens(50)
    with torch.no_grad():
        z = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
        torch.testing.assert_close(sae.encode(x), torch.where(z > 0, torch.nn.GELU()(z), 0.0))
    assert 0.1 < float((sae.encode(x) != 0).float().mean()) < 0.9
    sae.save_pretrained(tmp_path)
    cfg = json.loads((tmp_path / "cfg.json").read_text())
    assert (cfg["architecture"], cfg["metadata"]["plugins"]) == ("gelu", [str(ROOT / "examples" / "gelu_sae.py")])
    torch.testing.assert_close(SparseAutoencoder.from_pretrained(tmp_path)(x), sae(x))


@pytest.mark.parametrize("loaded", ["orthogonal"], indirect=True)
def test_the_coefficient_rises_over_a_warm_up_of_its_own_and_does_something(loaded):
    config = ARCHITECTURES[loaded].Config
    saes = {}
    for coefficient in (0.0, 100.0):
        sae = config(d_sae=D_SAE, orthogonality_coefficient=coefficient, orthogonality_warm_up="20 steps")
        run = run_of(sae, n_steps=60, lr=1e-2, sparsity_warm_up=0.0)
        values = []

        def seen(learners, values=values, coefficient=coefficient):
            (learner,) = learners
            values.append(learner.history[-1]["orthogonality_loss"])

        (result,) = train_group([run], stream_of(run), on_step=seen)
        saes[coefficient] = result.sae
        assert result.error is None and values[0] == 0
        if coefficient:
            assert values == sorted(values[:10]) + values[10:] and values[19] > 0
    assert saes[100.0].mean_squared_cosine() < 0.8 * saes[0.0].mean_squared_cosine()
    rows = torch.nn.functional.normalize(saes[0.0].W_dec.detach())
    cosines = (rows @ rows.T)[~torch.eye(D_SAE, dtype=torch.bool)]
    torch.testing.assert_close(saes[0.0].mean_squared_cosine().detach(), cosines.square().mean())


@pytest.mark.parametrize("loaded", ["orthogonal"], indirect=True)
def test_a_warm_up_longer_than_the_run_is_refused(loaded):
    sae = ARCHITECTURES[loaded].Config(d_sae=D_SAE, orthogonality_warm_up="21 steps")
    with pytest.raises(ValueError, match=r"the coefficient 'orthogonality' must be at most the run's 20 steps, but got '21 steps'"):
        run_of(sae, n_steps=20)


def test_a_coefficient_at_each_step():
    assert [Coefficient(3.0, "3 steps").at(step, 10, 5) for step in range(5)] == [0.0, 1.0, 2.0, 3.0, 3.0]
    assert Coefficient(3.0).at(0, 10, 5) == 3.0
    assert Coefficient(4.0, 0.4).at(1, 10, 5) == 1.0
