"""README's shell lines and Python run, in order and in one directory; lines that cannot say what they need."""

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from documents import ROOT, blocks

pytestmark = pytest.mark.ray

README = ROOT / "README.md"
BIN = Path(sys.executable).parent


def lines():
    return [line for text in blocks(README, "bash") for line in text.splitlines() if line]


def interrupted(command, **options):
    """A command that runs until Ctrl-C, and gets it once it says so: its exit status and what it said."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}

    def listen():
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's jobs in the background, which the tests may be one of, ignore it

    with subprocess.Popen(f"exec {command}", shell=True, preexec_fn=listen, **pipes, **options) as process:
        said = []
        for line in process.stdout:
            said.append(line)
            if "Ctrl-C ends this" in line:
                process.send_signal(signal.SIGINT)
        return subprocess.CompletedProcess(command, process.wait(timeout=60), "".join(said), "")


def test_what_it_shows_runs(tmp_path):
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    for line in lines():
        if "# needs" not in line:
            command = line.replace("sae-sweep", f"{sys.executable} -m sweeps", 1)
            if "until Ctrl-C" in line:
                done = interrupted(command, cwd=tmp_path, env=environment)
            else:
                done = subprocess.run(
                    command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
                )
            assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    has_saelens = importlib.util.find_spec("sae_lens") is not None
    script = "\n".join(text for text in blocks(README, "python") if has_saelens or "sae_lens" not in text)
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "batchtopk" in done.stdout


def test_what_cannot_run_says_what_it_needs():
    needy = [line for line in lines() if "# needs" in line]
    assert [line.split("#")[0].split()[:2] for line in needy] == [
        ["make", "demo"],
        ["make", "test"],
        ["sae-sweep", "stop"],
        ["sae-sweep", "run"],
        ["sae-sweep", "features"],
        ["sae-sweep", "run"],
    ]
