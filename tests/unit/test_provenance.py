import platform
import subprocess

import pytest

from sae_core import provenance


def test_versions():
    versions = provenance.versions()
    assert versions["python"] == platform.python_version()
    assert versions["torch"].startswith("2.")
    assert all(isinstance(version, str) and version for version in versions.values())


def test_hardware_names_cores_and_memory():
    assert f"{provenance.n_cores()} cores" in provenance.hardware()
    assert "GiB memory" in provenance.hardware()


def test_gpus(monkeypatch):
    monkeypatch.setattr(provenance, "_output", lambda *command: "NVIDIA H100\nNVIDIA H100\nTesla T4\n")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert provenance.hardware().endswith(", 2 x NVIDIA H100, 1 x Tesla T4")
    assert provenance.n_gpus() == 3


@pytest.mark.parametrize(("visible", "n_gpus"), [("", 0), ("-1", 0), ("1", 1), ("0,1", 2), ("0,1,2,3,4", 3)])
def test_hidden_gpus_do_not_count(monkeypatch, visible, n_gpus):
    monkeypatch.setattr(provenance, "_output", lambda *command: "A\nA\nA\n")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert provenance.n_gpus() == n_gpus


def test_commit_says_when_the_checkout_was_changed(tmp_path):
    def git(*command):
        identity = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
        subprocess.run(["git", "-C", str(tmp_path), *identity, *command], check=True, capture_output=True)

    assert provenance._commit(tmp_path) == ""
    git("init")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-m", "first")
    commit = provenance._commit(tmp_path)
    assert len(commit) == 12
    (tmp_path / "file").write_text("2")
    assert provenance._commit(tmp_path) == f"{commit}+changes"


def test_a_missing_or_failing_program_gives_nothing():
    assert provenance._output("no-such-program-anywhere") == ""
    assert provenance._output("false") == ""
