import pytest

from sweeps.storage.set_aside import make_room, set_aside


def test_a_file_or_directory_gets_another_name_over_an_earlier_one(tmp_path, caplog):
    path, aside = tmp_path / "sweep.json", tmp_path / "sweep.json.damaged"
    path.write_text("first")
    set_aside(path, "it is damaged.")
    assert (aside.read_text(), path.exists()) == ("first", False)
    assert caplog.messages == [f"{path} was renamed to sweep.json.damaged: it is damaged"]
    path.mkdir()
    set_aside(path, "it is a directory")
    assert aside.is_dir()
    path.write_text("third")
    set_aside(path, "it is damaged")
    assert aside.read_text() == "third"


@pytest.mark.parametrize("directory", [False, True])
def test_only_what_is_in_the_way_is_moved(tmp_path, directory):
    path, aside = tmp_path / "runs", tmp_path / "runs.damaged"
    make_room(path, directory=directory)  # nothing is there
    path.mkdir() if directory else path.touch()
    make_room(path, directory=directory)
    assert path.exists() and not aside.exists()
    make_room(path, directory=not directory)
    assert aside.exists() and not path.exists()
    path.symlink_to(path)
    make_room(path, directory=directory)
    assert aside.is_symlink() and not path.is_symlink()
