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
