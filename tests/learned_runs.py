"""Runs to read features of: random SAEs on the embedded model and made-up code, or on known features."""

from pathlib import Path
from typing import Any

import torch
from small_runs import activations_config, random_sae
from tiny_model import language_model_config

from analysis.features.run import LearnedRun
from sae_core.activations.language_model.source import LanguageModelSource
from sae_core.activations.synthetic import SyntheticSource


def of_language_model(directory: Path, architecture: str = "topk", d_sae: int = 96, **changes: Any) -> LearnedRun:
    """A random SAE of the demo's model, about 8 of whose latents are active on a token; `changes` are those of `language_model_config`."""
    fields = {"k": 8} if architecture in ("topk", "batchtopk") else {}
    source = LanguageModelSource(language_model_config(directory, **changes))
    cache = directory / "cache"
    source.prepare(cache)
    sae = random_sae(architecture, source.d_in, d_sae, **fields).to_inference()
    with torch.no_grad():
        sae.W_enc.mul_(0.1)
        sae.W_dec.mul_(0.5)
    return LearnedRun(f"{architecture}-test", "test", sae, source, cache, {"hook_point": source.config.model.hook_point})


def of_known_features(directory: Path, architecture: str = "topk", d_sae: int = 40, seed: int = 0, **fields: Any) -> LearnedRun:
    """A random SAE of activations that come from no language model."""
    source = SyntheticSource(activations_config(64))
    sae = random_sae(architecture, source.d_in, d_sae, seed=seed, **fields).to_inference()
    return LearnedRun(f"{architecture}-{seed}", "test", sae, source, directory)
