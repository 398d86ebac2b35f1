"""A sweep on real nodes: refused where one lacks something, run on all of them with shipped code, and through the loss of each."""

import importlib.util
import shutil
import socket
import time
from pathlib import Path

import pandas as pd
import pytest
from commands import Command, wait_until
from long_sweep import sweep_of
from nodes import can_hide, cluster
from small_sweep import results_of

from sae_core import plugins

CODE = Path(__file__).resolve().parents[2]
PROGRAM = """
import functools, analysis.report, sweeps.cli, sweeps.execution.launcher, sweeps.execution.running_ray
sweeps.execution.running_ray.CONNECT_SECONDS = 100.0
sweeps.execution.running_ray.SILENT_SECONDS = 3.0
sweeps.execution.launcher.launch = functools.partial(sweeps.execution.launcher.launch, checkpoint_seconds=0.05)
analysis.report.write_report = lambda *_: None
sweeps.cli.main()
"""
"""`sae-sweep` on a busy machine, that soon notices that a head node is gone, with frequent checkpoints, and without a report."""
METRIC = """
from neighbor import FACTOR
from sae_core.metrics.metric import METRICS, Metric
from sae_core.records import MetricSpec


@METRICS.register("scaled_norm")
class ScaledNorm(Metric):
    spec = MetricSpec("scaled_norm", "Norm", "", "none")

    def sums(self, seen):
        return {"norm": seen.x_hat.double().norm(dim=-1).sum() * FACTOR}

    def value(self, sums, n_tokens):
        return float(sums["norm"]) / n_tokens
"""
KERNELS = ["--kernels", "reference"]
"""The fast ones would be compiled anew in each place that the code is copied to."""
HAS_CLIENT = importlib.util.find_spec("grpc") is not None
WORKERS = {"harvest": "_RayWorker", "train": "ImplicitFunc", "evaluate": "_RayWorker"}


@pytest.fixture(scope="module")
def nodes():
    """A node of one core, and one of two cores, on which the directory `here` is another, empty one."""
    if not can_hide():
        pytest.skip("no node can have a file system of its own: `unshare --mount` is refused")
    with cluster() as nodes:
        (nodes.base / "here").mkdir()
        with socket.create_server(("127.0.0.2", 0)) as server:
            nodes.client = f"127.0.0.2:{server.getsockname()[1]}"
        nodes.add("head", "127.0.0.2", 1, *([f"--ray-client-server-port={nodes.client.rpartition(':')[2]}"] if HAS_CLIENT else []))
        nodes.add("other", "127.0.0.3", 2, hidden=nodes.base / "here")
        yield nodes


@pytest.fixture(scope="module")
def here(nodes):
    """What the launching node alone has: this package, a plugin of two files, and a sweep that names it."""
    here = nodes.base / "here"
    for package in ("sae_core", "sweeps", "analysis"):
        shutil.copytree(CODE / package, here / "code" / package, ignore=shutil.ignore_patterns("__pycache__"))
    (here / "code" / "sweeps" / "only_here.py").touch()  # else it may be the same package as the one that is installed
    (here / "neighbor.py").write_text("FACTOR = 2\n")
    (here / "scaled_norm.py").write_text(METRIC)
    activations = {"source": "synthetic", "train_tokens": 240_000, "eval_tokens": 20_000}
    sweep = sweep_of("sweep", plugins=[str(here / "scaled_norm.py")], activations=activations)
    (here / "sweep.yaml").write_text(sweep.to_yaml())
    plugins.unload(str(here / "scaled_norm.py"))
    return here


@pytest.fixture(scope="module")
def alone(here, tmp_path_factory):
    """What one process, on one node, makes of the sweep."""
    results = tmp_path_factory.mktemp("alone")
    with Command(["run", here / "sweep.yaml", "--results", results, "--executor", "inline", *KERNELS], {}, here) as command:
        assert command.ends(300) == 1, command.said  # one of its runs diverges
    return results / "sweep"


def launched(nodes, here, results, *arguments, code=CODE, **environment):
    arguments = ["run", here / "sweep.yaml", "--results", results, "--address", nodes.address, *KERNELS, *arguments]
    return Command(arguments, {**nodes.environment, "PYTHONPATH": str(code), **environment}, nodes.base, ("-c", PROGRAM), cwd=code)


