"""sae_core/activations/language_model/engine.py: it reads and splices as PyTorch's own hooks do in the plain model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_model import DEMO_MODEL, hooked_model, random_model

from sae_core.activations.language_model import engine
from sae_core.activations.language_model.engine import HookedModel
from sae_core.activations.language_model.loading import ModelConfig, load_model
from sae_core.activations.language_model.model_spec import model_spec
from sae_core.errors import ConfigError

pytestmark = pytest.mark.slow

TOKENS = torch.randint(1, 4096, (3, 20), generator=torch.Generator().manual_seed(0))
TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}
"""As a fraction of the largest value; bfloat16 has eight bits, which differences go through a few layers in."""

SEQUENTIAL = {
    "hook_resid_pre": ("", "input"),
    "hook_resid_mid": ("post_attention_layernorm", "input"),
    "hook_resid_post": ("", "output"),
    "attn.hook_z": ("self_attn.o_proj", "input"),
    "hook_attn_out": ("self_attn", "output"),
    "hook_mlp_out": ("mlp", "output"),
}
BY_HAND = {
    "demo": (
        "transformer.h",
        {
            **SEQUENTIAL,
            "hook_resid_mid": ("ln_2", "input"),
            "attn.hook_z": ("attn.c_proj", "input"),
            "hook_attn_out": ("attn", "output"),
        },
    ),
    "gpt_neox": (
        "gpt_neox.layers",
        {
            **{name: where for name, where in SEQUENTIAL.items() if name != "hook_resid_mid"},
            "attn.hook_z": ("attention.dense", "input"),
            "hook_attn_out": ("attention", "output"),
        },
    ),
    "llama": ("model.layers", SEQUENTIAL),
    "gemma2": (
        "model.layers",
        {
            **SEQUENTIAL,
            "hook_resid_mid": ("pre_feedforward_layernorm", "input"),
            "hook_attn_out": ("post_attention_layernorm", "output"),
            "hook_mlp_out": ("post_feedforward_layernorm", "output"),
        },
    ),
    "qwen3": ("model.layers", SEQUENTIAL),
}
"""Family -> path of its blocks, and hook point -> module in a block and side, as their code in transformers says."""
Replace = Callable[[torch.Tensor], torch.Tensor | None]


@pytest.fixture(scope="module", params=[(family, dtype) for family in BY_HAND for dtype in TOLERANCE], ids=lambda param: "-".join(param))
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, str, Any]:
    """Name of a family and a precision, and the plain model twice: its directory, and as transformers loads it."""
    from transformers import AutoModelForCausalLM

    kind, dtype = request.param
    name = DEMO_MODEL if kind == "demo" else random_model(tmp_path_factory.mktemp(kind), kind)
    attention = {"attn_implementation": "eager"} if kind == "gemma2" else {}
    return kind, dtype, name, AutoModelForCausalLM.from_pretrained(name, dtype=getattr(torch, dtype), **attention).eval()


@torch.no_grad()
def by_hooks(plain: Any, path: str, side: str, replace: Replace = lambda value: None) -> tuple[torch.Tensor, torch.Tensor]:
    """The value at a module's side and the logits, by PyTorch's hooks."""
    seen: list[torch.Tensor] = []

    def changed(value: torch.Tensor) -> torch.Tensor | None:
        seen.append(value)
        return replace(value)

    def before(module: Any, args: Any, kwargs: Any) -> Any:
        if args:
            new = changed(args[0])
            return None if new is None else ((new, *args[1:]), kwargs)
        new = changed(kwargs["hidden_states"])
        return None if new is None else (args, {**kwargs, "hidden_states": new})

    def after(module: Any, inputs: Any, output: Any) -> Any:
        new = changed(output[0] if isinstance(output, tuple) else output)
        return None if new is None else (new, *output[1:]) if isinstance(output, tuple) else new

    module = plain.get_submodule(path)
    handle = module.register_forward_hook(after) if side == "output" else module.register_forward_pre_hook(before, with_kwargs=True)
    try:
        return seen, plain(TOKENS, use_cache=False).logits.float()  # type: ignore[return-value]
    finally:
        handle.remove()


def value_and_logits(plain: Any, path: str, side: str, replace: Replace = lambda value: None) -> tuple[torch.Tensor, torch.Tensor]:
    (value,), logits = by_hooks(plain, path, side, replace)
    return value, logits


def all_logits(model: HookedModel, h: torch.Tensor) -> torch.Tensor:
    return model.logits(h.flatten(0, 1)).unflatten(0, TOKENS.shape)


def assert_close(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    assert found.shape == expected.shape
    assert (found.float() - expected.float()).abs().max() <= tolerance * expected.float().abs().max()


def test_values_and_splices_are_those_of_pytorch_hooks(family: tuple[str, str, str, Any]) -> None:
    kind, dtype, name, plain = family
    blocks, places = BY_HAND[kind]
    layer = 1
    model = hooked_model(name, *(f"blocks.{layer}.{hook}" for hook in places), dtype=dtype)
    cleans, h = model.run(TOKENS)
    stream = value_and_logits(plain, f"{blocks}.{layer}", "input")[0]
    for clean, read, (hook, (part, side)) in zip(cleans, model.read(TOKENS), places.items(), strict=True):
        path = ".".join(filter(None, (blocks, str(layer), part)))
        x, logits = value_and_logits(plain, path, side)
        assert_close(read, x, TOLERANCE[dtype])
        assert_close(clean.x, x, TOLERANCE[dtype])
        assert_close(all_logits(model, h), logits, TOLERANCE[dtype])
        other = (x.float() * 0.5 + 0.1).to(x.dtype)
        if hook == "hook_resid_mid":  # replaced in the stream: attention adds what is missing to it
            attention, side = places["hook_attn_out"]
            whole = value_and_logits(plain, f"{blocks}.{layer}.{attention}", side, lambda value, other=other: other - stream)[1]  # type: ignore[misc]
        else:
            whole = value_and_logits(plain, path, side, lambda value, other=other: other)[1]  # type: ignore[misc]
        assert_close(all_logits(model, model.run_from(clean, other)), whole, TOLERANCE[dtype])
        assert_close(
            all_logits(model.at([clean.place]), model.at([clean.place]).run_changed(TOKENS, lambda x: x * 0.5 + 0.1)),
            whole,
            TOLERANCE[dtype],
        )
        assert (whole - logits).abs().max() > 0.01 * logits.abs().max()


@pytest.mark.parametrize("side", ["input", "output"])
def test_a_path_of_a_module_is_a_hook_point(side: str) -> None:
    named = {"input": "blocks.2.hook_resid_pre", "output": "blocks.2.hook_resid_post"}[side]
    by_name, by_path = hooked_model(DEMO_MODEL, named), hooked_model(DEMO_MODEL, f"transformer.h.2@{side}")
    assert by_name.places == by_path.places
    assert torch.equal(by_name.read(TOKENS)[0], by_path.read(TOKENS)[0])
    assert hooked_model(DEMO_MODEL, "transformer.h.2.mlp").places == hooked_model(DEMO_MODEL, "transformer.h.2.mlp@output").places


def test_parallel_attention_has_no_stream_between(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"but got 'blocks\.1\.hook_resid_mid'\. Did you mean 'blocks\.1\.hook_resid_p"):
        model_spec(random_model(tmp_path, "gpt_neox")).place("blocks.1.hook_resid_mid")


def test_a_block_that_scales_what_it_adds_is_refused_at_the_stream_within(tmp_path: Path) -> None:
    name = random_model(tmp_path, "llama")
    spec, model = model_spec(name), load_model(ModelConfig(name=name, hook_point="blocks.1.hook_resid_mid"))
    model.model.layers[1].register_forward_hook(lambda module, inputs, output: output * 2)
    with pytest.raises(
        ConfigError, match=r"'model\.layers\.1\.post_attention_layernorm@input' as the residual stream within 'model\.layers\.1'"
    ):
        HookedModel(model, spec.layout, spec.place("blocks.1.hook_resid_mid"))


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_a_mixture_of_experts_is_read_and_resumed(family: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    name = random_model(tmp_path, family)
    model = hooked_model(name, "blocks.1.hook_mlp_out", "blocks.1.hook_resid_post")
    plain = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32).eval()
    cleans, _ = model.run(TOKENS)
    for clean, path in zip(cleans, ("model.layers.1.mlp", "model.layers.1"), strict=True):
        x, _ = value_and_logits(plain, path, "output")
        _, whole = value_and_logits(plain, path, "output", lambda value: value * 0.5)
        assert_close(clean.x, x, 1e-5)
        assert_close(all_logits(model, model.run_from(clean, clean.x * 0.5)), whole, 1e-5)


def test_a_model_that_transformer_lens_does_not_know_is_read_and_resumed_by_paths(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, HeliumConfig, HeliumForCausalLM

    size = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64}
    HeliumForCausalLM(HeliumConfig(**size, vocab_size=4096, head_dim=8, pad_token_id=0)).save_pretrained(tmp_path)
    spec = model_spec(str(tmp_path))
    assert (spec.hook_points, spec.d_in("model.layers.1.mlp")) == ((), 32)
    model = hooked_model(str(tmp_path), "model.layers.1.mlp")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    x, _ = value_and_logits(plain, "model.layers.1.mlp", "output")
    _, whole = value_and_logits(plain, "model.layers.1.mlp", "output", lambda value: value * 0.5)
    (clean,), _ = model.run(TOKENS)
    assert_close(clean.x, x, 1e-5)
    assert_close(all_logits(model, model.run_from(clean, clean.x * 0.5)), whole, 1e-5)
    assert modules_run(model, lambda: model.run_from(clean, clean.x)) == {1, 2}
    assert model.direct_path(TOKENS) is None
    with pytest.raises(ConfigError, match=r"but got 'blocks\.1\.hook_resid_post'"):
        spec.place("blocks.1.hook_resid_post")


def modules_run(model: HookedModel, run: Any) -> set[int]:
    """Blocks whose MLP runs."""
    ran: set[int] = set()
    blocks = model._model.get_submodule(model._layout.blocks)
    handles = [block.mlp.register_forward_hook(lambda *_, index=index: ran.add(index)) for index, block in enumerate(blocks)]
    run()
    for handle in handles:
        handle.remove()
    return ran


def test_only_the_blocks_that_are_needed_run() -> None:
    model = hooked_model(DEMO_MODEL, "blocks.2.hook_resid_post")
    (clean,), _ = model.run(TOKENS)
    model.run_from(clean, clean.x)  # the first call runs more, to compare
    assert modules_run(model, lambda: model.run_from(clean, clean.x)) == {3}
    assert modules_run(model, lambda: model.read(TOKENS)) == {0, 1, 2}


def test_attention_is_fused() -> None:
    assert hooked_model(DEMO_MODEL, "blocks.1.attn.hook_z")._model.config._attn_implementation == "sdpa"


def test_capped_attention_is_not_fused(tmp_path: Path) -> None:
    model = hooked_model(random_model(tmp_path, "gemma2"), "blocks.1.hook_mlp_out")
    assert model._model.config._attn_implementation == "eager"


def test_where_resuming_makes_a_difference_it_is_not_done(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(engine, "RESUME_TOLERANCE", -1.0)
    model = hooked_model(DEMO_MODEL, "blocks.2.hook_mlp_out")
    (clean,), h = model.run(TOKENS)
    assert torch.equal(model.run_from(clean, clean.x), h)
    assert "resuming at transformer.h.2.mlp@output differs from running the full model" in caplog.text
    assert modules_run(model, lambda: model.run_from(clean, clean.x)) == {0, 1, 2, 3}
    assert model.unembedding is None


def test_half_precision_takes_float32_rows_and_leaves_logits_to_the_model() -> None:
    model = hooked_model(DEMO_MODEL, "blocks.2.hook_resid_post", dtype="bfloat16")
    (clean,), h = model.run(TOKENS)
    assert clean.x.dtype == torch.bfloat16
    assert torch.equal(model.run_from(clean, clean.x.float()), h)
    assert model.unembedding is None


def test_model_is_whole_again_after_an_error() -> None:
    model = hooked_model(DEMO_MODEL, "blocks.2.hook_resid_post")
    (clean,), h = model.run(TOKENS)
    with pytest.raises(RuntimeError):
        model.run_from(clean, clean.x[..., :7])
    assert torch.equal(model.run(TOKENS)[1], h)


@pytest.mark.parametrize("family", ["demo", "gemma2", "qwen3_moe"])
def test_logits_are_those_of_the_model_however_many_at_a_time(family: str, tmp_path: Path) -> None:
    name = DEMO_MODEL if family == "demo" else random_model(tmp_path, family)
    model = hooked_model(name, "blocks.1.hook_resid_post")
    h = model.run(TOKENS)[1].flatten(0, 1)
    with torch.no_grad():
        expected = model._model(TOKENS, use_cache=False).logits.flatten(0, 1)
    assert_close(torch.cat([model.logits(some) for some in h.split(7)]), expected, 1e-5)
    if family == "gemma2":  # capped
        assert model.unembedding is None
    else:
        assert model.unembedding is not None
        assert_close(model.unembedding.logits(h), expected, 1e-5)


def test_a_bias_of_the_unembedding_counts() -> None:
    model = hooked_model(DEMO_MODEL, "blocks.2.hook_resid_post")
    model._model.lm_head.bias = torch.nn.Parameter(torch.randn(4096, generator=torch.Generator().manual_seed(0)))
    assert model.unembedding is not None and model.unembedding.bias is not None


def assert_like(spread_model: HookedModel, whole: HookedModel, tokens: torch.Tensor) -> None:
    """Everything comes back to where the tokens are, and is the same."""
    (clean,), h = spread_model.run(tokens)
    (expected,), expected_h = whole.run(TOKENS)
    pairs = [(spread_model.read(tokens)[0], whole.read(TOKENS)[0]), (clean.x, expected.x), (h, expected_h)]
    pairs += [(spread_model.run_from(clean, clean.x * 0.5), whole.run_from(expected, expected.x * 0.5))]
    pairs += [(spread_model.logits(h.flatten(0, 1)), whole.logits(expected_h.flatten(0, 1)))]
    for found, wanted in pairs:
        assert found.device == tokens.device
        assert_close(found.cpu(), wanted, 1e-5)


@pytest.mark.parametrize(
    "hook_point",
    ["blocks.0.hook_resid_post", "blocks.1.hook_mlp_out", "blocks.1.attn.hook_z", "blocks.2.hook_resid_pre", "blocks.2.hook_resid_mid"],
)
def test_a_model_in_several_places_is_read_and_resumed_as_one(hook_point: str, tmp_path: Any) -> None:
    from transformers import AutoModelForCausalLM

    name = random_model(tmp_path / "model", "llama")
    places = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.norm": "cpu", "lm_head": "cpu", "model.layers.0": "cpu"}
    places |= {"model.layers.1": "disk", "model.layers.2": "disk"}
    model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32, device_map=places, offload_folder=str(tmp_path / "offloaded"))
    assert any(weight.is_meta for weight in model.parameters())
    whole = hooked_model(name, hook_point)
    assert_like(HookedModel(model.eval(), whole._layout, *whole.places), whole, TOKENS)


@pytest.mark.gpu
@pytest.mark.parametrize("hook_point", ["blocks.0.hook_resid_post", "blocks.2.hook_mlp_out"])
def test_a_model_on_two_gpus_is_read_and_resumed_as_one(hook_point: str, tmp_path: Any) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    name = random_model(tmp_path / "model", "llama")
    config = ModelConfig.model_validate({"name": name, "hook_point": hook_point})
    model = load_model(config, device="cuda:0", n_gpus=2)
    assert {weight.device.index for weight in model.parameters()} == {0, 1}
    whole = hooked_model(name, hook_point)
    assert_like(HookedModel(model, whole._layout, *whole.places), whole, TOKENS.to("cuda:0"))
