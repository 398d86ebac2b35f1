import subprocess
import sys

import pytest

PROGRAM = """
import sys
from rich.console import Console
from sweeps.terminal import outlast_terminal
outlast_terminal()
Console(stderr=True).print("Δ of \\udce9, and as plain text: –")
for _ in range(20_000):
    print("Δ – …", "x" * 100)
sys.stderr.write("to the end")
"""


@pytest.fixture
def run(tmp_path):
    """Runs the program, as "$@" of a shell command."""
    (tmp_path / "program.py").write_text(PROGRAM, encoding="utf-8")

    def run(command, **environment):
        arguments = ["bash", "-c", command, "bash", sys.executable, str(tmp_path / "program.py")]
        return subprocess.run(arguments, capture_output=True, check=False, env=environment, cwd=tmp_path)

    return run


@pytest.mark.slow
@pytest.mark.parametrize("environment", [{"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, {"PYTHONIOENCODING": "ascii"}, {}])
def test_any_character_can_be_written_to_any_terminal(run, environment):
    done = run('"$@"', **environment)
    assert (done.returncode, done.stderr[-10:]) == (0, b"to the end")
    assert len(done.stdout.splitlines()) == 20_000


@pytest.mark.slow
@pytest.mark.parametrize("redirected", ["| head -1", ">&-", "2>&-", ">&- 2>&-", "2>&1 | head -1", "> /dev/full 2> /dev/full"])
def test_a_program_outlasts_who_reads_it(run, redirected):
    done = run(f'"$@" {redirected}; exit ${{PIPESTATUS[0]}}')
    assert done.returncode == 0
    assert b"Traceback" not in done.stderr + done.stdout
    assert b"Exception ignored" not in done.stderr
