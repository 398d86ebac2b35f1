"""What folders of each format say about where their SAE belongs."""

import json
from pathlib import Path
from typing import Any

import pytest
from saelens_folders import V5, V6, transcoder_cfg, weights, write

from sae_core.sae.belonging import Belonging, belonging

RESID = "blocks.1.hook_resid_post"


@pytest.mark.parametrize(
    ("cfg", "expected"),
    [
        (V6 | {"architecture": "standard"}, Belonging(None, RESID)),
        (V5 | {"model_name": "gpt2"}, Belonging("gpt2", RESID)),
        ({"hook_point": RESID, "hook_point_layer": 1, "model_name": "gpt2"}, Belonging("gpt2", RESID)),
        (V5 | {"hook_name_out": RESID}, Belonging(None, RESID)),
        (transcoder_cfg("transcoder"), Belonging(None, "blocks.1.hook_mlp_in", "blocks.1.hook_mlp_out")),
        ({}, Belonging()),
    ],
)
def test_saelens_of_any_age(tmp_path: Path, cfg: dict[str, Any], expected: Belonging) -> None:
    assert belonging(write(tmp_path / "sae", cfg, weights("standard"))) == expected


def other(folder: Path, files: dict[str, Any]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(("name", "hook_point"), [("resid_post_layer_3", "blocks.3.hook_resid_post"), ("mlp_3", None), (None, None)])
def test_dictionary_learning(tmp_path: Path, name: str | None, hook_point: str | None) -> None:
    trainer = {"lm_name": "EleutherAI/pythia-70m", "layer": 3, "submodule_name": name}
    folder = other(tmp_path, {"config.json": {"trainer": trainer, "buffer": {"io": "out"}}, "ae.pt": None})
    assert belonging(folder) == Belonging("EleutherAI/pythia-70m", hook_point)


@pytest.mark.parametrize(
    ("folder", "hook_point"), [("layers.5", "layers.5"), ("h.5/seed1", "h.5"), ("layers.5.mlp", "layers.5.mlp"), ("best", None)]
)
def test_sparsify(tmp_path: Path, folder: str, hook_point: str | None) -> None:
    other(tmp_path, {"config.json": {"model": "gpt2"}})
    assert belonging(other(tmp_path / folder, {"cfg.json": {}, "sae.safetensors": None})) == Belonging("gpt2", hook_point)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71", Belonging("google/gemma-2-2b", "blocks.20.hook_resid_post")),
        ("models--google--gemma-scope-9b-it-att/snapshots/abc/layer_9/x", Belonging("google/gemma-2-9b-it", "blocks.9.attn.hook_z")),
        (
            "google/gemma-scope-2b-pt-transcoders/layer_3/x",
            Belonging("google/gemma-2-2b", "blocks.3.ln2.hook_normalized", "blocks.3.hook_mlp_out"),
        ),
        ("mine/layer_3", Belonging()),
    ],
)
def test_gemma_scope_1_is_its_path(tmp_path: Path, path: str, expected: Belonging) -> None:
    assert belonging(other(tmp_path / path, {"params.npz": None})) == expected


def test_gemma_scope_2(tmp_path: Path) -> None:
    config = {
        "model_name": "gemma-v3-1b-pt",
        "hf_hook_point_in": "model.layers.9.mlp.input",
        "hf_hook_point_out": "model.layers.9.mlp.output",
    }
    folder = other(tmp_path, {"config.json": config, "params.safetensors": None})
    assert belonging(folder) == Belonging("gemma-v3-1b-pt", "model.layers.9.mlp@input", "model.layers.9.mlp")
