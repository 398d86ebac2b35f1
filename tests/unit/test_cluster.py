import os
import signal
import socket
import subprocess
import sys
import threading
import types
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from sae_core import provenance
from sae_core.errors import ConfigError
from sweeps.execution import cluster, local_ray, signals
from sweeps.execution.cluster import Cluster
from sweeps.execution.failures import LaunchError
from sweeps.execution.lean_ray import SELDOM


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """Whatever a test sets is gone after it."""
    monkeypatch.setattr(os, "environ", dict(os.environ))


@pytest.fixture
def machine(monkeypatch):
    """Gives this machine cores and GPUs."""

    def machine(cores, gpus=0):
        monkeypatch.setattr(provenance, "n_cores", lambda: cores)
        monkeypatch.setattr(provenance, "gpu_names", lambda: ["NVIDIA H100"] * gpus)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    return machine


@pytest.fixture
def ray(monkeypatch):
    """Stands in for Ray: `ray.calls` is what was asked of it, `ray.there` its nodes."""
    module = types.ModuleType("ray")
    module.calls, module.there, module.running, module.problem = [], [{"CPU": 4.0}], False, None
    module.parts = {}

    def init(**options):
        module.calls.append(("init", options))
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if module.problem:
            raise module.problem
        module.running = True

    def shutdown():
        module.calls.append(("shutdown", {}))
        module.running = False

    module.init, module.shutdown = init, shutdown
    module.is_initialized = lambda: module.running
    module.nodes = lambda: [{"Alive": True, "Resources": node} for node in module.there] + [{"Alive": False, "Resources": {"CPU": 64.0}}]
    monkeypatch.setitem(sys.modules, "ray", module)
    monkeypatch.setattr(cluster, "_check_found", lambda: None)
    monkeypatch.setattr(local_ray, "lean_start", nullcontext)
    monkeypatch.setattr(
        local_ray.ray_session, "Session", lambda: SimpleNamespace(directory=Path("/session"), ray=Path("/session/ray"), close=list)
    )
    monkeypatch.setattr(local_ray.ray_session, "remove_left_over", list)
    monkeypatch.setattr(local_ray.ray_session, "children", lambda *_: module.parts)
    return module


@pytest.mark.parametrize(
    ("cores", "gpus", "cpus_per_trial", "gpus_per_trial", "n_slots"),
    [
        (2, 0, 1, 0.0, 2),
        (8, 0, 3, 0.0, 2),
        (16, 4, 1, 1.0, 4),  # the GPUs decide
        (2, 4, 1, 1.0, 2),  # the cores decide
        (16, 4, 2, 2.0, 2),
        (16, 1, 1, 0.25, 4),
        (16, 2, 1, 0.3, 6),  # three share a GPU; none is split over two
        (32, 1, 1, 0.1, 10),  # although 1 // 0.1 is 9
        (16, 4, 1, 0.0, 16),  # no GPU asked for
    ],
)
def test_slots_of_this_machine(machine, cores, gpus, cpus_per_trial, gpus_per_trial, n_slots):
    machine(cores, gpus)
    made = Cluster(address=None, cpus=cpus_per_trial, gpus=gpus_per_trial)
    assert made.n_slots == n_slots
    assert made.trial == {"cpu": cpus_per_trial, "gpu": gpus_per_trial}
    assert made.actor == {"num_cpus": cpus_per_trial, "num_gpus": gpus_per_trial}


@pytest.mark.parametrize(
    ("cpus", "gpus", "message"),
    [
        (1, 1.0, "`--gpus-per-trial` must be at most the 0 GPUs there are, but got 1. Lower it, or use a GPU machine."),
        (1, 0.5, "`--gpus-per-trial` must be at most the 0 GPUs there are, but got 0.5. Lower it, or use a GPU machine."),
        (3, 0.0, "`--cpus-per-trial` must be at most the 2 cores there are, but got 3. Lower it."),
    ],
)
def test_what_this_machine_does_not_have_is_known_before_ray_starts(machine, ray, cpus, gpus, message):
    machine(2)
    with pytest.raises(ConfigError) as error:
        Cluster(address=None, cpus=cpus, gpus=gpus)
    assert str(error.value) == message
    assert ray.calls == []


def test_gpus_are_shared_or_whole(machine):
    machine(8, 4)
    with pytest.raises(ConfigError, match=r"`--gpus-per-trial` must be a whole number above 1, but got 1\.5\. Round it\."):
        Cluster(address=None, cpus=1, gpus=1.5)


