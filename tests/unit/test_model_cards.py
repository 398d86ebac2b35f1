"""Folders of exported SAEs, their statistics and their model card, whose every snippet runs."""

import re
from types import SimpleNamespace

import pytest
import torch
import yaml
from exported import ARCHITECTURES_IN_SAELENS, write_exported
from fake_transcoders import write_results
from safetensors.torch import load_file
from small_runs import D_IN

from analysis.export import card
from sae_core.errors import ConfigError
from sae_core.sae.base import SparseAutoencoder
from sae_core.sae.saebench import for_saebench
from sweeps.exporting import export

pytestmark = pytest.mark.slow  # records, documents and SAEs of every architecture: a second


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return write_exported(tmp_path_factory.mktemp("results") / "sweep", seeds=2)


@pytest.fixture(scope="module")
def folders(results, tmp_path_factory):
    """One run of each architecture, exported."""
    to = tmp_path_factory.mktemp("exported") / "saes"
    ids = sorted(path.name for path in (results / "runs").glob("*-0"))
    export(results, to, run_ids=ids)
    return to


def card_of(folder):
    """Front matter and text."""
    _, front, text = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(front), text


def snippets(text):
    """Heading -> Python, of those that are told apart."""
    return dict(re.findall(r"### (.+?)\n(?:.*?\n)*?```python\n(.*?)\n```", text, re.DOTALL))


def test_a_folder_has_what_saelens_writes(results, folders):
    for folder in (path for path in folders.iterdir() if path.is_dir()):
        assert sorted(file.name for file in folder.iterdir()) == ["cfg.json", "sae_weights.safetensors", "sparsity.safetensors"]
        times = load_file(results / "runs" / folder.name / "latents.safetensors")["times_active"]
        sparsity = load_file(folder / "sparsity.safetensors")["sparsity"]
        assert sparsity.dtype == torch.float32
        torch.testing.assert_close(sparsity, torch.log10(times / 100_352 + 1e-10))
        assert sparsity[0] == -10


def test_results_of_earlier_versions_get_their_statistics_from_what_is_known_of_latents(results, tmp_path):
    (run,) = results.glob("runs/topk-*-1")
    stored = (run / "sae" / "sparsity.safetensors").read_bytes()
    (run / "sae" / "sparsity.safetensors").unlink()
    export(results, tmp_path / "made", run_ids=[run.name])
    assert (tmp_path / "made" / run.name / "sparsity.safetensors").read_bytes() == stored
    (run / "latents.safetensors").rename(run / "elsewhere")
    export(results, tmp_path / "without", run_ids=[run.name])
    assert sorted(file.name for file in (tmp_path / "without" / run.name).iterdir()) == ["cfg.json", "sae_weights.safetensors"]
    (run / "elsewhere").rename(run / "latents.safetensors")


def test_the_card_says_what_the_records_say(folders):
    front, text = card_of(folders)
    assert front["library_name"] == "saelens"
    assert (front["base_model"], front["datasets"]) == (["gpt2"], ["user/text"])
    assert {"sparse-autoencoder", "topk", "gated"} <= set(front["tags"])
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert len(rows) == len(ARCHITECTURES_IN_SAELENS)
    assert any(re.search(r"\| `topk-[\d.]+-0` \| TopK \| k=\d+ \| 0 \| 64 \| \d.* \[.*\] \|", row) for row in rows), rows
    assert "95 % intervals over 40 held-out documents" in text
    assert "batch_size: 2048" in text and "| Training tokens | 1,000,000 |" in text


def test_shared_settings_are_written_as_a_definition_has_them():
    trains = [{"lr": lr, "kl_stage": {"tokens": 0.1, "weight": weight}} for lr, weight in ((1e-3, 0.3), (1e-3, 1.0))]
    runs = [SimpleNamespace(run=SimpleNamespace(config={"train": train})) for train in trains]
    assert yaml.safe_load(card._settings(runs)) == {"train": {"lr": 1e-3, "kl_stage": {"tokens": 0.1}}}


def test_paths_of_this_machine_are_not_told(tmp_path):
    results = write_results(tmp_path / "results")  # the model is a directory
    export(results, tmp_path / "saes", l0=8)
    front, text = card_of(tmp_path / "saes")
    assert "base_model" not in front and str(tmp_path) not in text
    assert not re.search(r"\| /", text)
    assert "`blocks.0.mlp.hook_in -> blocks.0.hook_mlp_out`" in text
    assert text.startswith("\n# Transcoders of ")


