"""A launch at ray://: the command that an actor runs, and what is done with its lines. Without Ray."""

import subprocess
import sys
import types
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import ray
from ray.exceptions import ActorDiedError
from small_sweep import small_sweep
from typer.testing import CliRunner

from sae_core.errors import ConfigError
from sweeps.cli.app import app
from sweeps.execution import remote, running_ray
from sweeps.execution.failures import LaunchError
from sweeps.execution.local_ray import LOOPBACK


class Method:
    """Stands in for a method of an actor: `ray.get` calls it."""

    def __init__(self, method):
        self.remote = lambda: method


@pytest.fixture
def follow(monkeypatch):
    """`_follow` of a command, and what it says."""
    monkeypatch.setattr(ray, "get", lambda method: method())

    def follow(command):
        said = []
        actor = SimpleNamespace(lines=Method(command.lines), stop=types.SimpleNamespace(remote=command.stop))
        return remote._follow(actor, lambda *line: said.append(line)), said

    return follow


@pytest.mark.slow
def test_a_command_runs_and_what_it_prints_arrives(monkeypatch, follow):
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address="127.0.0.1:9"))
    command = remote._Command("run", small_sweep().to_yaml(), ["--executor", "inline"])
    message = "`--address` must be left out with `--executor inline`, but got '127.0.0.1:9'. Leave out one of them."
    assert follow(command) == (2, [(message, True)])


def test_an_interrupt_is_passed_on_and_the_end_awaited(follow):
    calls = []

    def lines():
        calls.append("lines")
        if len(calls) == 1:
            raise KeyboardInterrupt
        return [("Interrupted.", True)], 130

    assert follow(SimpleNamespace(lines=lines, stop=lambda: calls.append("stop"))) == (130, [("Interrupted.", True)])
    assert calls == ["lines", "stop", "lines"]


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (ActorDiedError(), LaunchError, r"the cluster must run the launch to its end, but its process was killed or crashed"),
        (ConnectionError("Client is shutting down."), LaunchError, "to its end, but Client is shutting down"),
        (ray.exceptions.RaySystemError("No module named 'sweeps'"), ConfigError, "the cluster must have this sae-sweep, but it has none"),
    ],
)
def test_a_command_that_is_lost(follow, error, kind, message):
    def lines():
        raise error

    with pytest.raises(kind, match=message):
        follow(SimpleNamespace(lines=lines, stop=None))


@pytest.mark.parametrize("command", ["run", "harvest"])
def test_the_same_arguments_arrive(monkeypatch, tmp_path, command):
    """But for those that are in the definition already, and the defaults."""
    calls = []
    monkeypatch.setattr(remote, "run_remotely", lambda *arguments, **options: calls.append((arguments, options)) or 1)
    (tmp_path / "small.yaml").write_text(small_sweep().to_yaml())
    options = ["--results", "/shared/results", "--set", "train.lr=1e-3", "--gpus-per-trial", "0.5", "--ship-code"]
    done = CliRunner().invoke(app, [command, str(tmp_path / "small.yaml"), "--address", "ray://head:10001", *options])
    assert done.exit_code == 1
    (((*where, definition, arguments, _), options),) = calls
    assert where == ["ray://head:10001", command]
    assert "lr: 0.001" in definition
    assert arguments == ["--results", "/shared/results", "--gpus-per-trial", "0.5", "--ship-code"]
    assert options == {"ship_code": True}


def test_results_are_on_the_cluster(tmp_path):
    (tmp_path / "small.yaml").write_text(small_sweep().to_yaml())
    done = CliRunner().invoke(app, ["run", str(tmp_path / "small.yaml"), "--address", "ray://head:10001"])
    assert done.exit_code == 2
    assert done.output.startswith("`--results` must be an absolute path on the cluster's shared storage, but got 'results'. Correct it.")


FAILED_START = "Initialization failure from server:\nTraceback (most recent call last):\n  File x, line 1\nRuntimeError: Starting failed."


@pytest.mark.parametrize(
    ("failures", "message"), [([FAILED_START] * 2, None), ([FAILED_START] * 3, "'ray://head:10001': Starting failed. "), (["No."], "No. ")]
)
def test_the_start_of_a_process_for_a_client_may_fail_by_chance(monkeypatch, failures, message):
    left = list(failures)

    def connect(address, **options):
        if left:
            raise ConnectionAbortedError(left.pop())

    monkeypatch.setattr(remote.signals, "connect", connect)
    with nullcontext() if message is None else pytest.raises(ConfigError, match=message):
        remote._connect("ray://head:10001", {})
    assert not left


def test_another_process_tries_again_likewise(monkeypatch, tmp_path):
    """And what a server says of a failure is told whole."""
    program = f"""
import pathlib
tries = pathlib.Path({str(tmp_path / "tries")!r})
tries.touch()
with tries.open("a") as file:
    file.write("x")
if len(tries.read_text()) < LEAST:
    raise ConnectionAbortedError("Initialization failure from server:\\nCall to `ray.init()` on the server failed with: no room")
"""
    run = subprocess.run
    monkeypatch.setattr(running_ray, "_check_answers", lambda address: None)
    monkeypatch.delenv(LOOPBACK, raising=False)
    for least, reason in (
        (3, None),
        (9, "Initialization failure from server: Call to `ray.init\\(\\)` on the server failed with: no room. "),
    ):
        monkeypatch.setattr(
            subprocess,
            "run",
            lambda command, least=least, **options: run([sys.executable, "-c", program.replace("LEAST", str(least))], **options),
        )
        with nullcontext() if reason is None else pytest.raises(ConfigError, match=reason):
            running_ray.check_connection("ray://head:10001")
    assert len((tmp_path / "tries").read_text()) == 6


def test_ray_client_may_be_missing(monkeypatch):
    monkeypatch.delenv(LOOPBACK, raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    message = r"but got 'ray://head:10001' where it is not. Install it: `pip install 'sae-sweep\[client\]'`"
    with pytest.raises(ConfigError, match=message):
        remote.run_remotely("ray://head:10001", "run", "", [], print, ship_code=False)
