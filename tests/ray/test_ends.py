"""How launches end: by signals in each stage, by the death of Ray, by their own; and what is left of them then."""

import os
import signal
import time
from contextlib import suppress

import psutil
import pytest
from commands import running, wait_until
from long_sweep import sweep_of


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("ends")


@pytest.fixture
def definition(directory, request):
    """A sweep of its own for each test, long enough to be met in every stage."""
    name = request.node.name.translate(str.maketrans("[]-", "___"))
    activations = {"source": "synthetic", "train_tokens": 600_000, "eval_tokens": 60_000}
    file = directory / f"{name}.yaml"
    file.write_text(sweep_of(name, activations=activations, architectures={"topk": {"k": [2, 4]}}).to_yaml())
    return file


def launched(definition, *arguments, **environment):
    return running("run", definition, "--results", definition.parent / "results", *arguments, **environment)


def results_of(definition):
    return definition.parent / "results" / definition.stem


@pytest.mark.parametrize("part", ["raylet", "gcs_server"])
@pytest.mark.parametrize("stage", ["harvest", "train"])
def test_the_death_of_ray_ends_a_launch(definition, part, stage):
    with launched(definition) as command:
        command.wait_for(f"{stage}: ")
        if stage == "train":
            wait_until(command.trains)
        started = time.monotonic()
        os.kill(command.part(part), signal.SIGKILL)
        assert command.ends(40) == 1, command.said
        assert time.monotonic() - started < 30
        message = (
            f"Ray must run until a launch ends, but it ended ({part} [exit code=-9]). What is finished is kept; the same command resumes."
        )
        assert command.said.splitlines()[-1] == message
        assert (results_of(definition) / "table.csv").is_file()
        assert "Traceback" not in command.said
        wait_until(lambda: command.sessions() == [], 15)


def test_nothing_is_left_of_a_killed_launch(definition):
    with launched(definition) as command:
        command.wait_for("train: ")
        wait_until(command.trains)
        processes = [psutil.Process(pid) for pid in command.ray_processes()]
        command.process.kill()
        _, alive = psutil.wait_procs(processes, timeout=15)
        assert alive == []
        wait_until(lambda: command.sessions() == [], 15)
        wait_until(lambda: not leftovers_in(results_of(definition)), 15)


def leftovers_in(directory):
    """Names of files that no launch should leave there."""
    return {path.name for path in directory.rglob(".*")} - {".lock", ".lock.holder", ".users", ".activations"}


@pytest.mark.parametrize(
    ("stage", "number"),
    [("", "SIGTERM"), ("harvest", "SIGUSR1"), ("train", "SIGTERM"), ("train", "SIGUSR1"), ("evaluate", "SIGINT"), ("report", "SIGHUP")],
)
def test_a_signal_in_a_stage(definition, stage, number):
    with launched(definition) as command:
        if stage:
            command.wait_for(f"{stage}: ", 200)
        else:
            wait_until(lambda: command.sessions(), 20)  # Ray is starting
        if stage == "train":
            wait_until(lambda: list(results_of(definition).glob("runs/*/history.jsonl")))
        command.process.send_signal(getattr(signal, number))
        assert command.ends() == 130, command.said
        assert command.said.endswith("Interrupted. What is finished is kept; the same command resumes.\n")
        assert "Traceback" not in command.said
        assert (results_of(definition) / "table.csv").is_file() == bool(stage)
        has_report = (results_of(definition) / "report" / "report.html").is_file() or "report: left out" in command.said
        assert has_report == (stage in ("evaluate", "report"))
        assert bool(list(results_of(definition).glob("runs/*/checkpoint.safetensors"))) == (stage == "train")
        wait_until(lambda: command.sessions() == [], 15)


def test_what_hangs_is_ended_and_repeated(definition):
    """A worker before its first job, and a trial, are stopped by a signal: no thread of theirs can do anything about it."""
    with launched(definition, "--stall-seconds", 12) as command:
        os.kill(wait_until(lambda: command.watched("_RayWorker.__init__"), 60), signal.SIGSTOP)
        command.wait_for("train: ")
        assert "start: worker " in command.said and "was stopped, or held Python's lock, for 12 s and was ended; its job is" in command.said
        os.kill(wait_until(lambda: command.watched("ImplicitFunc.train"), 60), signal.SIGSTOP)
        assert command.ends(300) == 0, command.said
        assert "retry 1 of 2: HungError: a process was stopped, or held Python's lock, for 12 s and was ended" in command.said
    assert not [*results_of(definition).rglob(".hang*")]


def test_settings_that_ray_cannot_read_are_named(definition):
    with launched(definition, RAY_task_events_report_interval_ms="abc") as command:
        assert command.ends() == 2
        assert "Ray must start on this machine, but it did not: " in command.said
        assert "RAY_task_events_report_interval_ms" in command.said
        assert "Traceback" not in command.said


def test_only_this_machine_reaches_a_local_ray(definition):
    with launched(definition, HOME=str(definition.parent)) as command:
        command.wait_for("train: ")
        wait_until(command.trains)
        listening = {}
        for pid in [command.process.pid, *command.ray_processes()]:
            with suppress(psutil.Error):  # it has just ended
                for connection in psutil.Process(pid).net_connections():
                    if connection.status == psutil.CONN_LISTEN:
                        listening[pid] = connection.laddr.ip
        assert len(listening) >= 4
        assert {address.removeprefix("::ffff:") for address in listening.values()} <= {"127.0.0.1", "::1"}
        (session,) = command.sessions()
        assert session.stat().st_mode & 0o077 == 0
        command.process.terminate()
        assert command.ends() == 130
    assert not (definition.parent / ".ray").exists()
