"""Losses are what they were. See record.py."""

import json

import pytest
from golden.record import SCHEDULES, losses, path_of

from sae_core.config.run import ARCHITECTURES

TOLERANCE = 1e-5
"""Relative. On one machine the losses repeat to the last bit; with other vector instructions, which add in another order, they move by 2e-7
at most (measured with SSE4.2 in place of AVX-512). The rest is margin for CPUs not tried."""


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_losses_are_those_recorded(architecture: str) -> None:
    path = path_of(architecture)
    assert path.exists(), f"golden losses must be recorded once, but {path.name} is missing. Run `make golden`."
    recorded = json.loads(path.read_text())
    found = losses(architecture)
    assert found.keys() == recorded.keys() == SCHEDULES.keys()
    for name, values in found.items():
        assert values == pytest.approx(recorded[name], rel=TOLERANCE), name