def test_all_that_a_node_lacks_is_said_at_once(nodes, here):
    with launched(nodes, here, here / "results", "--gpus-per-trial", 1, code=here / "code") as command:
        assert command.ends(150) == 2
        lines = command.said.splitlines()
        assert [line.partition(", but")[0] for line in lines] == [
            "`--gpus-per-trial` must be at most the 0 GPUs there are",
            "every node must have the same sae-sweep",
            "a plugin must be the same on every node",
            "`--results` must be on storage that every node shares",
        ]
        assert all("(127.0.0.3)" in line and "(127.0.0.2)" not in line for line in lines[1:])
    assert not (here / "results" / "sweep").exists()


def test_another_token_is_refused(nodes, here):
    with launched(nodes, here, nodes.base / "refused", RAY_AUTH_TOKEN="0" * 64) as command:
        assert command.ends(120) == 2
        assert command.said.startswith(f"a cluster that requires a token must be given its own, but {nodes.address!r} refused")


def test_shipped_code_runs_on_all_nodes(nodes, here, alone):
    """And the table is that of one process, but for times, hardware and versions."""
    seen = set()
    with launched(nodes, here, nodes.base / "shipped", "--ship-code", code=here / "code") as command:
        while command.process.poll() is None:
            stage = next((line.partition(":")[0] for line in reversed(command.lines) if line.partition(":")[0] in WORKERS), None)
            if stage:
                seen |= {(stage, name) for name, node in nodes.nodes.items() if node.works(WORKERS[stage])}
            time.sleep(0.2)
        assert command.ends() == 1, command.said
    assert seen == {(stage, name) for stage in WORKERS for name in nodes.nodes}
    assert results_of(nodes.base / "shipped" / "sweep") == results_of(alone)
    tables = [pd.read_parquet(directory / "table.parquet") for directory in (nodes.base / "shipped" / "sweep", alone)]
    columns = [name for name in tables[0] if not any(word in name for word in ("second", "_at", "hardware", "versions", "commit"))]
    pd.testing.assert_frame_equal(*(table[columns] for table in tables), check_exact=True)


@pytest.mark.skipif(not HAS_CLIENT, reason="needs ray[client]")
def test_a_launch_through_ray_client(nodes):
    """Runs on the cluster, and prints here."""
    sweep = sweep_of(
        "client", activations={"source": "synthetic", "train_tokens": 4_000, "eval_tokens": 1_000}, architectures={"topk": {"k": [2]}}
    )
    (nodes.base / "client.yaml").write_text(sweep.to_yaml())
    arguments = ["run", nodes.base / "client.yaml", "--results", nodes.base / "client", "--address", f"ray://{nodes.client}", *KERNELS]
    with Command(arguments, nodes.environment, nodes.base) as command:
        assert command.ends(200) == 0, command.said
        assert "train: 1 SAEs" in command.said
        assert f"Report: {nodes.base / 'client' / 'client' / 'report' / 'report.html'}" in command.process.stdout.read()


def test_nodes_that_join_and_leave_and_a_head_that_dies(nodes, here, alone):
    """Each costs at most what was trained since the last checkpoint, and nothing of the result."""
    results = nodes.base / "disturbed"
    with cluster() as first:
        head = first.add("head", "127.0.0.5", 1)
        with launched(first, here, results) as command:
            command.wait_for("train: ")
            joined = first.add("joined", "127.0.0.6", 1)
            wait_until(lambda: joined.works("ImplicitFunc"))
            wait_until(lambda: list(results.glob("sweep/runs/*/checkpoint.safetensors")))
            joined.kill()
            time.sleep(3)
            assert command.process.poll() is None
            head.kill()
            assert command.ends(60) == 1
            assert command.said.splitlines()[-1].startswith("Ray must run until a launch ends, but ")
            assert "Traceback" not in command.said
    with launched(nodes, here, results, "--ship-code", code=here / "code") as command:
        assert command.ends(200) == 1, command.said
    assert results_of(results / "sweep") == results_of(alone)
