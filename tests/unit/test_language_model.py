import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_model import DEMO_MODEL, documents, language_model_config, write_text
from transformers import AutoTokenizer

from sae_core.activations import language_model
from sae_core.activations.language_model import LanguageModelSource
from sae_core.errors import ConfigError


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("text")


@pytest.fixture(scope="module")
def source(directory: Path) -> LanguageModelSource:
    """Prepared in `directory`: 2,000 training and 1,000 held-out tokens."""
    source = LanguageModelSource(language_model_config(directory))
    source.prepare(directory)
    return source


def test_windows_hold_the_text_in_another_order(source: LanguageModelSource, directory: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL)
    tokens = load_file(directory / "tokens.safetensors")
    assert tokens["train"].shape == (16, 128)  # 16 x 127 = 2,032 tokens; a few of them BOS between documents

    def windows(texts: list[str], n_windows: int) -> list[list[int]]:
        stream = [token for text in texts for token in [0, *tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]]]
        return [[0, *stream[start : start + 127]] for start in range(0, n_windows * 127, 127)]

    in_order = windows(documents(12), 16)
    assert sorted(tokens["train"].tolist()) == sorted(in_order)
    assert tokens["train"].tolist() != in_order
    assert tokens["heldout"].tolist() == windows(documents(6, first=12), 8)
    assert tokens["special_ids"].tolist() == [0]


def test_preparing_twice_does_nothing(source: LanguageModelSource, directory: Path) -> None:
    before = (directory / "tokens.safetensors").stat().st_mtime_ns
    source.prepare(directory)
    assert (directory / "tokens.safetensors").stat().st_mtime_ns == before