def test_ray_runs_for_the_time_of_the_launch(machine, ray):
    machine(4)
    with Cluster(address=None, cpus=2, gpus=0) as made:
        assert made.n_slots == 2
        assert os.environ["TUNE_DISABLE_SIGINT_HANDLER"] == "1"
        assert made.directory == Path("/session")
    (_, options), (last, _) = ray.calls
    assert (options["address"], options["num_cpus"], options["num_gpus"], options["include_dashboard"]) == ("local", 4, 0, False)
    assert options["_temp_dir"] == "/session/ray"
    assert options["_system_config"] == SELDOM  # Ray refuses to start with a name that it does not have
    assert last == "shutdown"


def test_a_cluster_of_others_keeps_its_settings(ray):
    with Cluster(address="auto", cpus=1, gpus=0):
        assert "_system_config" not in ray.calls[0][1]


def test_ray_that_runs_already_is_used_and_left_running(machine, ray):
    machine(4)
    ray.running, ray.there = True, [{"CPU": 3.0}]
    with Cluster(address=None, cpus=1, gpus=0) as made:
        assert made.n_slots == 3
    assert ray.calls == []
    assert ray.running


def test_slots_of_a_cluster_lie_within_nodes(ray):
    # 3 cores and 1 GPU hold one slot of 2 cores, although the nodes together have 6 and 2.
    ray.there = [{"CPU": 3.0, "GPU": 1.0}, {"CPU": 3.0, "GPU": 1.0}, {}]
    with Cluster(address="auto", cpus=2, gpus=1.0) as made:
        assert made.n_slots == 2
    assert ray.calls[0][1]["address"] == "auto"
    assert "num_cpus" not in ray.calls[0][1]


def test_what_a_cluster_does_not_have(ray):
    ray.there = [{"CPU": 8.0, "GPU": 1.0}, {"CPU": 8.0, "GPU": 1.0}]
    with pytest.raises(ConfigError, match="at most the 1 GPUs there are, but got 2"), Cluster(address="auto", cpus=1, gpus=2.0):
        pass
    assert ray.calls[-1][0] == "shutdown"


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("127.0.0.1:9", "[Errno 111] Connection refused"),
        ("host", "ValueError: an address is HOST:PORT or auto"),
        ("host:99999", "ValueError: an address is HOST:PORT or auto"),
        ("ray://", "ValueError: an address is HOST:PORT or auto"),
        ("", "ValueError: an address is HOST:PORT or auto"),
        ("local", "ValueError: an address is HOST:PORT or auto"),
        ("no such host:6379", "ValueError: an address is HOST:PORT or auto"),
        ("host\0:6379", "ValueError: an address is HOST:PORT or auto"),
    ],
)
def test_no_cluster_at_the_address(ray, address, reason):
    with pytest.raises(ConfigError) as error:
        Cluster(address=address, cpus=1, gpus=0)
    assert str(error.value) == (
        f"`--address` must be that of a running Ray cluster, but got {address!r}: {reason}. Start one with `ray start --head`, or leave "
        "`--address` out to use this machine."
    )


def test_a_host_that_nobody_knows(ray):
    with pytest.raises(ConfigError, match=r"running Ray cluster, but got 'nosuchhost\.invalid:6379': .*(not known|resolution)"):
        Cluster(address="nosuchhost.invalid:6379", cpus=1, gpus=0)


@contextmanager
def listening(answer):
    """The address of a server that says `answer` to whoever connects, and keeps the connection."""
    with socket.create_server(("127.0.0.1", 0)) as server, ExitStack() as connections:

        def serve():
            with suppress(OSError):
                connection = connections.enter_context(server.accept()[0])
                connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"


def test_what_listens_at_the_address_is_asked_whether_it_is_ray(ray, monkeypatch):
    monkeypatch.setattr(cluster, "ANSWER_SECONDS", 0.5)
    settings = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
    with listening(settings) as address:
        Cluster(address=address, cpus=1, gpus=0)
    with listening(b"HTTP/1.0 400 Bad request") as address, pytest.raises(ConfigError, match=f"{address}': .*listens there is not Ray"):
        Cluster(address=address, cpus=1, gpus=0)
    with listening(b"") as address, pytest.raises(ConfigError, match=f"{address}': timed out"):
        Cluster(address=address, cpus=1, gpus=0)


def test_a_cluster_that_is_not_found(ray):
    ray.problem = ConnectionError("Could not find any running Ray instance.\nmore")
    message = r"but got 'auto': Could not find any running Ray instance\. Start one with `ray start --head`, or leave `--address` out"
    with pytest.raises(ConfigError, match=message), Cluster(address="auto", cpus=1, gpus=0):
        pass


@pytest.mark.parametrize("gpus", [float("nan"), float("inf"), -1.0, 1e-9])
def test_shares_of_gpus_are_numbers(machine, gpus):
    machine(2, 1)
    with pytest.raises(ConfigError, match=rf"`--gpus-per-trial` must be 0, or a number from 0\.0001 on, but got {gpus:g}\. Correct it\."):
        Cluster(address=None, cpus=1, gpus=gpus)


