"""Configuration of the last stage of training, on what the language model makes of reconstructions; see `training.kl_stage`."""

from sae_core.config.base import Config, Positive
from sae_core.config.spans import Span


class KlStageConfig(Config):
    """The last stage of a training, in which reconstructions are put into the language model: its predictions are to stay the same.

    Karvonen 2025, arXiv:2503.17272; the loss is in `training.kl_stage`, what it gained in docs/kl-stage.md.
    """

    tokens: Span = 0.05
    """How long it lasts, at the end: a fraction of the steps, or e.g. "5%", "500 steps", "25M tokens"."""
    weight: Positive = 1.0
    """Weight of KL relative to that of the squared error."""
