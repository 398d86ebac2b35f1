"""The arithmetic of this process: kernels and precisions. Numbers that were made with different ones differ in their rounding."""

from collections.abc import Mapping
from typing import Any

import torch

from sae_core.sparse.kernels.choice import kernels_used


def arithmetic(device: str | torch.device, **precisions: str) -> dict[str, str]:
    """What a record keeps about the arithmetic on `device`.

    Args:
        precisions: of what runs there, e.g. `autocast`.
    """
    device = torch.device(device)
    found = {"device": device.type, "kernels": kernels_used(device), "float32_matmul": torch.get_float32_matmul_precision(), **precisions}
    if device.type == "cpu":
        return found | {"vector_instructions": torch.backends.cpu.get_cpu_capability()}
    return found | {"cudnn_tf32": str(torch.backends.cudnn.allow_tf32)}


def eval_arithmetic(device: str | torch.device, source: Mapping[str, Any]) -> dict[str, str]:
    """As `arithmetic`, of an evaluation.

    Args:
        source: the source's config, as JSON; where it has a language model, its precision counts.
    """
    model = source.get("model")
    return arithmetic(device, **({"model": str(model.get("dtype"))} if isinstance(model, Mapping) else {}))
