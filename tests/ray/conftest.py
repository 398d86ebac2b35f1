"""One Ray for all tests here, and one sweep that ran through it without a disturbance."""

import psutil
import pytest
import ray
from long_sweep import sweep_of

from sweeps.execution.cluster import Cluster
from sweeps.execution.launcher import launch


@pytest.fixture(scope="session")
def cluster():
    """Ray as a launch starts it; launches of this process then use it."""
    before = psutil.Process().children(recursive=True)
    with Cluster(address=None, cpus=1, gpus=0) as cluster:
        started = [process for process in psutil.Process().children(recursive=True) if process not in before]
        assert started
        yield cluster
    assert not ray.is_initialized()
    _, left = psutil.wait_procs(started, timeout=20)
    assert left == []


@pytest.fixture(scope="session")
def results(tmp_path_factory):
    """The directory of all sweeps here: they share activations."""
    return tmp_path_factory.mktemp("results")


@pytest.fixture(scope="session")
def undisturbed(cluster, results):
    """What `launch` returned for a sweep through Ray."""
    return launch(sweep_of("undisturbed"), results=results)