@pytest.mark.parametrize(("cpus", "message"), [(0, "at least 1, but got 0"), (10**9, "at most the 2 cores there are, but got 1000000000")])
def test_cores_of_a_slot(machine, cpus, message):
    machine(2)
    with pytest.raises(ConfigError, match=f"`--cpus-per-trial` must be {message}"):
        Cluster(address=None, cpus=cpus, gpus=0)


def test_a_local_ray_has_a_token_of_its_own(machine, ray, monkeypatch):
    machine(1)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    with Cluster(address=None, cpus=1, gpus=0):
        assert "RAY_AUTH_MODE" not in os.environ  # then Ray asks for tokens
        assert len(os.environ["RAY_AUTH_TOKEN"]) == 64
    assert os.environ["RAY_AUTH_MODE"] == "disabled"
    assert "RAY_AUTH_TOKEN" not in os.environ


def test_ray_that_does_not_start(machine, ray, monkeypatch):
    machine(1)
    monkeypatch.setenv("RAY_CLIENT_MODE", "1")
    ray.problem = ModuleNotFoundError("No module named 'grpc'")
    with pytest.raises(ConfigError) as error, Cluster(address=None, cpus=1, gpus=0):
        pass
    assert str(error.value).startswith("Ray must start on this machine, but it did not: ModuleNotFoundError: No module named 'grpc'. Unset")
    assert "RAY_CLIENT_MODE" in str(error.value)
    assert ray.calls[-1][0] == "shutdown"


def test_settings_that_ray_would_die_of(machine, monkeypatch):
    """It ends the process that reads them."""
    machine(1)
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    monkeypatch.setenv("RAY_task_events_report_interval_ms", "abc")
    with pytest.raises(
        ConfigError,
        match=r"Ray must be able to read its settings, but got RAY_task_events_report_interval_ms=abc\. Correct the environment",
    ):
        local_ray._check_settings()


@pytest.mark.parametrize("stage", ["start", "work"])
def test_a_part_of_ray_dies(machine, ray, monkeypatch, stage):
    machine(1)
    monkeypatch.setattr(local_ray, "LOOK_SECONDS", 0.01)
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    ray.parts = {"raylet": process.pid}
    if stage == "start":
        monkeypatch.setattr(ray, "init", lambda **_: process.kill() or threading.Event().wait(30))
        expected, message = ConfigError, "Ray must start on this machine, but it did not: RuntimeError: its process raylet died"
    else:
        expected, message = LaunchError, "Ray must run until a launch ends, but its process raylet died"
    with signals.handled(), pytest.raises(expected, match=message), Cluster(address=None, cpus=1, gpus=0) as made:
        assert not made.died
        process.kill()
        threading.Event().wait(30)
    process.communicate()


@pytest.mark.parametrize("problem", [None, ValueError("no")])
def test_the_sigterm_handler_of_the_launcher_stays(ray, problem):
    ray.problem = problem
    before = signal.signal(signal.SIGTERM, handler := lambda *_: None)
    try:
        if problem:
            with pytest.raises(ConfigError, match="got 'auto': ValueError: no"), Cluster(address="auto", cpus=1, gpus=0):
                pass
        else:
            with Cluster(address="auto", cpus=1, gpus=0):
                assert signal.getsignal(signal.SIGTERM) is handler
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("address", [None, "auto"])
def test_workers_import_this_package_from_here(machine, ray, address):
    machine(1)
    ray.there = [{"CPU": 1.0}]
    os.environ["PYTHONPATH"] = "/mine"
    for _ in range(2):
        with Cluster(address=address, cpus=1, gpus=0):
            pass
    environment = os.environ if address is None else ray.calls[-2][1]["runtime_env"]["env_vars"]
    assert environment["PYTHONPATH"].split(os.pathsep) == [str(Path(cluster.__file__).resolve().parents[2]), "/mine"]


@pytest.mark.parametrize(
    ("program", "reason"),
    [("import time; time.sleep(60)", "no cluster answered within 0.5 s"), ("raise ConnectionError('none')", "none"), ("pass", None)],
)
def test_a_cluster_that_ray_finds_by_itself_is_tried_first(monkeypatch, program, reason):
    run = subprocess.run
    monkeypatch.setattr(cluster, "AUTO_SECONDS", 0.5 if "sleep" in program else 30.0)
    monkeypatch.setattr(subprocess, "run", lambda command, **options: run([sys.executable, "-c", program], **options))
    with nullcontext() if reason is None else pytest.raises(ConfigError, match=f"but got 'auto': {reason}"):
        cluster._check_answers("auto")
