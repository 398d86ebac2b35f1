"""What must hold between the settings of a language model and its text, beside what each of them is checked for alone."""

from sae_core.activations.language_model import dataset, pretokenized
from sae_core.activations.language_model.data_config import DataConfig
from sae_core.activations.language_model.loading import ModelConfig
from sae_core.errors import ConfigError


def check_context(model: ModelConfig, data: DataConfig, n_ctx: int) -> None:
    """Make sure that windows have positions that the model and the text know.

    Raises:
        ConfigError: they do not.
    """
    if model.context_size > n_ctx:
        raise ConfigError(
            f"`model.context_size` must be <= {n_ctx}, the positions of {model.name}, but got {model.context_size}. Lower it."
        )
    if (positions := data.positions) and positions[1] > model.context_size:
        raise ConfigError(
            f"`data.positions` must end at `model.context_size`, {model.context_size}, at the latest, but got {list(positions)}. "
            "Correct them."
        )


def check_pretokenized(model: ModelConfig, data: DataConfig) -> None:
    """Make sure that text which says how it was tokenized was tokenized for this model.

    Raises:
        ConfigError: with every problem, one per line.
    """
    problems = []
    for part in dataset.parts(data):
        column = dataset.resolved(part).tokens_column
        if column and not part.tokens_column:
            problems += pretokenized.problems(part.dataset, column, model)
    if problems:
        raise ConfigError("\n".join(problems))


def why_no_gradient(model: ModelConfig) -> str:
    """Which setting keeps gradients from going through a model, as `name=value`; empty: none does."""
    settings = {"quantization": model.quantization, "device_map": model.device_map}
    return next((f"{name}={value!r}" for name, value in settings.items() if value is not None), "")
