import os
import socket
import subprocess
import sys
import types
from contextlib import nullcontext
from pathlib import Path

import pytest

from sae_core import provenance
from sae_core.devices import CUDA_BYTES
from sae_core.errors import ConfigError
from sweeps.execution import cluster, running_ray
from sweeps.execution.cluster import Cluster
from sweeps.execution.failures import LaunchError
from sweeps.execution.local_ray import LOOPBACK


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
    """Stands in for Ray: `ray.calls` is what was requested of it, `ray.there` its nodes."""
    module = types.ModuleType("ray")
    module.calls, module.there, module.running, module.problem = [], [{"CPU": 4.0}], False, None

    def init(**options):
        module.calls.append(("init", options))
        if module.problem:
            raise module.problem
        module.running = True

    def shutdown():
        module.calls.append(("shutdown", {}))
        module.running = False

    class LocalRay:
        death = ""

        def __init__(self, environment, results, stall_seconds):
            self.environment = environment

        def start(self):
            init(environment=self.environment)

        def stop(self):
            shutdown()

    module.init, module.shutdown = init, shutdown
    context = types.SimpleNamespace(gcs_address="127.0.0.1:9", get_node_id=lambda: "head")
    module.get_runtime_context = lambda: context
    module.is_initialized = lambda: module.running
    module.nodes = lambda: (
        [{"Alive": True, "NodeID": str(i), "Resources": {"memory": 2.0**33, **node}} for i, node in enumerate(module.there)]
        + [{"Alive": False, "Resources": {"CPU": 64.0}}]
    )
    module.remote = lambda look: types.SimpleNamespace(options=lambda **options: types.SimpleNamespace(remote=look))
    module.get = lambda results: results
    strategies = types.ModuleType("ray.util.scheduling_strategies")
    strategies.NodeAffinitySchedulingStrategy = lambda node_id, soft: node_id
    monkeypatch.setitem(sys.modules, "ray.util", types.ModuleType("ray.util"))
    monkeypatch.setitem(sys.modules, "ray.util.scheduling_strategies", strategies)
    monkeypatch.setitem(sys.modules, "ray", module)
    monkeypatch.setattr(cluster, "LocalRay", LocalRay)
    monkeypatch.setattr(running_ray, "check_connection", lambda address: None)
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
    # A worker holds a language model: it has a GPU of its own.
    assert made.actor == {"num_cpus": cpus_per_trial, "num_gpus": {0.25: 1, 0.3: 1, 0.1: 1}.get(gpus_per_trial, gpus_per_trial)}


def test_workers_do_not_share_gpus_as_slots_do(ray):
    ray.there = [{"CPU": 16.0, "GPU": 2.0}, {"CPU": 3.0, "GPU": 4.0}, {"CPU": 8.0}]
    with Cluster(address="auto", cpus=1, gpus=0.25) as made:
        assert (made.n_slots, made.n_workers) == (8 + 3, 2 + 3)
    with Cluster(address="auto", cpus=1, gpus=0) as made:
        assert made.n_slots == made.n_workers == 27


def test_the_smallest_gpu_of_all_nodes_is_planned_with(ray, monkeypatch):
    gib, found = 2**30, [[80 * 2**30], [40 * 2**30, 80 * 2**30]]
    ray.there = [{"CPU": 4.0, "GPU": 1.0}, {"CPU": 4.0, "GPU": 2.0}, {"CPU": 4.0}]
    monkeypatch.setattr(provenance, "gpu_memory_bytes", lambda: found.pop())
    with Cluster(address="auto", cpus=1, gpus=0.5) as made:
        assert made.slot_bytes == 20 * gib - CUDA_BYTES
    assert found == []
    monkeypatch.setattr(provenance, "gpu_memory_bytes", list)  # no nvidia-smi there
    with Cluster(address="auto", cpus=1, gpus=0.5) as made:
        assert made.slot_bytes is None


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
        assert not made.died
    assert [name for name, _ in ray.calls] == ["init", "shutdown"]


def test_a_launch_ends_with_the_death_of_its_ray(machine, ray):
    machine(4)
    with (
        pytest.raises(LaunchError, match=r"Ray must run until a launch ends, but it ended \(raylet\)"),
        Cluster(address=None, cpus=1, gpus=0) as made,
    ):
        made._ray.death = "it ended (raylet)"
        raise KeyboardInterrupt


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