@pytest.mark.parametrize("architecture", ARCHITECTURES_IN_SAELENS)
def test_every_snippet_computes_what_the_sae_computes(results, architecture, tmp_path, monkeypatch):
    (run,) = results.glob(f"runs/{architecture}-[0-9]*-0")
    export(results, tmp_path / "saes", run_ids=[run.name])
    monkeypatch.chdir(tmp_path / "saes")
    found = snippets(card_of(tmp_path / "saes")[1])
    assert list(found) == ["SAELens", "sae-sweep", "PyTorch alone", "SAEBench"]
    x = torch.randn(20, D_IN, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        latents, x_hat = SparseAutoencoder.from_pretrained(run.name).reconstruct(x)
        for name in ("sae-sweep", "PyTorch alone"):
            made = {"x": x}
            exec(found[name], made)
            torch.testing.assert_close(made["latents"], latents)
            torch.testing.assert_close(made["x_hat"], x_hat)
        made = {}
        exec(found["SAEBench"], made)
        ((name, sae),) = made["selected_saes"]
        assert name == run.name
        torch.testing.assert_close(sae(x), x_hat)


def test_transcoders_by_hand(tmp_path, monkeypatch):
    for number, parts in enumerate(({"has_skip": True}, {"has_skip": False, "has_threshold": False})):
        results = write_results(tmp_path / f"results{number}", **parts)
        export(results, tmp_path / f"saes{number}", run_ids=["topk-l1-k8"])
        monkeypatch.chdir(tmp_path / f"saes{number}")
        found = snippets(card_of(tmp_path / f"saes{number}")[1])
        assert list(found) == ["SAELens", "sae-sweep", "PyTorch alone"]
        x = torch.randn(20, 128)
        with torch.no_grad():
            _, y_hat = SparseAutoencoder.from_pretrained("topk-l1-k8").reconstruct(x)
        made = {"x": x}
        exec(found["PyTorch alone"], made)
        torch.testing.assert_close(made["x_hat"], y_hat)


@pytest.mark.parametrize("architecture", ARCHITECTURES_IN_SAELENS)
def test_what_saebench_asks_of_an_sae(folders, architecture):
    (folder,) = folders.glob(f"{architecture}-[0-9]*")
    sae = for_saebench(folder)
    assert sae.W_enc.shape == (sae.cfg.d_in, sae.cfg.d_sae) and sae.W_dec.shape == (sae.cfg.d_sae, sae.cfg.d_in)
    assert sae.b_enc.shape == (sae.cfg.d_sae,) and sae.b_dec.shape == (sae.cfg.d_in,)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(sae.cfg.d_sae))
    cfg = sae.cfg
    assert (cfg.model_name, cfg.hook_name, cfg.hook_layer, cfg.context_size) == ("gpt2", "blocks.2.hook_resid_post", 2, 128)
    assert (cfg.dtype, cfg.metadata.hook_name, cfg.metadata.prepend_bos) == ("float32", cfg.hook_name, True)
    assert cfg.to_dict()["d_sae"] == cfg.d_sae and "metadata" not in cfg.to_dict()
    x = torch.randn(3, 7, D_IN)
    latents = sae.encode(x)
    assert latents.shape == (3, 7, cfg.d_sae)
    torch.testing.assert_close(sae.decode(latents), sae(x))
    theirs = SparseAutoencoder.from_pretrained(folder)
    norms = theirs.W_dec.norm(dim=1)
    with torch.no_grad():
        torch.testing.assert_close(latents.reshape(21, -1), theirs.reconstruct(x.reshape(21, -1))[0] * norms)
    half = sae.to(device="cpu", dtype=torch.bfloat16)
    assert (half.dtype, half.cfg.dtype) == (torch.bfloat16, "bfloat16")
    assert half.encode(x).dtype == torch.bfloat16


def test_what_saebench_cannot_take_is_refused(tmp_path):
    results = write_results(tmp_path / "results")
    with pytest.raises(ConfigError, match=r"one of latents, but '.*topk-l0-k8/sae' is a transcoder\. Name another"):
        for_saebench(results / "runs" / "topk-l0-k8" / "sae")
    from small_runs import random_sae

    sae = random_sae("jumprelu")
    sae.save_pretrained(tmp_path / "nameless", {"hook_name": "x"})
    with pytest.raises(ConfigError, match="but got model_name=None and hook_name='x'"):
        for_saebench(tmp_path / "nameless")
    sae.layer_norm = True
    sae.save_pretrained(tmp_path / "normed", {"hook_name": "blocks.1.hook_resid_post", "model_name": "gpt2"})
    with pytest.raises(ConfigError, match="normed' layer-norms tokens"):
        for_saebench(tmp_path / "normed")


def test_the_front_is_the_best_repeat_of_each_setting_that_nothing_beats(results, tmp_path):
    runs, _ = export(results, tmp_path / "front", front=True)
    ks = [run.metrics["l0"] for run in runs]
    assert ks == sorted(ks) and len(ks) == len(ARCHITECTURES_IN_SAELENS)  # FVU falls with L0
    assert all(run.run_id.endswith("-0") for run in runs)  # the better one
    (only,), _ = export(results, tmp_path / "topk", front=True, architecture="topk")
    assert only.architecture == "topk"
    with pytest.raises(ConfigError, match=r"an architecture with finished runs must be one of .* but got 'topkk'"):
        export(results, tmp_path / "no", front=True, architecture="topkk")
    with pytest.raises(ConfigError, match="one transcoder per layer, but got `--front`"):
        export(results, tmp_path / "no", front=True, form="circuit-tracer")
    with pytest.raises(ConfigError, match=r"Give one of `--l0`, `--front` and `--run`"):
        export(results, tmp_path / "no", front=True, l0=8)
