"""Configuration of the last stage of training, on what the language model makes of reconstructions; see `training.kl_stage`."""

from sae_core.config.base import Config, Positive, require
from sae_core.config.spans import Span, fraction_of_run


class KlStageConfig(Config):
    """The last stage of a training, in which reconstructions are put into the language model: its predictions are to stay the same.

    Karvonen 2025, arXiv:2503.17272; the loss is in `training.kl_stage`, what it gained in docs/kl-stage.md.
    """

    tokens: Span = 0.05
    """How long it lasts, at the end: a fraction of the steps, or e.g. "5%", "500 steps", "25M tokens"."""
    weight: Positive = 0.3
    """Weight of KL relative to that of the squared error (the paper: 1; what it gained here: docs/kl-stage.md)."""

    def check(self, reason: str, n_steps: int, batch_size: int, sparsity_decay: float | str) -> None:
        """Make sure that a run can have this stage.

        Args:
            reason: why its source gives no text for it, as `name=value`; empty: it does.
            n_steps, batch_size, sparsity_decay: of the run.

        Raises:
            ConfigError: it cannot.
        """
        require(
            not reason,
            "`kl_stage` needs the language model that activations are of, with gradients through its layers, but got "
            f"{reason}. Leave out `kl_stage`, or train on a `language_model` in float32, bfloat16 or float16 on its own GPUs.",
        )
        steps = fraction_of_run(self.tokens, n_steps, batch_size) * n_steps
        require(
            0.5 < steps <= n_steps,
            f"`tokens` of `kl_stage` must be at least one step and at most the run's {n_steps}, but got {self.tokens!r}. Change it.",
        )
        require(
            sparsity_decay == 0,
            "`kl_stage` must come without `sparsity_decay`, because it holds the L0 that it starts at, but got "
            f"sparsity_decay={sparsity_decay!r}. Leave one of them out.",
        )
