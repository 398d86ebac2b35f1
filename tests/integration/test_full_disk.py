"""Disks that are full, read-only or gone from some stage of a launch on: nothing is left half-written, and the same command resumes."""

import errno
import os
import shutil
import subprocess

import pytest
from inline import launch
from small_sweep import results_of, small_sweep

from sae_core.errors import ConfigError
from sweeps.execution.progress import SweepProgress

SWEEP = {
    "activations": {"source": "synthetic", "d_in": 16, "train_tokens": 6000, "eval_tokens": 2000},
    "architectures": {"topk": {"k": [2, 4]}},
}
STAGES = ["harvest", "train", "evaluate", "report"]


@pytest.fixture
def disk(tmp_path):
    """A small disk of its own."""
    directory = tmp_path / "disk"
    directory.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", directory], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("mounting a disk takes rights that are not there")
    yield directory
    subprocess.run(["umount", "--lazy", directory], check=True)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("analysis.report.write_report", lambda *_: None)
        return results_of(launch(small_sweep(**SWEEP), results=tmp_path_factory.mktemp("undisturbed")).directory)


class At(SweepProgress):
    """Does something when a stage begins."""

    def __init__(self, stage, act):
        super().__init__()
        self.at, self.act = stage, act

    def stage(self, name, *arguments, **options):
        super().stage(name, *arguments, **options)
        if name == self.at:
            self.act()


def fill(disk):
    """Leave no room at all."""
    with (disk / "filler").open("wb", buffering=0) as file:
        for size in (2**16, 2**10, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError as error:
                assert error.errno == errno.ENOSPC


def make_read_only(disk):
    """By another mount of it over the first: a disk with a file that is open for writing, as the lock is, cannot be made read-only."""
    subprocess.run(["mount", "--bind", disk, disk], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", disk], check=True)


def make_vanish(disk):
    shutil.rmtree(disk / "results", ignore_errors=True)
    (disk / "results").touch()


def free(disk):
    if os.statvfs(disk).f_flag & os.ST_RDONLY:
        subprocess.run(["umount", "--lazy", disk], check=True)
    (disk / "filler").unlink(missing_ok=True)
    if (disk / "results").is_file():
        (disk / "results").unlink()


@pytest.mark.slow
@pytest.mark.parametrize("trouble", [fill, make_read_only, make_vanish], ids=lambda trouble: trouble.__name__)
@pytest.mark.parametrize("stage", STAGES)
def test_a_disk_that_takes_nothing_any_more(disk, undisturbed, stage, trouble, monkeypatch):
    def report(_, directory):
        (directory / "report.html").parent.mkdir(parents=True, exist_ok=True)
        (directory / "report.html").write_text("x" * 10_000)

    monkeypatch.setattr("analysis.report.write_report", report)
    results = disk / "results"
    try:
        done = launch(small_sweep(**SWEEP), results=results, checkpoint_seconds=0.0, progress=At(stage, lambda: trouble(disk)))
        assert done.failed or done.missing
    except (OSError, ConfigError) as error:  # the command line makes one message of it
        assert str(error)
    free(disk)
    assert not [name for _, _, names in os.walk(disk) for name in names if name.startswith(".") and not name.startswith(".lock")]
    done = launch(small_sweep(**SWEEP), results=results)
    assert (done.finished, done.failed, done.missing) == (2, {}, [])
    assert results_of(done.directory) == undisturbed
