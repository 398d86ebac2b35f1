"""The document that each held-out token of a language model's text is of."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_runs import random_sae
from tiny_model import DEMO_MODEL, documents, language_model_config

from analysis.documents import DocumentSums
from sae_core.activations.language_model.source import LanguageModelSource
from sae_core.evaluation import Measured, evaluate

pytestmark = pytest.mark.slow  # a language model is loaded


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[LanguageModelSource, Path]:
    directory = tmp_path_factory.mktemp("text")
    source = LanguageModelSource(language_model_config(directory))
    source.prepare(directory)
    return source, directory


def test_tokens_of_packed_text_know_their_document(prepared: tuple[LanguageModelSource, Path]) -> None:
    from transformers import AutoTokenizer

    source, directory = prepared
    tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL)
    lengths = [len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) for text in documents(6, first=12)]
    # Each document behind a BOS, which does not count; 127 of the stream in a window, whose last one predicts nothing.
    stream = [(number, place > 0) for number, length in enumerate(lengths) for place in range(length + 1)][: 8 * 127]
    expected = [number for number, counts in stream if counts]
    predicted = [number for place, (number, counts) in enumerate(stream) if counts and place % 127 != 126]
    chunk = source.eval_chunk(directory, 0, torch.zeros(source.d_in))
    assert chunk.documents is not None and chunk.predicted_documents is not None
    assert chunk.documents.tolist() == expected and chunk.predicted_documents.tolist() == predicted
    assert len(set(expected)) == 3  # a document reaches over the ends of windows


def test_where_an_earlier_version_made_the_cache_all_text_is_one_document(
    prepared: tuple[LanguageModelSource, Path], tmp_path: Path
) -> None:
    source, directory = prepared
    tensors = load_file(directory / "tokens.safetensors")
    n_tokens = int((tensors["heldout"] != 0).sum())
    del tensors["heldout_documents"]
    save_file(tensors, tmp_path / "tokens.safetensors", {"chunk_windows": "3"})
    chunks = [source.eval_chunk(tmp_path, index, torch.zeros(source.d_in)) for index in range(source.n_eval_chunks(tmp_path))]
    found = torch.cat([chunk.documents for chunk in chunks if chunk.documents is not None])
    assert found.tolist() == [0] * n_tokens  # windows of one text are too much alike to stand for documents
    assert source.eval_fingerprint(tmp_path) == source.eval_fingerprint(directory)


def test_drawn_documents_are_a_text_that_repeats_them(tmp_path: Path) -> None:
    """By brute force: rows of tokens are documents, and the language model runs on a text with some of them twice."""
    rows = np.random.default_rng(0).integers(1, 4000, (5, 128)).tolist()
    weights = [2, 0, 1, 1, 3]
    sae = random_sae("topk", d_in=128, d_sae=256)

    def measured(name: str, held_out: list[list[int]]) -> Measured:
        directory = tmp_path / name
        directory.mkdir()
        train = [{"ids": rows[0], "split": "train"}]
        lines = [json.dumps(row) for row in [*train, *({"ids": row, "split": "heldout"} for row in held_out)]]
        (directory / "text.jsonl").write_text("\n".join(lines))
        tokens = {"train_tokens": 100, "eval_tokens": 127 * len(held_out), "tokens_column": "ids"}
        source = LanguageModelSource(language_model_config(directory, **tokens))
        source.prepare(directory)
        return evaluate({"run": sae}, source, directory, torch.zeros(128))["run"]

    whole = measured("whole", rows)
    repeated = measured("repeated", [row for row, times in zip(rows, weights, strict=True) for _ in range(times)])
    stored = whole.documents
    sums = {name: values[None] for name, values in stored.sums.items()}
    drawn = DocumentSums(("run",), stored.documents, stored.sums["n_tokens"], sums, stored.ratios)
    names = set(stored.ratios) - {"fvu", "explained_variance"}  # whose variance stays about the mean of the whole text
    assert names >= {"l0", "mse", "delta_ce", "ce_loss_recovered", "kl"} and repeated.n_tokens == 127 * 7
    for name in names:
        assert drawn.values(name)[0] == pytest.approx(whole.metrics[name], rel=1e-9)
        assert drawn.values(name, np.array([weights], dtype=float))[0, 0] == pytest.approx(repeated.metrics[name], rel=1e-5, abs=1e-6)
