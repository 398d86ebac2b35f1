"""Every hook point of several model families: refused by the check, or read, spliced and scored. All blocks have the same; one is tried."""

from pathlib import Path

import pytest
import torch
from tiny_model import DEMO_MODEL, random_model

from sae_core.activations.language_model.engine import HookedModel
from sae_core.activations.language_model.loading import ModelConfig, load_model
from sae_core.activations.language_model.model_spec import model_spec
from sae_core.activations.language_model.splice import CleanText
from sae_core.errors import ConfigError

TOKENS = torch.randint(1, 4096, (2, 13), generator=torch.Generator().manual_seed(0))
LEAST_ACCEPTED = {"demo": 30, "gpt_neo": 37, "gpt_neox": 29, "gemma2": 44, "qwen3": 44}


@pytest.mark.parametrize("family", LEAST_ACCEPTED)
def test_a_hook_point_that_passes_the_check_can_be_read_spliced_and_scored(family: str, tmp_path: Path) -> None:
    name = DEMO_MODEL if family == "demo" else random_model(tmp_path, family)
    found, loaded = model_spec(name), load_model(ModelConfig(name=name, hook_point="hook_embed"))
    accepted = 0
    for hook_point in found.hook_points:
        if hook_point.startswith("blocks.") and not hook_point.startswith("blocks.1."):
            continue
        try:
            width = found.d_in(hook_point)
        except ConfigError as error:
            assert f"but got {hook_point!r}: " in str(error)
            continue
        accepted += 1
        model = HookedModel(loaded, found.layout, found.place(hook_point))
        text = CleanText(model, TOKENS, TOKENS >= 0).at()
        same, zeros = text.splice([text.x, torch.zeros_like(text.x)])
        assert model.read(TOKENS)[0].shape == (2, 13, width), hook_point
        assert torch.allclose(same.ce, text.clean.ce, atol=1e-4), hook_point
        assert float((zeros.ce - text.clean.ce).abs().max()) > 1e-6, hook_point
    assert accepted >= LEAST_ACCEPTED[family]
