"""Which runs can be trained on pairs of activations, and which on activations alone."""

from sae_core.config.run import ARCHITECTURES, RunConfig
from sae_core.errors import ConfigError


def check_kind(run: RunConfig, d_out: int | None) -> None:
    """Make sure that a run can train on what its source makes.

    Args:
        d_out: `ActivationSource.d_out`: with it the run is a transcoder.

    Raises:
        ConfigError: its architecture cannot be a transcoder, or something in it is for SAEs alone, or for transcoders alone.
    """
    ARCHITECTURES[run.sae.architecture].check_d_out(run.sae, d_out)
    if d_out is None:
        return
    if run.train.resample_every_steps is not None:
        raise ConfigError(
            "`resample_every_steps` must be left out of transcoders, but got "
            f"resample_every_steps={run.train.resample_every_steps}: latents are made anew from what an SAE reconstructs badly of its own "
            "input. Leave it out; `auxk_coefficient` revives latents, where the architecture has it."
        )
    if run.train.normalize_activations == "layer_norm":
        raise ConfigError(
            "`normalize_activations` must be the same map for every token in transcoders, but got 'layer_norm', after which the output "
            "cannot be brought back to its units. Set `train.normalize_activations` to 'expected_norm', 'whitening' or 'none'."
        )
