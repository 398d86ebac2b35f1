"""The worked examples run as they stand, on small models and data made here."""

import importlib.util
import json
import random
import runpy
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from documents import ROOT
from tiny_model import DEMO_MODEL

from analysis.pareto import pareto_front
from analysis.table import load_table
from sae_core import plugins

EXAMPLES = ROOT / "examples"
SMALL: dict[str, Any] = {
    "train_tokens": 4_000,
    "eval_tokens": 1_000,
    "sae": {"d_sae": 64},
    "train": {"lr": 1e-2, "batch_size": 100},
    "target_l0": [2, 8],
}


@pytest.fixture(autouse=True)
def _without_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analysis.report.write_report", lambda *_: None)


def example(name: str) -> ModuleType:
    """The module of an example, as a script has it; those that are plugins are loaded as such."""
    file = EXAMPLES / f"{name}.py"
    if "plugins=[__file__]" in file.read_text():
        plugins.load([str(file)])
        return sys.modules[_registered(name).__module__]
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _registered(name: str) -> Any:
    from sae_core.config import SOURCES

    return SOURCES[name]


def finished(directory: Path) -> Any:
    table = load_table(directory)
    assert (table.status == "finished").all() and table.fvu.between(0, 1.2).all()
    return table


def test_all_are_short() -> None:
    for file in EXAMPLES.glob("*.py"):
        assert len(file.read_text().splitlines()) < 120, file


@pytest.mark.parametrize("name", ["vit", "classifier", "protein"])
def test_a_script_may_be_its_own_plugin(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launched = []

    def launch(sweep: Any, **options: Any) -> None:
        launched.extend(run.activations for run in sweep.runs())
        raise SystemExit

    monkeypatch.setattr("sweeps.launch", launch, raising=False)
    for part in ("model", "train", "test"):
        (tmp_path / part).mkdir()
    monkeypatch.setattr(sys, "argv", ["example", *(str(tmp_path / part) for part in ("model", "train", "test"))])
    with pytest.raises(SystemExit):
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert {type(activations).__module__.partition("_")[0] for activations in launched} == {name}, "the plugin's class, not the script's"


def test_plain_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = example("plain_tensor")
    monkeypatch.setattr(module, "N_ROWS", 24_000)
    monkeypatch.setattr(module, "EVAL_TOKENS", 4_000)
    table = finished(module.main(results=tmp_path, executor="inline"))
    assert len(table) == 6 and len(pareto_front(table, "l0", "fvu")) >= 3


def test_vit_sweeps_two_layers_with_one_pass_over_the_images(tmp_path: Path) -> None:
    from PIL import Image
    from transformers import ViTConfig, ViTModel

    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    ViTModel(ViTConfig(**shape, image_size=32, patch_size=8), add_pooling_layer=False).save_pretrained(tmp_path / "model")
    generator = np.random.default_rng(0)
    for part, n_images in (("train", 240), ("test", 60)):
        (tmp_path / part).mkdir()
        for index in range(n_images):
            pixels = generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((40, 40)).save(tmp_path / part / f"{index}.png")
    module = example("vit")
    paths = [str(tmp_path / name) for name in ("model", "train", "test")]
    table = finished(module.main(*paths, layers=[0, 1], results=tmp_path, executor="inline", **SMALL))
    assert sorted(table.hook_point) == ["layers.0"] * 2 + ["layers.1"] * 2
    assert (table.eval_tokens == 1_000).all() and (table.d_in == 32).all()


def test_classifier_has_its_accuracy_before_and_after_the_splice_in_the_table(tmp_path: Path) -> None:
    from transformers import AutoTokenizer, GPT2Config, GPT2ForSequenceClassification

    tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL)
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 32, "vocab_size": len(tokenizer), "num_labels": 2}
    model = GPT2ForSequenceClassification(GPT2Config(**shape, eos_token_id=0, bos_token_id=0, pad_token_id=0))
    words = random.Random(0)
    texts = [" ".join(words.choices(["def", "return", "self", "import", "for", "class"], k=20)) for _ in range(400)]
    rows = [{"text": text, "label": int(text.split().count("self") > 3)} for text in texts]
    learn(model, tokenizer, rows[:200])
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    for name, some in (("train", rows[:300]), ("test", rows[300:])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, some)))
    module = example("classifier")
    paths = [str(tmp_path / name) for name in ("model", "train.jsonl", "test.jsonl")]
    changes = SMALL | {"hook_point": "transformer.h.0", "architectures": {"batchtopk": {}}}
    table = finished(module.main(*paths, results=tmp_path, executor="inline", **changes)).sort_values("target_l0")
    assert table.accuracy.nunique() == 1 and float(table.accuracy.iloc[0]) > 0.8, "the model without SAEs"
    assert table.accuracy_spliced.between(0, 1).all()  # by chance it may be above that of the model
    source = _registered("classifier")
    made = source(module.sweep_of(*paths, **changes).runs()[0].activations)
    batch = next(made.batches("heldout"))
    unchanged = made.run(batch, lambda x: x).logits
    assert torch.equal(unchanged, made.run(batch).logits), "a splice of x itself changes nothing"
    assert not torch.equal(unchanged, made.run(batch, torch.zeros_like).logits)


def learn(model: Any, tokenizer: Any, rows: list[dict[str, Any]]) -> None:
    """Train a classifier for a second or two."""
    tokenizer.pad_token = tokenizer.eos_token
    tokens = tokenizer([row["text"] for row in rows], padding="max_length", truncation=True, max_length=32, return_tensors="pt")
    labels = torch.tensor([row["label"] for row in rows])
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(40):
        optimizer.zero_grad()
        model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"], labels=labels).loss.backward()
        optimizer.step()


def test_protein_leaves_special_tokens_out(tmp_path: Path) -> None:
    from transformers import EsmConfig, EsmModel, EsmTokenizer

    letters = "LAGVSERTIDPKQNFYMHWC"
    vocabulary = ["<cls>", "<pad>", "<eos>", "<unk>", *letters, "<mask>"]
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary))
    EsmTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "model")
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": len(vocabulary)}
    config = EsmConfig(**shape, pad_token_id=1, mask_token_id=len(vocabulary) - 1, max_position_embeddings=64)
    EsmModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "model")
    draw = random.Random(0)
    lengths = [draw.randint(10, 40) for _ in range(260)]
    proteins = [f">protein {i}\n{''.join(draw.choices(letters, k=length))}\n" for i, length in enumerate(lengths)]
    (tmp_path / "train.fasta").write_text("".join(proteins[:200]))
    (tmp_path / "test.fasta").write_text("".join(proteins[200:]))
    module = example("protein")
    paths = [str(tmp_path / name) for name in ("model", "train.fasta", "test.fasta")]
    table = finished(module.main(*paths, hook_point="encoder.layer.1", results=tmp_path, executor="inline", **SMALL))
    assert sorted(table.architecture) == ["batchtopk"] * 2 + ["topk"] * 2
    source = _registered("protein")
    made = source(module.sweep_of(*paths, hook_point="encoder.layer.1", **SMALL).runs()[0].activations)
    (batch,) = list(made.batches("heldout"))[:1]
    assert int(made.keep(batch).sum()) == sum(lengths[200:232]), "residues, and nothing else"
