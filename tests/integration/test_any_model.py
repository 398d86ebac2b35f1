"""Whole sweeps on models that are unlike the demo's: no tokenizer, no BOS, a mixture of experts, half precision."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from inline import launch
from tiny_model import random_model

from sae_core.errors import ConfigError
from sweeps.definition.sweep import Sweep
from sweeps.storage.store import Store

pytestmark = pytest.mark.slow


@pytest.fixture
def model(tmp_path: Path) -> str:
    """A mixture of experts without a tokenizer."""
    name = random_model(tmp_path / "model", "qwen3_moe")
    for path in (tmp_path / "model").glob("tokenizer*"):
        path.unlink()
    return name


def sweep(directory: Path, **model: Any) -> Sweep:
    draw = random.Random(0)
    rows = [{"ids": [draw.randrange(1, 4096) for _ in range(200)], "split": split} for split in ("train", "heldout") for _ in range(12)]
    (directory / "tokens.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return Sweep(
        name="any",
        model={"context_size": 32, "prepend_bos": False, **model},
        data={"dataset": str(directory / "tokens.jsonl"), "tokens_column": "ids", "train_tokens": 2_000, "eval_tokens": 1_000},
        sae={"d_sae": 64},
        train={"batch_size": 128},
        architectures={"topk": {"k": [4]}},
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_experts_of_several_layers_without_a_tokenizer(model: str, tmp_path: Path, dtype: str) -> None:
    assert launch(sweep(tmp_path, name=model, hook_point="model.layers.*.mlp", dtype=dtype), results=tmp_path / "results").finished == 3
    records = Store(tmp_path / "results" / "any").records().values()
    assert {record.config["activations"]["model"]["hook_point"] for record in records} == {
        f"model.layers.{layer}.mlp" for layer in range(3)
    }
    for record in records:
        assert record.metrics["ce_loss_clean"] == pytest.approx(8.3, abs=0.5)  # log(4096): the model is random
        assert record.metrics["kl"] is not None and record.metrics["kl"] >= -1e-6


def test_a_package_that_is_missing_is_found_before_work(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"`model\.quantization` needs the package 'accelerate', but got '8bit'"):
        launch(sweep(tmp_path, name=model, hook_point="model.layers.1", quantization="8bit"), results=tmp_path / "results")
