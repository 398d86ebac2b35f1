from types import SimpleNamespace

import pytest
import torch

from sae_core.devices import CUDA_BYTES, keep_to_share, tensor_bytes

GPU_BYTES = 80 * 2**30


@pytest.mark.parametrize(("gpus", "share"), [(0.25, 0.25), (1.0, 1.0), (2.0, 1.0)])
def test_a_slot_has_its_share_of_a_gpu_without_the_context(gpus, share):
    assert tensor_bytes(GPU_BYTES, gpus) == int(share * GPU_BYTES) - CUDA_BYTES
    assert tensor_bytes(GPU_BYTES, 0.001) == 0


def test_processes_that_share_a_gpu_may_not_take_more_than_there_is(monkeypatch):
    limits = []
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=GPU_BYTES))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda fraction, device: limits.append((fraction, device)))
    for device, gpus in [("cuda:0", 0.25), ("cuda:0", 1.0), ("cuda:0", 2.0), ("cpu", 0.0), ("cpu", 0.25)]:
        keep_to_share(device, gpus)
    ((fraction, device),) = limits
    assert device == "cuda:0"
    assert 4 * (fraction * GPU_BYTES + CUDA_BYTES) == pytest.approx(GPU_BYTES)


@pytest.mark.gpu
def test_a_share_is_enforced():
    total = torch.cuda.get_device_properties("cuda:0").total_memory
    keep_to_share("cuda:0", 0.25)
    try:
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(int(0.3 * total), dtype=torch.uint8, device="cuda:0")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, "cuda:0")
