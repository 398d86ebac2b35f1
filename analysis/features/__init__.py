"""What an SAE learned: where its latents are active, what they do to the next token, and their counterparts in other SAEs.

The only room of `analysis` that may use torch and an SAE, inside functions. `sweeps.open_run(results, run_id)` gives what everything here
starts from.
"""

from analysis.features.examples import activation_histogram, latent_density, quantile_examples, top_activating_examples
from analysis.features.interventions import ablate, steer
from analysis.features.logits import logit_effects
from analysis.features.matching import match_latents
from analysis.features.run import LearnedRun

__all__ = [
    "LearnedRun",
    "ablate",
    "activation_histogram",
    "latent_density",
    "logit_effects",
    "match_latents",
    "quantile_examples",
    "steer",
    "top_activating_examples",
]
