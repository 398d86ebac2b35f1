import types
from pathlib import Path

import pytest

from sae_core.activations.language_model.source import LanguageModelActivations
from sae_core.activations.synthetic import SyntheticActivations
from sae_core.errors import ConfigError
from sweeps.definition.local_data import absolute, locate
from sweeps.demo import corpus


@pytest.fixture
def written(monkeypatch):
    """Files that the demo's text was written to, by a stand-in: the text takes seconds."""
    files = []

    def write_corpus(path):
        path.parent.mkdir(exist_ok=True)
        path.write_text("text")
        files.append(path)

    monkeypatch.setattr(corpus, "write_corpus", write_corpus)
    return files


def activations(model="demo", dataset="demo"):
    return LanguageModelActivations.model_validate(
        {
            "source": "language_model",
            "model": {"name": model, "hook_point": "blocks.0.hook_resid_post"},
            "data": {"dataset": dataset},
            "train_tokens": 4096,
            "eval_tokens": 1024,
        }
    )


def test_existing_paths_become_absolute(tmp_path, monkeypatch):
    (tmp_path / "models" / "a").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert absolute("models/a") == str(tmp_path / "models" / "a")
    assert absolute("./models/../models/a") == str(tmp_path / "models" / "a")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert absolute("~/models") == str(tmp_path / "models")


@pytest.mark.parametrize("name", ["demo", "gpt2", "EleutherAI/pythia-160m"])
def test_other_names_stay(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    assert absolute(name) == name


@pytest.mark.parametrize("name", ["./a", "../a", "/no/such/model", "~/no-such-thing", "a.parquet", "b.jsonl", "c/d/e"])
def test_a_path_to_nothing(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=f"a local path must exist, but '{name}' is missing"):
        absolute(name)


@pytest.mark.parametrize(
    "name", ["~nosuchuser/a", "a\0b", "\ud800", "/" + "x" * 5000, "x/" * 3000, "x" * 5000 + ".jsonl", "a.jsonl.zst", "A.PARQUET"]
)
def test_names_that_are_no_path_at_all(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"a local path must exist, but '.*' is missing") as raised:
        absolute(name)
    assert name[:20].encode("unicode_escape").decode()[:6].lstrip("\\") in str(raised.value)
    str(raised.value).encode()  # a terminal can show it


def test_a_link_keeps_the_name_that_says_its_format(tmp_path):
    (tmp_path / "blob").write_text("{}")
    (tmp_path / "text.jsonl").symlink_to(tmp_path / "blob")
    assert absolute(str(tmp_path / "text.jsonl")) == str(tmp_path / "text.jsonl")
    (tmp_path / "real").mkdir()
    (tmp_path / "model").symlink_to(tmp_path / "real")
    assert absolute(str(tmp_path / "model")) == str(tmp_path / "real")


@pytest.mark.parametrize("damage", ["changed", "cut", "no hash", "bad hash"])
def test_a_damaged_demo_text_is_written_again(written, tmp_path, caplog, damage):
    path = Path(locate(activations(), tmp_path).data.dataset)
    if damage in ("changed", "cut"):
        path.write_text("texx" if damage == "changed" else "te")
    elif damage == "no hash":
        path.with_suffix(".json").unlink()
    else:
        path.with_suffix(".json").write_text("{")
    locate(activations(), tmp_path)
    assert (path.read_text(), len(written)) == ("text", 2)
    assert f"the demo's text {path} was changed" in caplog.text
    locate(activations(), tmp_path)
    assert len(written) == 2


def test_locate_puts_in_the_demo(written, tmp_path):
    located = locate(activations(), tmp_path / "cache")
    assert located.model.name == str(corpus.model_directory())
    assert located.model.hook_point == "blocks.0.hook_resid_post"
    assert Path(located.data.dataset).is_file()
    assert Path(located.data.dataset).name.startswith("demo-text-")


def test_the_corpus_is_written_once(written, tmp_path):
    assert locate(activations(), tmp_path) == locate(activations(), tmp_path)
    assert len(written) == 1


def test_another_version_of_a_package_is_another_corpus(written, tmp_path, monkeypatch):
    first = locate(activations(), tmp_path)
    monkeypatch.setattr("importlib.metadata.distributions", lambda name: [types.SimpleNamespace(name=name, version="0.0.0")])
    assert locate(activations(), tmp_path).data.dataset != first.data.dataset


def test_other_models_and_sources_stay(tmp_path):
    mine = activations(model="gpt2", dataset="owner/text")
    assert locate(mine, tmp_path) == mine
    other = SyntheticActivations(source="synthetic", train_tokens=1, eval_tokens=1)
    assert locate(other, tmp_path) is other
