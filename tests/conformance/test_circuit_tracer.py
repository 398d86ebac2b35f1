"""circuit-tracer itself loads the sets that we export, and computes the same, on the activations that they were trained on.

Runs in the Python that CIRCUIT_TRACER_PYTHON names, which needs decoderesearch/circuit-tracer v0.5.0 (of its git tag: the package of that
name on PyPI is a fork) and its requirements, among them transformers below 4.58; nnsight is not needed.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from fake_transcoders import N_LAYERS, D, write_results
from safetensors.torch import load_file, save_file
from tiny_model import DEMO_MODEL, hooked_model, random_model
from torch import Tensor

from sae_core.activations.language_model.model_spec import model_spec
from sae_core.sae.base import SparseAutoencoder
from sweeps.exporting import export

CIRCUIT_TRACER_PYTHON = os.environ.get("CIRCUIT_TRACER_PYTHON")

pytestmark = [
    pytest.mark.skipif(CIRCUIT_TRACER_PYTHON is None, reason="CIRCUIT_TRACER_PYTHON is not set"),
    pytest.mark.slow,
]

KINDS = {
    "jumprelu_skip_transcoder": (True, True),
    "jumprelu_transcoder": (False, True),
    "skip_transcoder": (True, False),
    "transcoder": (False, False),
}
"""SAELens' architecture -> whether it has a skip connection, and thresholds."""
MODELS = {"neox": ("gpt_neox", "transcoder"), "grouped": ("llama", "skip_transcoder"), "qwen": ("qwen3", "jumprelu_transcoder")}
"""Folders of random models of other families, and the kind of their transcoders. Where a path has llama or gemma in it, TransformerLens
takes the sizes of a published model: no path here has, and Gemma is left out."""
TOKENS = torch.tensor([0, 10, 200, 33, 512, 7, 1024, 99])
"""The first one is the beginning of the text, which no graph attributes to."""


def for_transformers_4(model: Path) -> None:
    """Make a model that transformers 5 wrote one that transformers 4 and TransformerLens 2 read."""
    config = json.loads((model / "config.json").read_text())
    if config["model_type"] == "gpt2":
        config["n_ctx"] = config["n_positions"]
    (model / "config.json").write_text(json.dumps(config))
    tokenizer = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps(tokenizer | {"tokenizer_class": "PreTrainedTokenizerFast"}))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Sets of every kind, models of some families and their sets, as we have them and what circuit-tracer makes of them."""
    directory = tmp_path_factory.mktemp("circuit-tracer")
    generator = torch.Generator().manual_seed(0)
    for kind, (has_skip, has_threshold) in KINDS.items():
        results = write_results(directory / "results" / kind, has_skip=has_skip, has_threshold=has_threshold)
        export(results, directory / "sets" / kind, form="circuit-tracer", l0=8)
    (directory / "models").mkdir()
    shutil.copytree(DEMO_MODEL, directory / "models" / "demo")
    shutil.copytree(directory / "sets" / "jumprelu_skip_transcoder", directory / "sets" / "demo")
    for folder, (family, kind) in MODELS.items():
        name = random_model(directory / "models" / folder, family)
        has_skip, has_threshold = KINDS[kind]
        sizes = {"name": name, "n_layers": 3, "d": 32}
        results = write_results(directory / "results" / folder, has_skip=has_skip, has_threshold=has_threshold, **sizes)
        export(results, directory / "sets" / folder, form="circuit-tracer", l0=8)
    x = torch.randn(256, D, generator=generator)
    save_file({"x": x, "tokens": TOKENS}, directory / "x.safetensors")
    for model in (directory / "models").iterdir():
        for_transformers_4(model)
    script = Path(__file__).with_name("circuit_tracer_outputs.py")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    command = [str(CIRCUIT_TRACER_PYTHON), script, directory]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return directory, x, load_file(directory / "outputs.safetensors")


def saes_of(results: Path) -> list[SparseAutoencoder]:
    """The transcoders of a set, from layer 0 on, as we load them."""
    folders = sorted(results.glob("runs/*-k8/sae"))
    return [SparseAutoencoder.from_pretrained(folder) for folder in folders]


@pytest.mark.parametrize("kind", KINDS)
def test_it_computes_what_we_compute(made, kind):
    directory, x, theirs = made
    saes = saes_of(directory / "results" / kind)
    assert len(saes) == N_LAYERS
    for layer, sae in enumerate(saes):
        with torch.no_grad():
            latents, outputs = sae.reconstruct(x)
        torch.testing.assert_close(theirs[f"{kind}/latents"][layer], latents, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(theirs[f"{kind}/outputs"][layer], outputs, rtol=1e-5, atol=1e-5)


def places_of(name: str) -> tuple[Tensor, Tensor, Tensor]:
    """What we read on TOKENS where transcoders of a set read and write, [layer, position, d] each, and the model's logits."""
    n_layers = len(list(model_spec(name).model.get_submodule(model_spec(name).layout.blocks)))
    hook_points = [f"blocks.{layer}.{hook}" for hook in ("mlp.hook_in", "hook_mlp_out") for layer in range(n_layers)]
    model = hooked_model(name, *hook_points)
    values = torch.cat(model.read(TOKENS[None]))
    _, h = model.run(TOKENS[None])
    return values[:n_layers], values[n_layers:], model.logits(h[0])


@pytest.mark.parametrize("name", ["demo", *MODELS])
@torch.no_grad()
def test_its_model_has_the_activations_that_transcoders_are_trained_on(made, name):
    directory, _, theirs = made
    read, written, logits = places_of(str(directory / "models" / name))
    torch.testing.assert_close(theirs[f"{name}/in"], read, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(theirs[f"{name}/out"], written, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(theirs[f"{name}/logits"], logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["demo", *MODELS])
@torch.no_grad()
def test_its_graph_is_of_our_latents(made, name):
    """Nodes are latents that are active after the first token, errors of each layer and position, tokens and logits."""
    directory, _, theirs = made
    read, *_ = places_of(str(directory / "models" / name))
    saes = saes_of(directory / "results" / {"demo": "jumprelu_skip_transcoder"}.get(name, name))
    latents = torch.stack([sae.encode(x) for sae, x in zip(saes, read, strict=True)])
    latents[:, 0] = 0
    features = theirs[f"{name}/features"]
    assert torch.equal(features, latents.nonzero())
    torch.testing.assert_close(theirs[f"{name}/activations"], latents[latents != 0], rtol=1e-4, atol=1e-4)
    n_others = len(saes) * len(TOKENS) + len(TOKENS)
    adjacency = theirs[f"{name}/adjacency"]
    assert 1 <= len(adjacency) - len(features) - n_others <= 3, "up to three logits"
    assert bool(adjacency.isfinite().all())
    assert bool((adjacency[-1, : len(features)] != 0).any()), "latents act on a logit"
