"""The code that a launch ships: another process imports it, although the plugins are not where they were."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sae_core import plugins
from sweeps.execution.shipping import shipped

PROGRAM = """
import sys
from pathlib import Path
from sae_core import plugins, provenance

assert Path(plugins.__file__).is_relative_to(sys.argv[1])
plugins.load_same({location: checksum for location, checksum in zip(sys.argv[2::2], sys.argv[3::2])})
(names,) = {tuple(sorted(plugin.name for plugin in plugins.loaded()))}
print(*names, provenance.versions()["commit"] if "commit" in provenance.versions() else "")
"""


@pytest.mark.slow
def test_another_process_imports_package_and_plugins(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    for name, text in {
        "own.py": "import neighbor\n",
        "neighbor.py": "",
        "package/__init__.py": "",
        "package/part.py": "from . import other\n",
    }.items():
        (tmp_path / "here" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "here" / name).write_text(text)
    (tmp_path / "here" / "package" / "other.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path / "here")
    locations = [str(tmp_path / "here" / "own.py"), "package.part"]
    plugins.load(locations)
    checksums = [text for location in locations for text in (location, plugins.checksums()[location])]
    try:
        with shipped() as runtime_env:
            (tmp_path / "here").rename(tmp_path / "gone")
            environment = {**os.environ, **runtime_env["env_vars"], "PYTHONPATH": runtime_env["working_dir"]}
            command = [sys.executable, "-c", PROGRAM, runtime_env["working_dir"], *checksums]
            done = subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True, check=False)
        assert done.stdout.split()[:2] == ["own.py", "package.part"], done.stderr
    finally:
        for location in locations:
            plugins.unload(location)
    assert not Path(runtime_env["working_dir"]).exists()
