import gc
import shutil
from pathlib import Path

import pytest
import torch
from tiny_model import DEMO_MODEL

from sae_core.activations.bridge import ModelConfig, Outline, content_hash, load_model, load_tokenizer, outline, reach
from sae_core.errors import ConfigError, UnknownNameError


@pytest.fixture(scope="module")
def demo() -> Outline:
    return outline(DEMO_MODEL)


def test_outline_knows_the_shapes_without_the_weights(demo: Outline) -> None:
    assert (demo.n_ctx, demo.d_vocab) == (128, 4096)
    assert demo.d_in("blocks.2.hook_resid_post") == 128
    assert demo.d_in("blocks.2.mlp.hook_post") == 512
    assert demo.d_in("blocks.0.attn.hook_z") == 4 * 32  # heads are concatenated
    assert demo.d_in("hook_embed") == 128


@pytest.mark.parametrize(
    ("hook_point", "message"),
    [
        ("blocks.2.attn.hook_pattern", r"shape \[1, 4, 11, 11\]"),
        ("blocks.2.hook_resid_mid", "blocks.2.hook_resid_mid.*Choose hook_resid_pre"),
        ("blocks.2.attn.hook_result", "blocks.2.attn.hook_result.*use_attn_result"),
    ],
)
def test_unusable_hook_points(demo: Outline, hook_point: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        demo.d_in(hook_point)


def test_unknown_hook_point_names_the_nearest(demo: Outline) -> None:
    with pytest.raises(UnknownNameError, match=r"but got 'blocks\.2\.hook_residpost'\. Did you mean 'blocks\.2\.hook_resid_post'"):
        demo.d_in("blocks.2.hook_residpost")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/no/such/directory", "existing directory.*but got '/no/such/directory'"),
        ("./missing", r"but got '\./missing'"),
        ("nobody/nothing", "reachable Hugging Face Hub name.*but got 'nobody/nothing'.*network"),
    ],
)
def test_missing_models(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        outline(name)
    with pytest.raises(ConfigError, match=message):
        content_hash(name)


def test_directory_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"but got '{tmp_path}'"):
        outline(str(tmp_path))
    with pytest.raises(ConfigError, match=f"but got '{tmp_path}'"):
        load_tokenizer(str(tmp_path))


def test_hash_follows_the_weights_and_not_the_place(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(DEMO_MODEL, copy)
    assert content_hash(str(copy)) == content_hash(DEMO_MODEL)
    (copy / "notes.md").write_text("read by nobody")
    assert content_hash(str(copy)) == content_hash(DEMO_MODEL)
    (copy / "tokenizer_config.json").write_text("{}")
    assert content_hash(str(copy)) != content_hash(DEMO_MODEL)


def test_model_gives_the_activations_of_hugging_face() -> None:
    from transformers import AutoModelForCausalLM

    tokens = torch.arange(20).view(2, 10) + 5
    bridge = load_model(ModelConfig(name=DEMO_MODEL, hook_point="blocks.2.hook_resid_post"))
    reference = AutoModelForCausalLM.from_pretrained(DEMO_MODEL, dtype=torch.float32, attn_implementation="eager").eval()
    seen = []
    reference.transformer.h[2].register_forward_hook(lambda block, inputs, output: seen.append(output))
    with torch.no_grad():
        logits = reference(tokens).logits
        ours = reach(bridge, "blocks.2.hook_resid_post", tokens)
        our_logits = bridge(tokens, return_type="logits")
    # not bit for bit: the fused GELU rounds otherwise
    assert torch.allclose(ours, seen[0], atol=1e-4)
    assert torch.allclose(our_logits, logits, atol=1e-4)


@pytest.mark.parametrize("enabled", [True, False])
def test_building_a_model_leaves_garbage_collection_as_it_was(enabled: bool) -> None:
    before = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        outline(DEMO_MODEL)
        assert gc.isenabled() == enabled
    finally:
        (gc.enable if before else gc.disable)()


def test_precision_is_the_one_asked_for() -> None:
    bridge = load_model(ModelConfig(name=DEMO_MODEL, hook_point="hook_embed", dtype="bfloat16"))
    with torch.no_grad():
        assert reach(bridge, "hook_embed", torch.zeros(1, 3, dtype=torch.long)).dtype == torch.bfloat16