def test_shards_hold_the_activations_of_all_tokens_but_bos(
    source: LanguageModelSource, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(language_model, "SHARD_TOKENS", 5 * 128)
    monkeypatch.setitem(language_model.MODEL_TOKENS, "cpu", 2 * 128)
    assert source.n_shards(directory) == 4  # 16 windows, five at a time
    shards = [source.shard(directory, index) for index in range(4)]
    tokens = load_file(directory / "tokens.safetensors")["train"].long()
    expected = source._model.read(tokens)[tokens != 0]
    x = torch.cat(shards)
    assert x.shape == expected.shape
    assert x.dtype == torch.float32
    for start in (0, 1):  # the same rows, in another order
        assert torch.allclose(x[:, start].sort().values, expected[:, start].sort().values, atol=1e-4)
    assert not torch.allclose(shards[0], expected[: len(shards[0])], atol=1e-3)
    assert torch.equal(source.shard(directory, 1), shards[1])


def test_special_tokens_may_be_kept(directory: Path, tmp_path: Path) -> None:
    source = LanguageModelSource(language_model_config(directory, exclude_special_tokens=False))
    source.prepare(tmp_path)
    assert source.shard(tmp_path, 0).shape == (16 * 128, 128)  # the fewest windows with 2,000 tokens, all of them kept
    assert source.eval_chunk(tmp_path, 0, torch.zeros(128)).x.shape == (8 * 128, 128)


def test_held_out_chunks(source: LanguageModelSource, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert source.n_eval_chunks(directory) == 1
    chunk = source.eval_chunk(directory, 0, torch.zeros(128))
    assert 1_000 <= len(chunk.x) <= 1_127
    assert float(chunk.clean.ce.mean()) < 4 < float(chunk.mean_ablated.ce.mean()) < float(chunk.zero_ablated.ce.mean())
    assert torch.allclose(chunk.splice([chunk.x])[0].ce, chunk.clean.ce, atol=1e-5)


def test_large_vocabularies_make_small_chunks(directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language_model, "CHUNK_LOGITS", 3 * 128 * 4096)
    source = LanguageModelSource(language_model_config(directory))
    source.prepare(tmp_path)
    assert source.n_eval_chunks(tmp_path) == 3  # 8 windows, three at a time
    sizes = [len(source.eval_chunk(tmp_path, index, torch.zeros(128)).x) for index in range(3)]
    assert sizes[0] > sizes[2] > 0


def test_fingerprint_is_of_content_and_settings(directory: Path, tmp_path: Path) -> None:
    one = LanguageModelSource(language_model_config(directory)).fingerprint()
    write_text(tmp_path / "elsewhere.jsonl")
    assert LanguageModelSource(language_model_config(directory, dataset=str(tmp_path / "elsewhere.jsonl"))).fingerprint() == one
    assert LanguageModelSource(language_model_config(directory, streaming=True)).fingerprint() == one
    changes = [{"hook_point": "blocks.1.hook_resid_post"}, {"context_size": 64}, {"activations_dtype": "float32"}, {"train_tokens": 3_000}]
    others = {LanguageModelSource(language_model_config(directory, **change)).fingerprint() for change in changes}
    assert len(others | {one}) == 5
    write_text(tmp_path / "elsewhere.jsonl", n_train=13)
    assert LanguageModelSource(language_model_config(directory, dataset=str(tmp_path / "elsewhere.jsonl"))).fingerprint() != one


def test_eval_fingerprint_leaves_training_out(source: LanguageModelSource, directory: Path, tmp_path: Path) -> None:
    def fingerprint(name: str, **changes: object) -> str:
        other = LanguageModelSource(language_model_config(directory, **changes))
        other.prepare(tmp_path / name)
        return other.eval_fingerprint(tmp_path / name)

    one = source.eval_fingerprint(directory)
    assert fingerprint("train", train_tokens=1_000, activations_dtype="float32") == one
    assert fingerprint("eval", eval_tokens=500) != one
    assert fingerprint("hook", hook_point="blocks.1.hook_resid_post") != one


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_tokens": 1_000_000}, r"`data\.train_tokens` must be at most the \d+ tokens.*but got 1000000.*more text"),
        ({"eval_tokens": 500_000}, r"`data\.eval_tokens` must be at most the \d+ tokens that split 'heldout'.*but got 500000"),
    ],
)
def test_too_little_text(directory: Path, tmp_path: Path, changes: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LanguageModelSource(language_model_config(directory, **changes)).prepare(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_tokens_of_another_model_are_refused(tmp_path: Path) -> None:
    rows = [{"ids": [0, *range(5_000, 5_300)], "split": split} for split in ("train", "heldout")]
    (tmp_path / "tokens.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    config = language_model_config(tmp_path, dataset=str(tmp_path / "tokens.jsonl"), tokens_column="ids", train_tokens=100, eval_tokens=100)
    with pytest.raises(ConfigError, match=r"token ids must be < 4096.*but got 5126 in `ids`"):  # the last of one window
        LanguageModelSource(config).prepare(tmp_path / "cache")


def test_tokenised_rows_need_no_text(tmp_path: Path) -> None:
    rows = [{"ids": [0, *range(1, 128)], "split": split} for split in ("train", "heldout", "train")]
    (tmp_path / "tokens.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    config = language_model_config(tmp_path, dataset=str(tmp_path / "tokens.jsonl"), tokens_column="ids", train_tokens=254, eval_tokens=127)
    source = LanguageModelSource(config)
    source.check()
    source.prepare(tmp_path / "cache")
    assert source.shard(tmp_path / "cache", 0).shape == (254, 128)


def test_check_finds_every_problem_at_once(directory: Path) -> None:
    config = language_model_config(directory, hook_point="blocks.9.hook_resid_post", context_size=256, text_column="txt", eval_split="test")
    with pytest.raises(ConfigError) as raised:
        LanguageModelSource(config).check()
    problems = str(raised.value).splitlines()
    assert len(problems) == 4
    for problem, part in zip(problems, ["context_size` must be <= 128", "'blocks.9.hook_resid_post'", "'test'", "'txt'"], strict=True):
        assert part in problem


def test_check_of_what_is_missing(tmp_path: Path) -> None:
    config = language_model_config(tmp_path, name="./no-model", dataset="no-data.parquet")
    with pytest.raises(ConfigError, match=r"(?s)'\./no-model'.*'no-data\.parquet'"):
        LanguageModelSource(config).check()


def test_check_accepts_what_works(source: LanguageModelSource) -> None:
    source.check()


def test_widths_at_hook_points(directory: Path, tmp_path: Path) -> None:
    source = LanguageModelSource(
        language_model_config(directory, hook_point="blocks.1.attn.hook_z", context_size=32, train_tokens=100, eval_tokens=100)
    )
    source.prepare(tmp_path)
    assert source.d_in == 128
    assert source.shard(tmp_path, 0).shape[1] == 128


def test_export_metadata_has_the_keys_of_saelens(source: LanguageModelSource) -> None:
    metadata = source.export_metadata()
    assert (metadata["model_name"], metadata["hook_name"], metadata["context_size"]) == (DEMO_MODEL, "blocks.2.hook_resid_post", 128)
    assert metadata["prepend_bos"] is True
