"""SAEs of an architecture that a plugin registers: saved with the plugin's name, loaded in another process that knows nothing of it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from plain_sae import PLUGIN

from sae_core.errors import ConfigError
from sae_core.sae import SparseAutoencoder

SAVE = """
import sys
from sae_core import plugins
from sae_core.config import ARCHITECTURES
plugins.load([sys.argv[1]])
cls = ARCHITECTURES["plain"]
cls(cls.Config(d_sae=8, l1_coefficient=0.25), 4).eval().save_pretrained(sys.argv[2])
"""
LOAD = """
import sys
from sae_core.sae import SparseAutoencoder
config = SparseAutoencoder.from_pretrained(sys.argv[1]).config
sys.stdout.write(f"{config.architecture} {config.l1_coefficient}")
"""


def python(script: str, *arguments: Path) -> str:
    done = subprocess.run([sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The plugin, and the directory of an SAE."""
    directory = tmp_path_factory.mktemp("plugin")
    plugin = directory / "plain_sae.py"
    plugin.write_text(PLUGIN)
    python(SAVE, plugin, directory / "sae")
    return plugin, directory / "sae"


@pytest.mark.slow
def test_another_process_imports_what_the_files_name(saved: tuple[Path, Path]) -> None:
    plugin, sae = saved
    assert json.loads((sae / "cfg.json").read_text())["metadata"]["plugins"] == [str(plugin)]
    assert python(LOAD, sae) == "plain 0.25"  # with all fields of its own: any may decide what it computes


@pytest.mark.slow
def test_code_beside_the_weights_is_not_imported(saved: tuple[Path, Path], tmp_path: Path) -> None:
    evil = tmp_path / "evil.py"
    evil.write_text("raise AssertionError")
    cfg = {"architecture": "evil", "d_in": 4, "d_sae": 8, "metadata": {"plugins": [str(evil)]}}
    (tmp_path / "cfg.json").write_text(json.dumps(cfg))
    (tmp_path / "sae_weights.safetensors").write_bytes((saved[1] / "sae_weights.safetensors").read_bytes())
    with pytest.raises(ConfigError, match=r"must be outside the SAE's directory, but got '.*evil\.py', which is not imported unless"):
        SparseAutoencoder.from_pretrained(tmp_path)


def test_a_plugin_that_is_gone_is_named(tmp_path: Path) -> None:
    cfg = {"architecture": "gone", "d_in": 4, "d_sae": 8, "metadata": {"plugins": ["no_such_module"]}}
    (tmp_path / "cfg.json").write_text(json.dumps(cfg))
    with pytest.raises(ConfigError, match="a plugin must be importable, but got 'no_such_module'"):
        SparseAutoencoder.from_pretrained(tmp_path)


TRANSCODING = PLUGIN.replace("ArchitectureConfig", "TranscoderConfig").replace(
    "Config = PlainConfig", "Config = PlainConfig; transcodes = True"
)
TRANSCODING = TRANSCODING.replace("x - self.b_dec", "x - self.input_bias").replace(
    "mse(self.decode(latents), x)", "mse(latents @ self.W_dec + self.output_offset(x), ctx.target_of(x))"
)
TRAIN = """
import sys
import torch
from sae_core import plugins
from sae_core.activations.stream import TensorStream
from sae_core.activations.synthetic import SyntheticActivations
from sae_core.config import ARCHITECTURES, RunConfig, TrainConfig
from sae_core.sae import SparseAutoencoder
from sae_core.training.loop import train_run
plugins.load([sys.argv[1]])
x = torch.randn(512, 4, generator=torch.Generator().manual_seed(0))
config = ARCHITECTURES["plain"].Config(d_sae=8, skip_connection=True)
activations = SyntheticActivations(train_tokens=640, eval_tokens=64, d_in=4, n_features=8, n_active=2.0)
run = RunConfig(activations=activations, sae=config, train=TrainConfig(batch_size=64))
exported = train_run(run, TensorStream(x, target=x[:, :3].abs(), batch_size=64)).exported()
exported.save_pretrained(sys.argv[2])
loaded = SparseAutoencoder.from_pretrained(sys.argv[2])
assert torch.equal(loaded(x), exported(x)) and loaded.W_skip is not None
sys.stdout.write(f"{type(loaded).__name__} {loaded.sizes}")
"""


@pytest.mark.slow
def test_an_architecture_of_a_plugin_transcodes(tmp_path: Path) -> None:
    plugin = tmp_path / "plain_sae.py"
    plugin.write_text(TRANSCODING)
    assert python(TRAIN, plugin, tmp_path / "sae") == "Plain (4, 3)"
    cfg = json.loads((tmp_path / "sae" / "cfg.json").read_text())
    assert cfg["architecture"] == "plain" and cfg["skip_connection"] is True and cfg["d_out"] == 3
