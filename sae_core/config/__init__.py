"""Configuration of a run, frozen and strict: `run.py` has the fields, `spans.py` how stretches of training are written."""

from sae_core.config.run import (
    ARCHITECTURES,
    NORMALIZATIONS,
    SOURCES,
    ActivationsConfig,
    ArchitectureConfig,
    Config,
    Count,
    Fraction,
    Positive,
    RunConfig,
    TrainConfig,
)

__all__ = [
    "ARCHITECTURES",
    "NORMALIZATIONS",
    "SOURCES",
    "ActivationsConfig",
    "ArchitectureConfig",
    "Config",
    "Count",
    "Fraction",
    "Positive",
    "RunConfig",
    "TrainConfig",
]
