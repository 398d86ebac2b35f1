"""What every test runs under: run-time checks of shapes and types in `sae_core`, one thread, no network, fixed seeds.

pytest puts this file's folder on `sys.path`, so tests import its modules by name: `from fake_results import ...`.
"""

import os
import random
import secrets
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import settings
from jaxtyping import install_import_hook

# Read when the libraries are imported, so set before any test imports one; Ray's workers inherit them.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ |= {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
}  # as a launch does
os.environ.pop("WANDB_MODE", None)
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # programs for GPUs run on the CPU

# Before the first import of sae_core: checks every annotation of its functions, methods and dataclasses while tests run.
install_import_hook("sae_core", "shape_checks.check")

torch.set_num_threads(1)

SLOW_DIRECTORIES = {"integration", "docs", "conformance"}

# The same examples each time, and no time limit an example: a busy machine is not a failure.
settings.register_profile("suite", deadline=None, derandomize=True)
settings.register_profile("fuzz", deadline=None, derandomize=False)
settings.load_profile("suite")


@pytest.fixture(autouse=True)
def _seeds() -> None:
    """Nothing here should depend on global random state; where something does, it is at least the same each time."""
    random.seed(0)
    np.random.seed(0)
    torch.default_generator.manual_seed(0)  # of CPUs alone, which takes a hundredth of the time


@pytest.fixture(autouse=True)
def _plugins() -> Iterator[None]:
    """A plugin that a test loads is no plugin of the tests after it."""
    from sae_core import plugins  # not before the import hook is at work

    before = plugins.checksums()
    yield
    for location in plugins.checksums().keys() - before.keys():
        plugins.unload(location)


@pytest.fixture(params=["fast", "reference"])
def kernels(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run a test twice: with the kernels made for this device, and with the reference."""
    from sae_core.sparse.kernels.choice import using_kernels  # not before the import hook is at work

    with using_kernels(request.param):
        yield


@pytest.hookimpl(tryfirst=True)  # before pytest chooses by marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what a plain `pytest` leaves out, by its directory, and what `make test` must keep in one of its processes.

    Tests of a file stay together, since they share fixtures, and so do the files that share a Ray.
    """
    sharing = {item.path for item in items if "cluster" in getattr(item, "fixturenames", ())}
    for item in items:
        directory = item.path.parent.name
        if directory == "ray":
            item.add_marker("ray")
        elif directory in SLOW_DIRECTORIES:
            item.add_marker("slow")
        item.add_marker(pytest.mark.xdist_group("ray" if item.path in sharing else str(item.path)))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs CUDA")
