import fcntl

import pytest

from sweeps.storage import leftovers


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


@pytest.mark.parametrize(
    ("others", "in_use", "goes"), [([], False, True), (["other"], False, False), ([".two.json.ab12cd_9"], False, True), ([], True, False)]
)
def test_caches_that_nobody_else_uses_are_cleaned(tmp_path, others, in_use, goes):
    cache = tmp_path / ".activations" / "0a1b"
    (cache / ".users").mkdir(parents=True)
    (tmp_path / "sweep").mkdir()
    for name in ("sweep", *others):
        (cache / ".users" / name).touch()
    shard = cache / ".train-00000.safetensors.k3j2h1g0"
    shard.touch()
    with (cache / ".lock").open("a") as lock:
        if in_use:
            fcntl.flock(lock, fcntl.LOCK_SH)
        leftovers.remove_of_killed(tmp_path / "sweep")
    assert shard.exists() != goes
    assert (cache / ".users" / "sweep").exists()
