"""One sparse autoencoder (SAE), or a group of them on one stream of activations: configured, trained, measured, saved.

Names are loaded when first used, so that importing this package costs nothing and `analysis` stays free of torch.
"""

import importlib
from typing import Any

_HOME = {
    "RunConfig": "config",
    "TrainConfig": "config",
    "ARCHITECTURES": "config",
    "SOURCES": "config",
    "ConfigError": "errors",
    "UnknownNameError": "errors",
    "MetricSpec": "records",
    "RunRecord": "records",
    "SparseAutoencoder": "sae",
    "METRICS": "metrics",
    "train_group": "training",
    "train_run": "training",
    "evaluate": "evaluation",
    "measure": "evaluation",
    "harvest": "activations.shards",
    "Stream": "activations.stream",
    "TensorStream": "activations.stream",
    "IteratorStream": "activations.iterator",
    "activations_of": "activations.module",
    "save_activations": "activations.file",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'sae_core' has no attribute {name!r}")
    return getattr(importlib.import_module(f"sae_core.{_HOME[name]}"), name)
