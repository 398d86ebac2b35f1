"""Compile everything that `sae_core/sparse/kernels/gpu.py` launches for GPUs that need not be there; nothing runs.

python tests/compile_for_gpu.py 80 90      # compute capabilities 8.0 and 9.0; prints the names of what was compiled for each

Each program is compiled as it is launched: with its sizes, number of warps, and what Triton finds out about its arguments. Triton itself
raises where one needs more shared memory than the GPU has.
"""

import json
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from sae_core.sparse.kernels import gpu

SHARED_BYTES = {80: 166_912, 90: 232_448}
"""Shared memory that a program may have at a compute capability."""


class AbsentGPU:
    """What Triton asks of the driver of a GPU; launching does nothing."""

    def __init__(self, capability: int) -> None:
        self.capability = capability
        self.compiled: list[str] = []
        self.utils = SimpleNamespace(load_binary=self._load_binary, get_device_properties=self._properties)

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return self.capability  # any number, but one of its own: Triton keeps what it compiled for each

    def get_current_stream(self, device: int) -> int:
        return 0

    def launcher_cls(self, source: Any, metadata: Any) -> Callable[..., None]:
        return lambda *arguments: None

    def _properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": SHARED_BYTES[self.capability]}

    def _load_binary(self, name: str, binary: bytes, shared: int, device: int) -> tuple[object, object, int, int, int]:
        assert binary.startswith(b"\x7fELF"), f"{name=}"
        self.compiled.append(name)
        return object(), object(), 0, 0, 1024


def launch_everything() -> None:
    """In both precisions, at widths that are and are not divisible by 16."""
    for dtype, d in ((torch.float32, 37), (torch.bfloat16, 768)):
        offsets, indices, source = torch.arange(0, 257, 128), torch.zeros(256, dtype=torch.int64), torch.zeros(4, d, dtype=dtype)
        gpu.weighted_sums(offsets, indices, torch.ones(256), source)
        gpu.dots(offsets, indices, torch.zeros(2, d), source)


if __name__ == "__main__":
    torch.empty = torch.zeros  # what no program has written is read by the next
    compiled = {}
    for capability in map(int, sys.argv[1:]):
        absent = AbsentGPU(capability)
        driver.set_active(absent)
        launch_everything()
        compiled[capability] = absent.compiled
    sys.stdout.write(json.dumps(compiled))
