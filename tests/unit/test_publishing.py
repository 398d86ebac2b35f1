"""Exports to the Hub, of which a stand-in on loopback is all that is asked."""

import json

import pytest
import torch
import yaml
from exported import write_exported
from fake_transcoders import N_LAYERS, write_results
from hub_stand_in import hub_stand_in
from small_runs import D_IN
from typer.testing import CliRunner

from sae_core.errors import ConfigError
from sae_core.sae.base import SparseAutoencoder
from sweeps.cli import app
from sweeps.exporting import export

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return write_exported(tmp_path_factory.mktemp("results") / "sweep", n_documents=0)


@pytest.fixture
def hub(tmp_path):
    with hub_stand_in(tmp_path / "cache") as hub:
        yield hub


def test_what_was_published_is_loaded_again(results, hub, tmp_path):
    (run,) = results.glob("runs/jumprelu-*-0")
    arguments = ["export", str(results), "--run", run.name, "--to", "hub:user/saes", "--json"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    data = json.loads(done.stdout)
    assert (data["directory"], data["exported"][0]["path"]) == ("hub:user/saes", f"hub:user/saes/{run.name}")
    files = hub.files("user/saes")
    names = ("cfg.json", "sae_weights.safetensors", "sparsity.safetensors")
    assert set(files) == {".gitattributes", "README.md", *(f"{run.name}/{name}" for name in names)}
    for name in names:
        assert files[f"{run.name}/{name}"] == (run / "sae" / name).read_bytes()
    assert len(hub.commits["user/saes"]) == 2  # it was made, and everything came at once
    assert f'SAE.from_pretrained("user/saes", "{run.name}")' in data["loading"]
    made = {"x": torch.randn(20, D_IN)}
    ours = next(code for code in data["loading"].split("\n\nfrom ") if "SparseAutoencoder" in code)
    with torch.no_grad():
        exec(f"from {ours.removeprefix('from ')}", made)
        torch.testing.assert_close(made["x_hat"], SparseAutoencoder.from_pretrained(run / "sae")(made["x"]), rtol=0, atol=0)
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 2
    assert (
        "must be new or empty to be published to, but got 'hub:user/saes', which holds 4 files"
        in json.loads(again.stdout)["error"]["message"]
    )


def test_a_published_set_names_its_files_on_the_hub(hub, tmp_path):
    results = write_results(tmp_path / "results")
    _, files = export(results, "hub:org/set", form="circuit-tracer", l0=8)
    assert files == ["hub:org/set/config.yaml", *(f"hub:org/set/layer_{layer}.safetensors" for layer in range(N_LAYERS))]
    config = yaml.safe_load(hub.files("org/set")["config.yaml"])
    assert config["scan"] == "org/set"
    assert config["transcoders"] == [f"hf://org/set/layer_{layer}.safetensors" for layer in range(N_LAYERS)]


def test_who_is_not_logged_in_and_names_of_no_repository_are_told_before_anything_is_written(results, hub, monkeypatch):
    for name, message in [
        ("hub:saes", "but got 'hub:saes'"),
        ("hub:user/saes/folder", r"hub:user/repo, but got 'hub:user/saes/folder'\. Leave out"),
        ("hub:user/saes@v1", "but got 'hub:user/saes@v1'"),
    ]:
        with pytest.raises(ConfigError, match=message):
            export(results, name, front=True)
    monkeypatch.setenv("HF_TOKEN", "another")
    with pytest.raises(
        ConfigError, match=r"can be written to, but got 'hub:user/saes': .*Log|can be written to, but got 'hub:user/saes'.*log in"
    ):
        export(results, "hub:user/saes", front=True)
    assert not hub.commits
