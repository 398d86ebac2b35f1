"""Which activations of a definition a published SAE is for, and what the analysis makes of such SAEs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from saelens_folders import write
from tiny_model import DEMO_MODEL, write_text

from analysis import words
from analysis.columns import arm_of_published
from sae_core.activations.language_model.model_spec import model_spec
from sae_core.errors import ConfigError
from sweeps.definition.sweep import Sweep
from sweeps.planning.inputs import shared_activations
from sweeps.planning.published import Published, published

FIRST, SECOND = "blocks.0.hook_resid_post", "blocks.1.hook_resid_post"


def folder_at(directory: Path, hook: str | None, model: str | None = None) -> str:
    tensors = {"W_enc": torch.randn(128, 64), "W_dec": torch.randn(64, 128), "b_enc": torch.zeros(64), "b_dec": torch.zeros(128)}
    metadata = {"sae_lens_version": "6.54.12", "hook_name": hook, "model_name": model}
    return str(write(directory, {"architecture": "standard", "d_in": 128, "d_sae": 64, "metadata": metadata}, tensors))


def found(directory: Path, names: list[str], hook_points: list[str]) -> list[Published]:
    """What a definition with these hook points finds."""
    definition: dict[str, Any] = {
        "name": "lm",
        "model": {"name": DEMO_MODEL, "hook_point": hook_points, "context_size": 32},
        "data": {"dataset": str(write_text(directory / "text.jsonl")), "train_tokens": 2000, "eval_tokens": 500},
        "sae": {"d_sae": 64},
        "train": {"batch_size": 100},
        "architectures": {"topk": {"k": 4}},
    }
    configs = [run.activations for run in Sweep.from_dict(definition).runs()]
    return published(names, configs, shared_activations(configs, [], directory / "caches"))


@pytest.mark.slow
def test_hook_points_are_compared_as_places_in_the_model(tmp_path: Path) -> None:
    path = str(model_spec(DEMO_MODEL).place(SECOND).module)
    end = ".".join(path.split(".")[-2:])  # as sparsify names its folders
    spelled = {"same": SECOND, "next": "blocks.2.hook_resid_pre", "unknown": None, "path": path, "end": end, "output": f"{end}@output"}
    fitting = [folder_at(tmp_path / name, hook) for name, hook in spelled.items()]
    assert [sae.name for sae in found(tmp_path, fitting, [SECOND])] == fitting
    other = folder_at(tmp_path / "other", FIRST, "gpt2")
    with pytest.raises(ConfigError, match=rf"{other}.*'{FIRST}'.*--set model.hook_point={FIRST}"):
        found(tmp_path, [other], [SECOND])
    with pytest.raises(ConfigError, match=r"name none.*--set model.hook_point=NAME"):
        found(tmp_path, [str(tmp_path / "unknown")], [FIRST, SECOND])
    (sae,) = found(tmp_path, [other, other], [FIRST, SECOND])
    assert sae.config["activations"]["model"]["hook_point"] == FIRST and ["'gpt2'" in note for note in sae.notes] == [True]
    copied = copy_of(Path(other), tmp_path / "again")
    (again,) = found(tmp_path, [copied], [FIRST])
    assert again.run_id == sae.run_id and again.notes == []
    (once,) = found(tmp_path, [copied, other], [FIRST])
    assert once.name == copied and once.notes == [f"evaluate: {other!r} computes the same as {copied!r}: measured once"]


def copy_of(folder: Path, copy: Path) -> str:
    """The same SAE in another folder, for a model of another name."""
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes().replace(b'"gpt2"', f'"{DEMO_MODEL}"'.encode()))
    return str(copy)


@pytest.mark.parametrize(
    ("origin", "name", "label"),
    [
        ("/some/where", "jumprelu (published)", "JumpReLU (published)"),
        ("hub:google/scope/layer_3@abc", "jumprelu (published, google/scope)", "JumpReLU (published, google/scope)"),
    ],
)
def test_published_saes_are_an_arm_of_their_publisher(origin: str, name: str, label: str) -> None:
    assert arm_of_published("jumprelu", origin) == name
    assert words.label(name) == words.arm(name) == label
    assert words.in_order([name, "jumprelu", "topk"]) == ["topk", "jumprelu", name]
