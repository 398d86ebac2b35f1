"""sae_core/activations/language_model/unhooked.py. That values stay the same: tests/unit/test_hooked_model.py."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_model import DEMO_MODEL, random_model

from sae_core.activations.language_model.bridge import ModelConfig, load_model
from sae_core.activations.language_model.unhooked import FUSED, forward_is, may_fuse_attention, unhooked, use_attention, without_hooks

TOKENS = torch.arange(1, 9)[None]


@pytest.fixture(scope="module")
def bridge() -> Any:
    return load_model(ModelConfig(name=DEMO_MODEL, hook_point="hook_embed"))


def fired(bridge: Any, names: list[str]) -> list[str]:
    """Which of these hooks fire in a run."""
    seen: list[str] = []
    hooks = [(name, lambda value, hook, name=name: seen.append(name)) for name in names]
    with torch.no_grad():
        bridge.run_with_hooks(TOKENS, fwd_hooks=hooks, return_type="logits", use_cache=False)
    return seen


def test_hooks_that_are_wanted_fire_and_others_do_not(bridge: Any) -> None:
    names = ["blocks.0.attn.hook_pattern", "blocks.1.mlp.hook_post", "blocks.1.hook_resid_post", "blocks.2.ln1.hook_scale"]
    assert fired(bridge, names) == names
    with unhooked(without_hooks(bridge, ["blocks.1.mlp.hook_post", "blocks.1.hook_resid_post"])):
        assert fired(bridge, names) == names[1:3]
    assert fired(bridge, names) == names


def test_the_unembedding_keeps_its_own(bridge: Any) -> None:
    assert not any(one is bridge.unembed for one in without_hooks(bridge, ["hook_embed"]))


def test_attention_may_be_fused_where_no_hook_lies_in_it(bridge: Any) -> None:
    assert may_fuse_attention(bridge, without_hooks(bridge, ["blocks.1.hook_mlp_out"]))
    assert not may_fuse_attention(bridge, without_hooks(bridge, ["blocks.1.attn.hook_z"]))


def test_capped_attention_is_not_fused(tmp_path: Path) -> None:
    capped = load_model(ModelConfig(name=random_model(tmp_path, "gemma2"), hook_point="hook_embed"))
    assert not may_fuse_attention(capped, without_hooks(capped, ["hook_embed"]))


def test_a_model_without_fused_attention_keeps_its_own(bridge: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(implementation: str) -> None:
        raise ValueError("no such attention")

    monkeypatch.setattr(type(bridge.original_model), "set_attn_implementation", lambda model, implementation: refuse(implementation))
    use_attention(bridge, FUSED)
    assert bridge.original_model.config._attn_implementation == "eager"


def test_replaced_forwards_nest(bridge: Any) -> None:
    mlp = bridge.blocks[0].mlp
    x = torch.zeros(1, 2, 128)
    with torch.no_grad():
        own = mlp(x)
        with forward_is(mlp, lambda x: x + 1):
            with forward_is(mlp, lambda x: x + 2):
                assert torch.equal(mlp(x), x + 2)
            assert torch.equal(mlp(x), x + 1)
        assert torch.equal(mlp(x), own)
