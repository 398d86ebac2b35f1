import hashlib
import json
import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_model import DEMO_MODEL, documents, language_model_config, write_text
from transformers import AutoTokenizer

from sae_core.activations import shards
from sae_core.activations.language_model import source as language_model
from sae_core.activations.language_model.source import LanguageModelSource
from sae_core.activations.stream import Stream
from sae_core.errors import ConfigError

pytestmark = pytest.mark.slow


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
    expected = source.model.read(tokens)[0][tokens != 0]
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


# What is wrong with a model shows in its values


def broken_model(directory: Path, name: str, index: tuple[int, ...], value: float) -> str:
    """A copy of the demo's model with one other weight, in float32."""
    shutil.copytree(DEMO_MODEL, directory)
    weights = {key: tensor.float() for key, tensor in load_file(directory / "model.safetensors").items()}
    weights[name][index] = value
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
    return str(directory)


@pytest.mark.parametrize(
    ("weight", "index", "value", "fields", "what"),
    [
        ("transformer.wte.weight", (slice(None), 5), float("inf"), {"hook_point": "hook_embed"}, "activations"),
        ("transformer.h.1.mlp.c_proj.bias", (3,), 1e5, {"dtype": "float16"}, "activations"),
        ("transformer.ln_f.weight", (3,), float("nan"), {}, "logits"),  # of the activations nothing is wrong
    ],
    ids=["weights", "precision", "above the hook point"],
)
@pytest.mark.usefixtures("source")
def test_values_that_are_not_finite_are_blamed_on_the_model(
    directory: Path, tmp_path: Path, weight: str, index: tuple[int, ...], value: float, fields: dict[str, str], what: str
) -> None:
    name = broken_model(tmp_path / "model", weight, index, value)
    broken = LanguageModelSource(language_model_config(directory, name=name, **fields))
    remedy = "Set `model.dtype: float32`: float16 may be too narrow" if fields.get("dtype") else "Check the weights of the model"
    with pytest.raises(ConfigError, match=rf"{what} .* must be finite, but got (nan|inf) .* training window.* of '{name}'\. {remedy}"):
        broken.shard(directory, 0)
    what = "cross-entropies" if what == "logits" else what
    with pytest.raises(
        ConfigError, match=rf"{what} .* must be finite, but got (nan|inf) .* in held-out windows 0 to 7.* of '{name}'\. {remedy}"
    ):
        broken.eval_chunk(directory, 0, torch.zeros(128))


