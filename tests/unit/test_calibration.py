import platform
from pathlib import Path

import pytest
from machine_costs import calibration

from sae_core.errors import ConfigError
from sweeps.planning.calibration import file, machine, read, write


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SAE_SWEEP_CACHE", str(tmp_path))


def test_what_was_written_is_read(tmp_path):
    made = calibration()
    assert write(made) == file() == tmp_path / f"calibration-{platform.node()}.json"
    assert read() == made


def test_where_it_is(monkeypatch):
    monkeypatch.delenv("SAE_SWEEP_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert file().parent == Path("/elsewhere/sae-sweep")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert file().parent == Path.home() / ".cache" / "sae-sweep"


def test_none_yet():
    with pytest.raises(ConfigError, match=r"but got no .*calibration-.*\.json\. Run `sae-sweep calibrate`"):
        read()


def test_of_another_version_of_torch():
    write(calibration(machine={**machine(), "torch": "1.0"}))
    with pytest.raises(ConfigError, match=r"but got torch='1\.0' in that of 2026-11-20, and here it is '.+'\. Run `sae-sweep calibrate`"):
        read()


def test_of_a_version_that_measured_something_else(tmp_path):
    write(calibration())
    file().write_text('{"made_at": "2026-11-20"}')
    with pytest.raises(ConfigError, match="but got 5 errors in "):
        read()


def test_an_architecture_added_since():
    made = calibration()
    write(made.model_copy(update={"steps": {name: cost for name, cost in made.steps.items() if name != "gated"}}))
    with pytest.raises(ConfigError, match=r"but got none of \['gated'\]"):
        read()
