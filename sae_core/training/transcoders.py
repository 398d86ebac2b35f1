"""Which runs can be trained on pairs of activations, on those of several hook points, and on those of one alone."""

from collections.abc import Mapping

from sae_core.config.run import ARCHITECTURES, RunConfig
from sae_core.errors import ConfigError


def check_kind(run: RunConfig, d_out: int | None, parts: Mapping[str, int] | None = None) -> None:
    """Make sure that a run can train on what its source makes.

    Args:
        d_out: `ActivationSource.d_out`: with it the run is a transcoder.
        parts: `ActivationSource.parts`: with some the run is a crosscoder.

    Raises:
        ConfigError: its architecture cannot be a transcoder; or something in it is for transcoders alone, or for SAEs of one hook point.
    """
    ARCHITECTURES[run.sae.architecture].check_d_out(run.sae, d_out)
    if run.train.normalize_activations == "layer_norm" and (d_out is not None or parts):
        kind, what = ("transcoders", "the output") if d_out is not None else ("crosscoders", "reconstructions")
        raise ConfigError(
            f"`normalize_activations` must be the same map for every token in {kind}, but got 'layer_norm', after which {what} "
            "cannot be brought back to the units of the model. Set `train.normalize_activations` to 'expected_norm', 'whitening' or 'none'."
        )
    if parts and run.sae.is_tied:
        raise ConfigError(
            f"`architecture` of a crosscoder must have an encoder of its own, but got {run.sae.architecture!r}, where it is the decoder's "
            "transpose: each hook point is normalized by its own scale, after which the two differ. Choose another architecture."
        )
    if d_out is not None and run.train.resample_every_steps is not None:
        raise ConfigError(
            "`resample_every_steps` must be left out of transcoders, but got "
            f"resample_every_steps={run.train.resample_every_steps}: latents are made anew from what an SAE reconstructs badly of its own "
            "input. Leave it out; `auxk_coefficient` revives latents, where the architecture has it."
        )
