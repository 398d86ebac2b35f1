import shutil
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from inline import launch
from safetensors.torch import save_file
from small_sweep import results_of, small_sweep
from told import Told

from sae_core.activations import local
from sae_core.activations.files import save_tensors
from sae_core.activations.local import LocalCopies
from sae_core.activations.shards import write_shard

TINY = {"activations": {"source": "synthetic", "d_in": 8, "train_tokens": 600, "eval_tokens": 100}, "sae": {"d_sae": 16}}
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def shard(tmp_path):
    directory = tmp_path / "shared" / "abc"
    directory.mkdir(parents=True)
    write_shard(directory, 0, torch.randn(64, 8), "float16")
    return directory / "train-00000.safetensors"


@pytest.fixture
def copies(tmp_path):
    return LocalCopies(tmp_path / "local")


def flip(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def test_a_copy_is_made_once(shard, copies):
    copy = copies.path(shard)
    assert copy == copies.directory / "abc" / shard.name
    assert copy.read_bytes() == shard.read_bytes()
    inode = copy.stat().st_ino
    assert LocalCopies(copies.directory).path(shard).stat().st_ino == inode
    assert copies.problem == ""


def test_a_copy_that_is_damaged_or_of_another_content_is_made_again(shard, copies):
    flip(copies.path(shard))
    assert copies.path(shard).read_bytes() == shard.read_bytes()
    write_shard(shard.parent, 0, torch.randn(64, 8), "float16")
    assert copies.path(shard).read_bytes() == shard.read_bytes()
    copies.path(shard).unlink()
    (copies.directory / "abc" / f".{shard.name}.k3j2h1g0").touch()  # of a trial that was killed
    assert copies.path(shard).read_bytes() == shard.read_bytes()
    assert {path.name for path in (copies.directory / "abc").iterdir()} == {shard.name, "train-00000.lock"}


def test_without_room_the_shared_file_is_read_and_said_so(shard, copies, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(2**40, 0, local.SPARE_BYTES))
    assert copies.path(shard) == shard
    assert (
        "local' on" in copies.problem and "the rest is read from shared storage: " in copies.problem and "room for 0 MiB" in copies.problem
    )
    monkeypatch.undo()
    assert copies.path(shard) != shard


def test_what_cannot_be_copied_is_read_where_it_lies(tmp_path, shard, copies):
    copies.directory.touch()
    assert copies.path(shard) == shard
    assert "Not a directory" in copies.problem or "File exists" in copies.problem
    (tmp_path / "shared" / "old").mkdir()
    old = tmp_path / "shared" / "old" / "train-00000.safetensors"
    save_file({"x": torch.zeros(2, 2)}, old)  # without a checksum
    assert LocalCopies(tmp_path / "other").path(old) == old


def test_a_damaged_shard_is_not_copied(tmp_path, shard):
    copies = LocalCopies(tmp_path / "local")
    flip(shard)
    assert copies.path(shard) == shard
    assert not list(copies.directory.rglob("*.safetensors*"))


def test_trials_of_a_node_share_a_copy(shard, copies):
    save_tensors(shard, {"x": torch.randn(4096, 512)})
    with ThreadPoolExecutor(8) as threads:
        inodes = set(threads.map(lambda _: LocalCopies(copies.directory).path(shard).stat().st_ino, range(16)))
    assert len(inodes) == 1


@pytest.mark.slow
def test_a_sweep_has_the_same_results(tmp_path, monkeypatch):
    monkeypatch.setattr("analysis.report.write_report", lambda *_: None)
    launch(small_sweep(**TINY), results=tmp_path / "a")
    notes = Told()
    launch(small_sweep(**TINY), results=tmp_path / "b", local_cache=tmp_path / "local", progress=notes)
    assert results_of(tmp_path / "a" / "small") == results_of(tmp_path / "b" / "small")
    assert not [line for line in notes.notes if "local cache" in line]
    shared = {path.relative_to(tmp_path / "b" / ".activations") for path in (tmp_path / "b" / ".activations").rglob("train-*.safetensors")}
    assert {path.relative_to(tmp_path / "local") for path in (tmp_path / "local").rglob("train-*.safetensors")} == shared
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(2**40, 0, 0 if "local" in str(path) else 2**40))
    launch(small_sweep(**TINY), results=tmp_path / "c", local_cache=tmp_path / "c-local", progress=notes)
    assert len([line for line in notes.notes if line.startswith("local cache: ")]) == 1
    assert results_of(tmp_path / "c" / "small") == results_of(tmp_path / "a" / "small")
