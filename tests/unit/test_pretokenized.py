"""Datasets that are tokenized already: written by us, recognized whoever wrote them, and refused where they are not the model's."""

import json
import shutil
from pathlib import Path

import datasets
import pytest
import torch
from tiny_model import DEMO_MODEL, documents, language_model_config, write_text

from sae_core.activations.files import load_tensors
from sae_core.activations.language_model import dataset
from sae_core.activations.language_model.data_config import DataConfig
from sae_core.activations.language_model.loading import tokenizer_or_none
from sae_core.activations.language_model.source import LanguageModelSource
from sae_core.activations.language_model.token_file import TokenFile
from sae_core.errors import ConfigError
from sweeps.definition.sweep import Sweep
from sweeps.planning.pretokenizing import pretokenize

pytestmark = pytest.mark.slow


def sweep(text: object, train_tokens: int = 2_000, **model: object) -> Sweep:
    return Sweep(
        name="text",
        model={"name": DEMO_MODEL, "hook_point": "blocks.2.hook_resid_post", **model},
        data={"dataset": str(text), "train_tokens": train_tokens, "eval_tokens": 1_000},
        sae={"d_sae": 64},
        train={"batch_size": 128},
        architectures={"topk": {"k": [4]}},
    )


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("ours")
    pretokenize(sweep(write_text(directory / "text.jsonl")), directory / "tokens")
    return directory


def prepared(directory: Path, **changes: object) -> TokenFile:
    source = LanguageModelSource(language_model_config(directory, **changes))
    source.check()
    source.prepare(directory / "cache")
    return TokenFile(directory / "cache")


def refused(directory: Path, **changes: object) -> str:
    with pytest.raises(ConfigError) as error:
        LanguageModelSource(language_model_config(directory, **changes)).check()
    return str(error.value)


@pytest.mark.parametrize("prepend_bos", [True, False])
def test_windows_are_those_of_the_text(tmp_path: Path, prepend_bos: bool) -> None:
    text = write_text(tmp_path / "text.jsonl")
    made = pretokenize(sweep(text, prepend_bos=prepend_bos), tmp_path / "tokens")
    direct = load_tensors(prepared(tmp_path, prepend_bos=prepend_bos).path)
    shutil.rmtree(tmp_path / "cache")
    file = prepared(tmp_path, prepend_bos=prepend_bos, dataset=str(tmp_path / "tokens"))
    tensors, metadata = load_tensors(file.path)
    assert metadata["chunk_windows"] == direct[1]["chunk_windows"] and tensors.keys() == direct[0].keys()
    assert all(torch.equal(tensor, direct[0][name]) for name, tensor in tensors.items())
    assert (made.train_windows, made.heldout_windows) == (file.n_windows("train"), file.n_windows("heldout"))


def test_fewer_tokens_are_the_first_windows(tmp_path: Path, ours: Path) -> None:
    few = prepared(tmp_path, dataset=str(ours / "tokens"), eval_tokens=300)
    rows = datasets.load_from_disk(str(ours / "tokens"))["heldout"]["input_ids"]
    assert few.heldout.tolist() == torch.as_tensor(rows[: len(few.heldout)]).tolist() and len(few.heldout) < len(rows)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"context_size": 64}, ["`model.context_size` must be 128", "sae_sweep.json", "got 64"]),
        ({"prepend_bos": False}, ["`model.prepend_bos` must be true", "got false"]),
        ({"eval_split": "train"}, ["`data.eval_split` must be another split", "'train' for both"]),
        ({"train_split": "trian"}, ["`data.train_split`", "'trian'", "Did you mean 'train'?"]),
    ],
)
def test_other_settings_are_refused(tmp_path: Path, ours: Path, changes: dict[str, object], parts: list[str]) -> None:
    message = refused(tmp_path, dataset=str(ours / "tokens"), **changes)
    assert all(part in message for part in parts), message


