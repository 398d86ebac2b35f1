"""sae_core/activations/language_model/engine.py: every shortcut gives what the plain bridge gives."""

from typing import Any

import pytest
import torch
from tiny_model import DEMO_MODEL, random_model

from sae_core.activations.language_model import engine
from sae_core.activations.language_model.engine import CleanRun, HookedModel, activations_at
from sae_core.activations.language_model.loading import ModelConfig, load_model

pytestmark = pytest.mark.slow

TOKENS = torch.randint(1, 4096, (3, 20), generator=torch.Generator().manual_seed(0))
HOOK_POINTS = [
    *("blocks.1.hook_resid_post", "blocks.1.hook_resid_pre", "blocks.1.hook_mlp_out", "blocks.1.attn.hook_z", "blocks.1.mlp.hook_post"),
    *("blocks.2.hook_resid_post", "blocks.0.hook_resid_pre", "hook_embed"),
]


def load(name: str = DEMO_MODEL, **fields: str) -> Any:
    return load_model(ModelConfig.model_validate({"name": name, "hook_point": "hook_embed"} | fields))


@pytest.fixture(scope="module", params=["demo", "gpt_neo", "gpt_neox", "gemma2", "llama"])
def bridge(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Families that differ: blocks that return tuples (gpt_neo), parallel attention and MLP (gpt_neox), capped logits (gemma2)."""
    return load() if request.param == "demo" else load(random_model(tmp_path_factory.mktemp(request.param), request.param))


@torch.no_grad()
def plain(bridge: Any, hook_point: str, replacement: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Activations at the hook point and logits of the bridge with all its hooks, with these activations put in."""
    bridge.original_model.set_attn_implementation("eager")  # another test may have fused it
    seen: list[torch.Tensor] = []

    def hook(value: torch.Tensor, hook: object) -> torch.Tensor | None:
        seen.append(value.flatten(2))
        return None if replacement is None else replacement.view(value.shape)

    logits = bridge.run_with_hooks(TOKENS, fwd_hooks=[(hook_point, hook)], return_type="logits", use_cache=False)
    return seen[0], logits


def assert_close(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("hook_point", HOOK_POINTS)
def test_it_reads_and_resumes_as_the_plain_model(bridge: Any, hook_point: str) -> None:
    x, logits = plain(bridge, hook_point)
    other = x * 0.5 + 0.1
    _, whole = plain(bridge, hook_point, other)
    model = HookedModel(bridge, hook_point)
    clean, fast_logits = model.run(TOKENS)
    for found, expected in ((model.read(TOKENS), x), (clean.x, x), (fast_logits, logits)):
        assert_close(found, expected, 1e-5)
    assert_close(model.run_from(clean, other), whole, 1e-4)
    assert_close(model.run_from(clean, clean.x), logits, 1e-4)
    assert (whole - logits).abs().max() > 1e-3 * logits.abs().max()


def modules_run(model: HookedModel, run: Any) -> set[int]:
    """Blocks whose MLP runs."""
    ran: set[int] = set()
    handles = [block.mlp.register_forward_hook(lambda *_, index=index: ran.add(index)) for index, block in enumerate(model._bridge.blocks)]
    run()
    for handle in handles:
        handle.remove()
    return ran


def test_only_the_blocks_that_are_needed_run() -> None:
    model = HookedModel(load(), "blocks.2.hook_resid_post")
    clean, _ = model.run(TOKENS)
    model.run_from(clean, clean.x)  # the first call runs more, to compare
    assert modules_run(model, lambda: model.run_from(clean, clean.x)) == {3}
    assert modules_run(model, lambda: model.read(TOKENS)) == {0, 1, 2}


def test_hooks_that_are_not_needed_do_not_fire_and_attention_is_fused() -> None:
    model, fired = HookedModel(load(), "blocks.1.mlp.hook_post"), []
    model.read(TOKENS)
    for name in ("blocks.0.attn.hook_pattern", "blocks.1.mlp.hook_post"):
        model._bridge.hook_dict[name].add_hook(lambda value, hook, name=name: fired.append(name))
    model.run(TOKENS)
    assert fired == ["blocks.1.mlp.hook_post"]
    assert model._bridge.original_model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("hook_point", ["blocks.1.attn.hook_z", "blocks.1.attn.hook_q"])
def test_attention_with_a_wanted_hook_is_not_fused(hook_point: str) -> None:
    bridge = load()
    HookedModel(bridge, hook_point).read(TOKENS)
    assert bridge.original_model.config._attn_implementation == "eager"


def test_where_a_shortcut_makes_a_difference_it_is_not_taken(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(engine, "UNHOOKED_TOLERANCE", -1.0)
    monkeypatch.setattr(engine, "RESUME_TOLERANCE", -1.0)
    bridge = load()
    x, logits = plain(bridge, "blocks.2.hook_mlp_out")
    model = HookedModel(bridge, "blocks.2.hook_mlp_out")
    assert torch.equal(model.read(TOKENS), x)
    clean = model.run(TOKENS)[0]
    assert torch.equal(model.run_from(clean, clean.x), logits)
    assert "resuming at blocks.2.hook_mlp_out differs from running the full model" in caplog.text
    assert modules_run(model, lambda: model.run_from(clean, clean.x)) == {0, 1, 2, 3}
    assert model.unembedding is None


def test_a_model_without_fused_attention_keeps_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    bridge = load()

    def refuse(model: object, implementation: str) -> None:
        raise ValueError("no such attention")

    monkeypatch.setattr(type(bridge.original_model), "set_attn_implementation", refuse)
    model = HookedModel(bridge, "blocks.1.hook_mlp_out")
    assert_close(model.read(TOKENS), activations_at(bridge, "blocks.1.hook_mlp_out", TOKENS), 1e-5)


def test_half_precision_keeps_all_hooks_takes_float32_rows_and_leaves_logits_to_the_model() -> None:
    bridge = load(dtype="bfloat16")
    model = HookedModel(bridge, "blocks.2.hook_resid_post")
    x, logits = plain(bridge, "blocks.2.hook_resid_post")
    clean: CleanRun = model.run(TOKENS)[0]
    assert torch.equal(clean.x, x)
    assert torch.equal(model.run_from(clean, clean.x.float()), logits)
    assert model.unembedding is None


def test_model_is_whole_again_after_an_error() -> None:
    model = HookedModel(load(), "blocks.2.hook_resid_post")
    clean, logits = model.run(TOKENS)
    with pytest.raises(RuntimeError):
        model.run_from(clean, clean.x[..., :7])
    assert torch.equal(model.run(TOKENS)[1], logits)


def test_logits_are_a_product_of_what_enters_the_unembedding(bridge: Any) -> None:
    model = HookedModel(bridge, "blocks.1.hook_resid_post")
    clean, logits = model.run(TOKENS)
    unembedding = model.unembedding
    if getattr(bridge.original_model.config, "final_logit_softcapping", None):
        assert unembedding is None
        return
    assert unembedding is not None
    with model.before_unembedding():
        h = model.run(TOKENS)[1]
        resumed = model.run_from(clean, clean.x)
    assert h.shape == (3, 20, bridge.cfg.d_model)
    assert_close(unembedding.logits(h.flatten(0, 1)), logits.flatten(0, 1), 1e-5)
    assert_close(resumed, h, 1e-4)
    assert torch.equal(model.run(TOKENS)[1], logits)  # whole again


def test_a_bias_of_the_unembedding_counts() -> None:
    bridge = load()
    bridge.unembed.original_component.bias.data.copy_(torch.randn(4096, generator=torch.Generator().manual_seed(0)))
    unembedding = HookedModel(bridge, "blocks.2.hook_resid_post").unembedding
    assert unembedding is not None and unembedding.bias is not None


def spread(name: str, device_map: dict[str, str | int], **options: Any) -> Any:
    """The bridge of a model whose parts lie in different places; Accelerate brings what a part needs to where it is."""
    from tokenizers import Tokenizer, models
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedTokenizerFast

    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>")), unk_token="<unk>")
    return TransformerBridge.boot_transformers(name, dtype=torch.float32, device_map=device_map, tokenizer=words, **options)


def assert_like(spread_model: HookedModel, whole: HookedModel, tokens: torch.Tensor) -> None:
    """Everything comes back to where the tokens are, and is the same."""
    clean, logits = spread_model.run(tokens)
    expected, expected_logits = whole.run(TOKENS)
    pairs = [(spread_model.read(tokens), whole.read(TOKENS)), (clean.x, expected.x), (logits, expected_logits)]
    pairs += [(spread_model.run_from(clean, clean.x * 0.5), whole.run_from(expected, expected.x * 0.5))]
    for found, wanted in pairs:
        assert found.device == tokens.device
        assert_close(found.cpu(), wanted, 1e-5)
    assert spread_model.unembedding is not None
    assert spread_model.unembedding.W_U.device == tokens.device


@pytest.mark.parametrize(
    "hook_point", ["blocks.0.hook_resid_post", "blocks.1.hook_mlp_out", "blocks.1.attn.hook_z", "blocks.2.hook_resid_pre"]
)
def test_a_model_in_several_places_is_read_and_resumed_as_one(hook_point: str, tmp_path: Any) -> None:
    name = random_model(tmp_path / "model", "llama")
    places = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.norm": "cpu", "lm_head": "cpu", "model.layers.0": "cpu"}
    places |= {"model.layers.1": "disk", "model.layers.2": "disk"}
    bridge = spread(name, places, offload_folder=str(tmp_path / "offloaded"))
    assert any(weight.is_meta for weight in bridge.original_model.parameters())
    assert_like(HookedModel(bridge, hook_point), HookedModel(load(name), hook_point), TOKENS)


@pytest.mark.gpu
@pytest.mark.parametrize("hook_point", ["blocks.0.hook_resid_post", "blocks.2.hook_mlp_out"])
def test_a_model_on_two_gpus_is_read_and_resumed_as_one(hook_point: str, tmp_path: Any) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    name = random_model(tmp_path / "model", "llama")
    config = ModelConfig.model_validate({"name": name, "hook_point": hook_point})
    bridge = load_model(config, device="cuda:0", n_gpus=2)
    assert {weight.device.index for weight in bridge.original_model.parameters()} == {0, 1}
    assert_like(HookedModel(bridge, hook_point), HookedModel(load(name), hook_point), TOKENS.to("cuda:0"))