def test_activations_in_float64_are_cast(source: LanguageModelSource, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = LanguageModelSource(language_model_config(directory))
    expected = other.shard(directory, 0)
    other.model._model.double()
    found = other.shard(directory, 0)
    assert found.dtype == torch.float32
    assert torch.allclose(found, expected, atol=1e-4)
    chunk = other.eval_chunk(directory, 0, torch.zeros(128))
    assert chunk.x.dtype == torch.float32
    (same,) = chunk.splice([chunk.x])
    assert torch.allclose(same.ce.float(), chunk.clean.ce.float(), atol=1e-4)


def test_a_shard_that_is_not_stored_is_made_again_bit_for_bit(source: LanguageModelSource, directory: Path, tmp_path: Path) -> None:
    other = LanguageModelSource(source.config)  # of another process, which loads the model again
    stored, streamed = tmp_path / "stored", tmp_path / "streamed"
    for cache, n_stored in ((stored, None), (streamed, 0)):
        cache.mkdir()
        shutil.copy(directory / "tokens.safetensors", cache)
        shards.harvest(source, cache, n_stored=n_stored)
        shards.finish(source, cache, n_stored)
    streams = Stream(stored, batch_size=500), Stream(streamed, batch_size=500, source=other)
    batches, again = (torch.cat(list(islice(stream.batches(), 6))) for stream in streams)
    assert torch.equal(batches, again)


def test_the_memory_of_the_model(source: LanguageModelSource) -> None:
    in_file = 4 * sum(weight.numel() for weight in load_file(Path(DEMO_MODEL) / "model.safetensors").values())
    assert source.model_bytes == in_file
    on_two = LanguageModelSource(source.config)
    on_two.n_gpus = 2
    assert on_two.model_bytes == source.model_bytes // 2


def test_facts(source: LanguageModelSource) -> None:
    assert source.facts() == {"d_vocab": 4096.0}


def test_check_finds_weights_that_do_not_load(directory: Path, tmp_path: Path) -> None:
    name = broken_model(tmp_path / "model", "transformer.wte.weight", (0, 0), 0.0)
    path = tmp_path / "model/model.safetensors"
    save_file({f"_orig_mod.{key}": value for key, value in load_file(path).items()}, path, {"format": "pt"})
    with pytest.raises(ConfigError, match=f"weights all load, but got '{name}' with weights 53 missing"):
        LanguageModelSource(language_model_config(directory, name=name)).check()


# Without a tokenizer


def without_tokenizer(directory: Path, **changes: Any) -> LanguageModelSource:
    shutil.copytree(DEMO_MODEL, directory / "model", ignore=shutil.ignore_patterns("tokenizer*"))
    rows = [
        {"ids": [(7 * index + 13 * j) % 4000 + 5 for j in range(128)], "split": split}
        for index in range(4)
        for split in ("train", "heldout")
    ]
    (directory / "tokens.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    fields = {"name": str(directory / "model"), "dataset": str(directory / "tokens.jsonl"), "tokens_column": "ids", "prepend_bos": False}
    return LanguageModelSource(language_model_config(directory, **(fields | {"train_tokens": 500, "eval_tokens": 500} | changes)))


def test_a_model_without_a_tokenizer_takes_token_ids(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = without_tokenizer(tmp_path)
    source.check()
    source.prepare(tmp_path / "cache")
    assert "no token is special" in caplog.text
    assert source.shard(tmp_path / "cache", 0).shape == (512, 128)
    assert len(source.eval_chunk(tmp_path / "cache", 0, torch.zeros(128)).x) == 512
    assert len(source.eval_fingerprint(tmp_path / "cache")) == 64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prepend_bos": True}, "`model.prepend_bos` must be false where there is no tokenizer, but got True"),
        ({"tokens_column": None}, "text needs a tokenizer, but got none in `model.name` '.*model'.*`data.tokens_column`"),
    ],
)
def test_what_needs_a_tokenizer_says_so(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        without_tokenizer(tmp_path, **changes).check()


def test_ids_of_another_model_are_found_before_anything_starts(tmp_path: Path) -> None:
    rows = [{"ids": [5000] * 200, "split": split} for split in ("train", "heldout")]
    (tmp_path / "tokens.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    config = language_model_config(tmp_path, dataset=str(tmp_path / "tokens.jsonl"), tokens_column="ids")
    with pytest.raises(ConfigError, match=r"token ids must be < 4096, the model's vocabulary, but got 5000 in `ids`"):
        LanguageModelSource(config).check()


# The shape of windows


def eval_hash(directory: Path, rows: list[list[int]], context_size: int, *, prepend_bos: bool) -> str:
    text = [{"ids": row, "split": split} for row in rows for split in ("train", "heldout")]
    directory.mkdir()
    (directory / "tokens.jsonl").write_text("\n".join(json.dumps(row) for row in text))
    fields = {"dataset": str(directory / "tokens.jsonl"), "tokens_column": "ids", "train_tokens": 100, "eval_tokens": 100}
    source = LanguageModelSource(language_model_config(directory, **fields, context_size=context_size, prepend_bos=prepend_bos))
    source.prepare(directory / "cache")
    return source.eval_fingerprint(directory / "cache")


def test_the_same_tokens_in_longer_windows_are_another_comparison(tmp_path: Path) -> None:
    ids = list(range(1, 129))
    assert eval_hash(tmp_path / "a", [ids], 64, prepend_bos=False) != eval_hash(tmp_path / "b", [ids], 128, prepend_bos=False)
    with_bos = [0, *ids[:63], 0, *ids[63:126]]  # one window of 128, or two of 64
    short, long = (
        eval_hash(tmp_path / "c", [with_bos[:64], with_bos[64:]], 64, prepend_bos=True),
        eval_hash(tmp_path / "d", [with_bos], 128, prepend_bos=True),
    )
    assert short != long


def test_with_bos_the_hash_is_of_the_tokens(source: LanguageModelSource, directory: Path) -> None:
    content = {
        "format": LanguageModelSource.format_version,
        "model": language_model.loading.content_hash(DEMO_MODEL),
        "hook_point": "blocks.2.hook_resid_post",
        "dtype": "float32",
        "heldout": hashlib.sha256(load_file(directory / "tokens.safetensors")["heldout"].long().numpy().tobytes()).hexdigest(),
        "special_ids": [0],
    }
    assert source.eval_fingerprint(directory) == hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