def test_another_tokenizer_is_refused_by_name(tmp_path: Path, ours: Path) -> None:
    shutil.copytree(DEMO_MODEL, model := tmp_path / "other")
    content = json.loads((model / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    first, second = list(vocabulary)[300:302]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (model / "tokenizer.json").write_text(json.dumps(content))
    message = refused(tmp_path, dataset=str(ours / "tokens"), name=str(model))
    assert repr(DEMO_MODEL) in message and repr(str(model)) in message and "`data.tokens_column: input_ids`" in message
    unchecked = language_model_config(tmp_path, dataset=str(ours / "tokens"), name=str(model), tokens_column="input_ids")
    LanguageModelSource(unchecked).check()


def saelens_rows(directory: Path, n_rows: int = 40, length: int = 128, **settings: object) -> Path:
    """As SAELens' PretokenizeRunner saves them."""
    tokenizer = tokenizer_or_none(DEMO_MODEL)
    ids = [token for text in documents(30) for token in [0, *tokenizer(text)["input_ids"]]]
    rows = [[0, *ids[start : start + length - 1]] for start in range(0, n_rows * (length - 1), length - 1)]
    saved = datasets.Dataset.from_dict({"input_ids": rows})
    saved.set_format("torch", columns=["input_ids"])
    saved.save_to_disk(str(directory))
    described = {"sae_lens_version": "6.54.12", "tokenizer_name": DEMO_MODEL, "context_size": length, **settings}
    (directory / "sae_lens.json").write_text(json.dumps(described))
    return directory


def test_rows_of_saelens_are_windows(tmp_path: Path) -> None:
    rows = saelens_rows(tmp_path / "theirs")
    file = prepared(tmp_path, dataset=str(rows), eval_split="train", eval_tokens=200, train_tokens=1_000)
    saved = {tuple(row) for row in torch.as_tensor(datasets.load_from_disk(str(rows))["input_ids"][:]).tolist()}
    windows = [*file.heldout.tolist(), *file.windows("train", 0, 100)[0].tolist()]
    assert len(windows) > 5 and all(tuple(window) in saved for window in windows)


def test_rows_of_saelens_are_checked(tmp_path: Path) -> None:
    rows = saelens_rows(tmp_path / "short", length=64)
    message = refused(tmp_path, dataset=str(rows), eval_split="train")
    assert "`model.context_size` must be <= 64, the tokens in a row of" in message and "got 128" in message
    rows = saelens_rows(tmp_path / "other", tokenizer_name=str(tmp_path / "nowhere"))
    message = refused(tmp_path, dataset=str(rows), eval_split="train")
    assert f"of {str(tmp_path / 'nowhere')!r} (sae_lens.json)" in message and "or is not at hand" in message
    (rows / "sae_lens.json").write_text("{}")
    assert "sae_lens.json beside `data.dataset` must hold its settings" in refused(tmp_path, dataset=str(rows), eval_split="train")


def test_rows_of_transformerlens_are_recognized_by_their_column(tmp_path: Path) -> None:
    saved = datasets.Dataset.from_dict({"tokens": [[0, *range(5, 132)]] * 30})
    saved.save_to_disk(str(tmp_path / "tokens"))
    config = DataConfig(dataset=str(tmp_path / "tokens"), eval_split="train")
    assert dataset.resolved(config).tokens_column == "tokens"
    assert config.model_dump()["tokens_column"] is None  # run ids do not change
    assert dataset.problems(config, d_vocab=4096) == []
    assert "token ids must be < 100" in dataset.problems(config, d_vocab=100)[0]


def test_ids_beside_text_are_text(tmp_path: Path) -> None:
    path = tmp_path / "both.jsonl"
    path.write_text(json.dumps({"text": "some", "tokens": [1, 2], "input_ids": [1]}))
    assert dataset.resolved(DataConfig(dataset=str(path))).tokens_column is None
    path.write_text(json.dumps({"words": "some", "tokens": ["som", "e"]}))  # of a tagger
    assert dataset.resolved(DataConfig(dataset=str(path))).tokens_column is None


def test_one_text_is_written_where_there_was_nothing(tmp_path: Path, ours: Path) -> None:
    with pytest.raises(ConfigError, match=r"`--to` must be a new or empty directory, but got .*tokens"):
        pretokenize(sweep(ours / "text.jsonl"), ours / "tokens")
    with pytest.raises(ConfigError, match=r"one dataset, but got model.context_size=\[64, 128\]"):
        pretokenize(sweep(ours / "text.jsonl", context_size=[64, 128]), tmp_path / "new")
    with pytest.raises(ConfigError, match="at most the"):
        pretokenize(sweep(ours / "text.jsonl", train_tokens=10**9), tmp_path / "new")
    assert list(tmp_path.iterdir()) == []
    pretokenize(sweep(ours / "text.jsonl", hook_point="blocks.*.hook_resid_post"), tmp_path / "new")  # they read the same


def test_masks_are_not_written(tmp_path: Path) -> None:
    sections = {
        "model": {"name": "demo", "hook_point": "blocks.2.hook_resid_post"},
        "sae": {"d_sae": 64},
        "architectures": {"topk": {"k": 8}},
    }
    data = {"dataset": "demo", "positions": [2, 32], "train_tokens": 100, "eval_tokens": 100}
    with pytest.raises(ConfigError, match="writes tokens without masks, but got 'positions 2 to 31 of each window'"):
        pretokenize(Sweep(name="a", data=data, train={"batch_size": 50}, **sections), tmp_path / "to")
