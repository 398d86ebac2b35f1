import math
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sae_core.activations.files import hash_files, is_hub_name, load_tensors, save_tensors
from sae_core.errors import DamagedFileError
from sae_core.files import check_tensors, read_json, read_json_lines, write_json, write_json_lines


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


def test_every_changed_byte_of_a_tensor_file_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_tensors(path, {"x": torch.arange(6.0)}, {"kind": "test"})
    assert check_tensors(path)
    content = path.read_bytes()
    for place in range(len(content)):
        # One whose changed letters make the key another one says nothing of the tensors, which are as they were.
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        try:
            tensors, _ = load_tensors(path)
        except DamagedFileError:
            continue
        assert tensors["x"].tolist() == torch.arange(6.0).tolist()


@pytest.mark.parametrize("size", [0, 4, 8, 40, -8])
def test_a_cut_tensor_file_is_noticed(tmp_path: Path, size: int) -> None:
    path = tmp_path / "x.safetensors"
    save_tensors(path, {"x": torch.arange(6.0)})
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(DamagedFileError, match=r"x\.safetensors' is damaged"):
        load_tensors(path)


def test_every_changed_byte_of_json_is_noticed_or_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    content = {"fvu": 0.30464, "name": "topk", "rows": [1, None, {"a": True}]}
    write_json(path, content)
    written = path.read_bytes()
    for place in range(len(written)):
        path.write_bytes(written[:place] + bytes([written[place] ^ 4]) + written[place + 1 :])
        try:
            found = read_json(path)
        except DamagedFileError:
            continue
        assert {key: found[key] for key in content} == content


def test_what_is_no_regular_file_is_damage_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.json")
    for read in (read_json, check_tensors):
        with pytest.raises(DamagedFileError, match="it is no regular file"):
            read(tmp_path / "x.json")


def test_repeated_keys_are_damage(tmp_path: Path) -> None:
    (tmp_path / "cfg.json").write_text('{"k": 8, "d_in": 4, "k": 16}')
    with pytest.raises(DamagedFileError, match="it has the key 'k' more than once"):
        read_json(tmp_path / "cfg.json")


def test_json_lines_are_checked_where_the_checksum_is_known(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    checksum = write_json_lines(path, [{"step": 1, "loss": 2.5}, {"step": 2, "loss": math.nan}])
    assert read_json_lines(path, checksum) == [{"step": 1, "loss": 2.5}, {"step": 2, "loss": None}]
    path.write_text(path.read_text().replace("2.5", "2.6"))
    assert read_json_lines(path)[0]["loss"] == 2.6
    with pytest.raises(DamagedFileError, match=r"history\.jsonl' is damaged: ValueError: its checksum does not match"):
        read_json_lines(path, checksum)


def test_write_replaces_the_old_file(tmp_path: Path) -> None:
    for value in (0.0, 1.0):
        save_tensors(tmp_path / "deep" / "x.safetensors", {"x": torch.full((2,), value)})
    assert load_file(tmp_path / "deep" / "x.safetensors")["x"].tolist() == [1.0, 1.0]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["x.safetensors"]
