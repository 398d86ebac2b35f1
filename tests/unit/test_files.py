from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sae_core.activations.files import hash_files, is_hub_name, save_tensors


@pytest.mark.parametrize("name", ["gpt2", "EleutherAI/pythia-70m-deduped", "google/gemma-2-2b", "_x/y.z"])
def test_hub_names(name: str) -> None:
    assert is_hub_name(name)


@pytest.mark.parametrize("name", ["", ".", "./gpt2", "../gpt2", "/gpt2", "~/gpt2", "a/b/c", "a/", "a b", "owner/.hidden"])
def test_paths_are_no_hub_names(name: str) -> None:
    assert not is_hub_name(name)


def test_hash_is_of_content_and_names_not_of_place(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a").write_text("content")
    one, two = tmp_path / "one" / "a", tmp_path / "two" / "a"
    assert hash_files([one], one.parent) == hash_files([two], two.parent)
    assert hash_files([one], tmp_path) != hash_files([two], tmp_path)
    (tmp_path / "b").write_text("content")
    assert hash_files([one], one) == hash_files([tmp_path / "b"], tmp_path / "b")
    before = hash_files([two], two.parent)
    two.write_text("other content")
    assert hash_files([two], two.parent) != before


def test_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(tensors: object, path: str, metadata: object = None) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("sae_core.activations.files.save_file", broken)
    with pytest.raises(OSError, match="disk full"):
        save_tensors(tmp_path / "x.safetensors", {"x": torch.zeros(2)})
    assert list(tmp_path.iterdir()) == []


def test_write_replaces_the_old_file(tmp_path: Path) -> None:
    for value in (0.0, 1.0):
        save_tensors(tmp_path / "deep" / "x.safetensors", {"x": torch.full((2,), value)})
    assert load_file(tmp_path / "deep" / "x.safetensors")["x"].tolist() == [1.0, 1.0]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["x.safetensors"]
