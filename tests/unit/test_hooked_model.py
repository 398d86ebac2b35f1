from typing import Any

import pytest
import torch
from tiny_model import DEMO_MODEL, random_model

from sae_core.activations.language_model import hooked_model
from sae_core.activations.language_model.bridge import ModelConfig, load_model
from sae_core.activations.language_model.hook_points import reach
from sae_core.activations.language_model.hooked_model import HookedModel

TOKENS = torch.randint(1, 4096, (3, 20), generator=torch.Generator().manual_seed(0))
HOOK_POINTS = [
    "blocks.1.hook_resid_post",
    "blocks.1.hook_resid_pre",
    "blocks.1.hook_mlp_out",
    "blocks.1.attn.hook_z",
    "blocks.1.mlp.hook_post",
]
ENDS = ["blocks.2.hook_resid_post", "blocks.0.hook_resid_pre", "hook_embed"]


def hooked(hook_point: str, **fields: str) -> HookedModel:
    """The demo model, fresh, so that a test may change it."""
    return HookedModel(load_model(ModelConfig.model_validate({"name": DEMO_MODEL, "hook_point": hook_point} | fields)), hook_point)


@pytest.fixture(scope="module", params=["demo", "gpt_neo", "gpt_neox", "gemma2", "llama"])
def bridge(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Families that differ: blocks that return tuples (gpt_neo), parallel attention and MLP (gpt_neox), capped logits (gemma2)."""
    name = DEMO_MODEL if request.param == "demo" else random_model(tmp_path_factory.mktemp(request.param), request.param)
    return load_model(ModelConfig(name=name, hook_point="hook_embed"))


@pytest.mark.parametrize("hook_point", [*HOOK_POINTS, *ENDS])
def test_going_on_from_the_hook_point_equals_the_whole_model(bridge: Any, hook_point: str) -> None:
    model = HookedModel(bridge, hook_point)
    clean, logits = model.run(TOKENS)
    other = clean.x * 0.5 + 0.1
    whole = model._replaced(TOKENS, other)
    model._resume_verified = True  # so that what is compared is the fast path itself
    assert (model.run_from(clean, other) - whole).abs().max() <= 1e-4 * whole.abs().max()
    assert (model.run_from(clean, clean.x) - logits).abs().max() <= 1e-4 * logits.abs().max()
    assert (whole - logits).abs().max() > 1e-3 * logits.abs().max()


@pytest.mark.parametrize("hook_point", [*HOOK_POINTS, *ENDS])
def test_without_the_hooks_that_are_not_needed_the_values_are_the_same(bridge: Any, hook_point: str) -> None:
    bridge.original_model.set_attn_implementation("eager")  # another test may have fused it
    x = reach(bridge, hook_point, TOKENS).flatten(2)
    logits = bridge(TOKENS, return_type="logits", use_cache=False)
    model = HookedModel(bridge, hook_point)
    clean, fast_logits = model.run(TOKENS)
    assert model._unhooked
    assert (model.read(TOKENS) - x).abs().max() <= 1e-5 * x.abs().max()
    assert (clean.x - x).abs().max() <= 1e-5 * x.abs().max()
    assert (fast_logits - logits).abs().max() <= 1e-5 * logits.abs().max()


def test_where_that_makes_a_difference_all_hooks_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooked_model, "UNHOOKED_TOLERANCE", -1.0)
    model = hooked("blocks.1.hook_mlp_out")
    expected = reach(model._bridge, "blocks.1.hook_mlp_out", TOKENS)
    assert torch.equal(model.read(TOKENS), expected)
    assert model._unhooked == []
    assert model._bridge.original_model.config._attn_implementation == "eager"


def test_half_precision_keeps_all_hooks() -> None:
    model = hooked("blocks.1.hook_mlp_out", dtype="bfloat16")
    assert torch.equal(model.read(TOKENS), reach(model._bridge, "blocks.1.hook_mlp_out", TOKENS))
    assert model._unhooked == []


def test_reading_stops_at_the_hook_point_with_the_same_values() -> None:
    model = hooked("blocks.1.attn.hook_z")
    model.read(TOKENS)  # the first call runs more, to compare
    ran = []
    model._bridge.blocks[2].register_forward_hook(lambda *_: ran.append(2))
    x = model.read(TOKENS)
    assert x.shape == (3, 20, 128)
    assert not ran
    assert torch.equal(model.run(TOKENS)[0].x, x)
    assert ran


def test_only_blocks_above_are_run() -> None:
    model = hooked("blocks.2.hook_resid_post")
    clean, _ = model.run(TOKENS)
    model.run_from(clean, clean.x)
    ran: list[int] = []
    for index, block in enumerate(model._bridge.blocks):
        block.mlp.register_forward_hook(lambda *_, index=index: ran.append(index))
    model.run_from(clean, clean.x)
    assert ran == [3]


def test_model_is_whole_again_after_an_error() -> None:
    model = hooked("blocks.2.hook_resid_post")
    clean, logits = model.run(TOKENS)
    with pytest.raises(RuntimeError):
        model.run_from(clean, clean.x[..., :7])
    assert torch.equal(model.run(TOKENS)[1], logits)


def test_where_going_on_is_wrong_whole_runs_are_used(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    model = hooked("blocks.2.hook_mlp_out")
    clean, _ = model.run(TOKENS)
    monkeypatch.setattr(model, "_n_skipped", 1)  # skips one block too few for the stream that is put in
    with model._running():
        whole = model._replaced(TOKENS, clean.x * 2)
    assert torch.equal(model.run_from(clean, clean.x * 2), whole)
    assert "going on from blocks.2.hook_mlp_out differs from running the whole model" in caplog.text
    assert model._n_skipped == 0
    assert torch.equal(model.run_from(clean, clean.x * 2), whole)


def test_logits_are_a_product_of_what_enters_the_unembedding(bridge: Any) -> None:
    model = HookedModel(bridge, "blocks.1.hook_resid_post")
    clean, logits = model.run(TOKENS)
    unembedding = model.unembedding(TOKENS[:1])
    if getattr(bridge.original_model.config, "final_logit_softcapping", None):
        assert unembedding is None
        return
    assert unembedding is not None
    with model.before_unembedding():
        h = model.run(TOKENS)[1]
        resumed = model.run_from(clean, clean.x)
    assert h.shape == (3, 20, bridge.cfg.d_model)
    assert torch.allclose(unembedding.logits(h.flatten(0, 1)), logits.flatten(0, 1), atol=1e-5 * float(logits.abs().max()))
    assert torch.allclose(resumed, h, atol=1e-4 * float(h.abs().max()))
    assert torch.equal(model.run(TOKENS)[1], logits)  # whole again


def test_a_bias_of_the_unembedding_counts() -> None:
    model = hooked("blocks.2.hook_resid_post")
    model._bridge.unembed.original_component.bias.copy_(torch.randn(4096, generator=torch.Generator().manual_seed(0)))
    unembedding = model.unembedding(TOKENS)
    assert unembedding is not None and unembedding.bias is not None


def test_half_precision_logits_are_left_to_the_model() -> None:
    assert hooked("blocks.2.hook_resid_post", dtype="bfloat16").unembedding(TOKENS) is None


def test_half_precision_models_take_float32_rows() -> None:
    model = hooked("blocks.2.hook_resid_post", dtype="bfloat16")
    clean, logits = model.run(TOKENS)
    assert torch.equal(model.run_from(clean, clean.x.float()), logits)
