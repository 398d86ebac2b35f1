"""A sweep that trains long enough to be disturbed."""

from typing import Any

from small_sweep import DIVERGING, small_sweep

from sweeps.definition.sweep import Sweep


def sweep_of(name: str, **changes: Any) -> Sweep:
    """Five runs of a few seconds each, of which one diverges."""
    return small_sweep(
        **{
            "name": name,
            "activations": {"source": "synthetic", "train_tokens": 240_000, "eval_tokens": 4_000},
            "sae": {"d_sae": 128},
            "train": {"batch_size": 256, "dead_after_tokens": 50_000},
            "architectures": {"topk": {"k": [2, 4]}, "standard": {"l1_coefficient": [0.3, 1.0]}, "gated": DIVERGING},
            **changes,
        }
    )