def test_memory_of_a_slot_is_that_of_its_node(ray):
    ray.there = [{"CPU": 4.0, "memory": 2.0**34}, {"CPU": 2.0, "memory": 2.0**32}, {"memory": 2.0**20}]
    with Cluster(address="auto", cpus=1, gpus=0) as made:
        assert (made.n_nodes, made.n_slots, made.slot_bytes) == (3, 6, 2**31)


def test_what_a_cluster_does_not_have(ray):
    ray.there = [{"CPU": 8.0, "GPU": 1.0}, {"CPU": 8.0, "GPU": 1.0}]
    with pytest.raises(ConfigError, match="at most the 1 GPUs there are, but got 2"), Cluster(address="auto", cpus=1, gpus=2.0):
        pass
    assert ray.calls[-1][0] == "shutdown"


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("127.0.0.1:9", "[Errno 111] Connection refused"),
        ("nosuchhost.invalid:6379", "[Errno "),
        *(
            (address, "ValueError: an address is HOST:PORT, auto, or ray://HOST:PORT")
            for address in ("host", "ray://", "", "local", "no such host:6379")
        ),
    ],
)
def test_no_cluster_at_the_address(monkeypatch, address, reason):
    monkeypatch.delenv(LOOPBACK, raising=False)
    with pytest.raises(ConfigError) as error:
        Cluster(address=address, cpus=1, gpus=0)
    assert str(error.value).startswith(f"`--address` must be that of a running Ray cluster, but got {address!r}: {reason}")
    assert str(error.value).endswith(". Start one with `ray start --head`, or omit `--address` to use this machine.")


def test_another_program_than_ray_is_noticed(monkeypatch):
    monkeypatch.delenv(LOOPBACK, raising=False)
    monkeypatch.setattr(running_ray, "ANSWER_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as server:  # which says nothing
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(ConfigError, match=f"but got '{address}': another program than Ray listens there"):
            Cluster(address=address, cpus=1, gpus=0)


MISMATCH = """raise RuntimeError('Version mismatch: The cluster was started with:\\n    Ray: 2.52.1\\n    Python: 3.12.4\\n'
    'This process on node 10.0.0.1 was started with:\\n    Ray: 2.60.0\\n    Python: 3.11.7\\n')"""


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("import time; time.sleep(60)", "but got 'auto': no cluster answered within 0.5 s"),
        (
            "import time; import sys; print('InvalidAuthToken: it is missing', file=sys.stderr, flush=True); time.sleep(60)",
            r"but 'auto' refused this process \(RAY_AUTH_MODE is [a-z ]+\)\. Set `RAY_AUTH_MODE=token`",
        ),
        ("class AuthenticationError(Exception): pass\nraise AuthenticationError('no token')", "but 'auto' refused this process"),
        ("import os; os.abort()", "but got 'auto': Ray could not connect to it"),
        (MISMATCH, r"Ray and Python of this process, 2\.60\.0 and 3\.11\.7, but 'auto' has Ray 2\.52\.1 and Python 3\.12\.4. Install"),
        ("pass", None),
    ],
)
@pytest.mark.slow
def test_another_process_connects_first(monkeypatch, program, message):
    run = subprocess.run
    monkeypatch.delenv(LOOPBACK, raising=False)
    monkeypatch.setattr(running_ray, "CONNECT_SECONDS", (2.0 if "print" in program else 0.5) if "sleep" in program else 30.0)
    monkeypatch.setattr(subprocess, "run", lambda command, **options: run([sys.executable, "-c", program], **options))
    with nullcontext() if message is None else pytest.raises(ConfigError, match=message):
        Cluster(address="auto", cpus=1, gpus=0)


def test_a_process_that_started_ray_here_connects_to_no_cluster(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", types.ModuleType("ray"))
    monkeypatch.setenv(LOOPBACK, "0")
    with pytest.raises(ConfigError, match="but got 'auto'"):
        Cluster(address="auto", cpus=1, gpus=0)


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


@pytest.mark.parametrize("address", [None, "auto"])
def test_workers_import_this_package_from_here(machine, ray, address):
    machine(1)
    ray.there = [{"CPU": 1.0}]
    os.environ["PYTHONPATH"] = "/mine"
    with Cluster(address=address, cpus=1, gpus=0):
        pass
    options = ray.calls[0][1]
    environment = options["environment"] if address is None else options["runtime_env"]["env_vars"]
    assert environment["PYTHONPATH"].split(os.pathsep) == [str(Path(cluster.__file__).resolve().parents[2]), "/mine"]
