"""What docs/own-activations.md shows runs: its source and its evaluator as one plugin of a sweep, its script as it stands."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from documents import ROOT, blocks
from inline import launch

from analysis.table import load_table
from sae_core import SparseAutoencoder
from sweeps import Sweep

PAGE = ROOT / "docs" / "own-activations.md"


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a small vision transformer and images."""
    from transformers import ViTConfig, ViTModel

    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    ViTModel(ViTConfig(**shape, image_size=32, patch_size=8), add_pooling_layer=False).save_pretrained(tmp_path / "vit")
    np.save(tmp_path / "images.npy", np.random.default_rng(0).standard_normal((400, 3, 32, 32)).astype(np.float32))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("analysis.report.write_report", lambda *_: None)
    return tmp_path


def test_the_source_and_the_evaluator_are_a_sweep(directory: Path) -> None:
    source, evaluator, *_ = blocks(PAGE, "python")
    (directory / "my_vit.py").write_text(source + "\n\n" + evaluator)
    definition = yaml.safe_load(next(text for text in blocks(PAGE, "yaml") if "plugins" in text))
    definition["activations"] |= {"model": "vit", "hook_point": ["layers.0", "layers.1"], "train_tokens": 4_000, "eval_tokens": 1_000}
    definition |= {"sae": {"d_sae": 64}, "target_l0": [4, 8], "architectures": {"topk": {}}, "train": {"batch_size": 100}}
    done = launch(Sweep.from_dict(definition), results=directory / "results")
    table = load_table(done.directory)
    assert (table.status == "finished").all() and len(table) == 4
    assert table.cosine_to_class.between(-1, 1).all() and table.cosine_to_class.nunique() == 4
    assert sorted(set(table.hook_point)) == ["layers.0", "layers.1"]


def test_the_script_trains_measures_and_saves(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, _, *script = blocks(PAGE, "python")
    names: dict[str, object] = {"__name__": "script"}
    exec("\n".join(line for line in source.splitlines() if line.startswith(("import", "from"))), names)
    for text in script:
        exec(text, names)
    shown = capsys.readouterr().out
    measured = "\n".join(line for line in shown.splitlines() if not line.startswith("step "))  # a checkpoint may be of step 50, too
    assert "checkpoint.safetensors" in shown and measured.count(" 50 ") == 2
    (last,) = sorted((directory / "saes").iterdir(), key=lambda path: path.stat().st_mtime_ns)[1:]
    loaded, x = SparseAutoencoder.from_pretrained(last), torch.randn(3, 32)
    assert torch.equal(loaded(x), names["sae"](x)), "the last of the loop"  # type: ignore[operator]
