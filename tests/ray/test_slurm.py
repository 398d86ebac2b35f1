"""The script of `sae-sweep cluster slurm` as a job: stand-ins for Slurm's programs run it on this machine."""

import os
import shutil
import signal
import subprocess
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from commands import wait_until
from small_sweep import results_of, small_sweep

from sweeps.clusters.files import Options, write
from sweeps.execution.launcher import launch

STAND_INS = Path(__file__).parent / "slurm"


def needs_user_namespace():
    """Whether process ids of its own need a user of its own, too; skips where there are none."""
    for options, needed in (([], False), (["--user", "--map-root-user"], True)):
        command = ["unshare", *options, "--pid", "--fork", "--mount-proc", "true"]
        if shutil.which("unshare") and subprocess.run(command, capture_output=True, check=False).returncode == 0:
            return needed
    return pytest.skip("this machine gives no process ids of its own (unshare)")


@contextmanager
def submitted(script, log):
    """The running job; ended with everything in it."""
    environment = {**os.environ, "PATH": f"{STAND_INS}:{os.environ['PATH']}", "UNSHARE_USER": "1" if needs_user_namespace() else ""}
    command = [STAND_INS / "sbatch", script]
    with subprocess.Popen(command, cwd=script.parent, env=environment, stdout=log, stderr=subprocess.STDOUT) as job:
        try:
            yield job
        finally:
            job.kill()


def test_the_time_limit_stops_a_job_which_is_requeued_and_finishes(tmp_path):
    sweep = small_sweep(name="slurm", architectures={"topk": {"k": [2]}})
    definition = tmp_path / "slurm.yaml"
    definition.write_text(sweep.to_yaml())
    options = Options(definition=str(definition), cpus=1, results=str(tmp_path / "results"))
    script = write("slurm", options, tmp_path / "job.sbatch")[0]
    said = tmp_path / "job.log"
    with said.open("a") as log:
        with submitted(script, log) as job:
            wait_until(lambda: "train: " in said.read_text() or job.poll() is not None)
            psutil.Process(job.pid).children()[0].send_signal(signal.SIGUSR1)
            assert job.wait(200) == 130, said.read_text()
        assert (tmp_path / "requeued").read_text() == f"{job.pid}\n"
        with submitted(script, log) as job:
            assert job.wait(300) == 0, said.read_text()
    assert "Traceback" not in said.read_text()
    assert not Path(f"/tmp/sae-sweep-{job.pid}").exists()
    alone = launch(sweep, results=tmp_path / "alone", executor="inline").directory
    assert results_of(tmp_path / "results" / "slurm") == results_of(alone)
