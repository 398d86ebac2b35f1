import fcntl
import os
import time

import pytest

from sweeps.execution import leftovers


@pytest.mark.parametrize(
    ("name", "goes"),
    [
        (".record.json.ab12cd_9", True),
        (".sae_weights.safetensors.k3j2h1g0", True),
        (".table.parquet.k3j2h1g0", True),
        (".checkpoint.pt.tmp", True),
        (".ray-x7", True),
        (".lock", False),
        (".gitignore", False),
        (".DS_Store", False),
        (".ipynb_checkpoints", False),
        (".notes.settings", False),
        ("record.json", False),
        ("record.json.ab12cd_9", False),
    ],
)
def test_what_is_temporary(tmp_path, name, goes):
    path = tmp_path / "runs" / "topk-1" / name
    path.parent.mkdir(parents=True)
    path.touch()
    leftovers.remove_temporary(tmp_path)
    assert path.exists() != goes


def test_directories_go_with_what_is_in_them(tmp_path):
    (tmp_path / ".ray-a" / "trials" / "one").mkdir(parents=True)
    leftovers.remove_temporary(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_link_goes_and_what_it_names_stays(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / ".ray-a").symlink_to(tmp_path / "elsewhere")
    leftovers.remove_temporary(tmp_path / "sweep")
    assert list((tmp_path / "sweep").iterdir()) == []
    assert (tmp_path / "elsewhere").is_dir()


def temporary(cache, age=0.0):
    path = cache / f".train-00000.safetensors.a{age:07.0f}"
    path.touch()
    os.utime(path, (time.time() - age,) * 2)
    return path


def test_a_cache_that_nobody_uses_is_cleaned(tmp_path):
    file = temporary(tmp_path)
    with leftovers.held([tmp_path]):
        assert not file.exists()


def test_what_a_living_launch_may_be_writing_stays(tmp_path):
    with (tmp_path / ".lock").open("a") as theirs:
        fcntl.flock(theirs, fcntl.LOCK_SH)
        new, old = temporary(tmp_path), temporary(tmp_path, age=7200)
        with leftovers.held([tmp_path]):
            assert new.exists()
            assert not old.exists()


def test_two_launches_share_a_cache(tmp_path):
    with leftovers.held([tmp_path]), leftovers.held([tmp_path]):
        file = temporary(tmp_path)
        with leftovers.held([tmp_path]):
            assert file.exists()


def test_a_cache_to_which_nothing_was_written_is_removed(tmp_path):
    with leftovers.held([tmp_path / "empty", tmp_path / "used"]):
        (tmp_path / "used" / "tokens.safetensors").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["used"]
