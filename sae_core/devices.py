"""Shares of a GPU. Ray counts fractions and enforces nothing: a process that takes more than its share ends another one's training."""

import torch

CUDA_BYTES = 2**29
"""Memory of a GPU that a process takes before its first tensor: the CUDA context, and what cuBLAS works in. Not counted by PyTorch."""


def tensor_bytes(gpu_bytes: int, gpus: float) -> int:
    """Memory for tensors in a slot with so many GPUs, or a part of one: a run trains on one of them."""
    return max(0, int(min(gpus, 1.0) * gpu_bytes) - CUDA_BYTES)


def keep_to_share(device: str, gpus: float) -> None:
    """Make PyTorch refuse this process more than its part of a GPU."""
    if torch.device(device).type == "cuda" and 0 < gpus < 1:
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(tensor_bytes(total, gpus) / total, device)
