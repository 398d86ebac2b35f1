import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_model import DEMO_MODEL, hooked_model, random_model

from sae_core.activations.files import hash_files
from sae_core.activations.language_model import model_spec as module
from sae_core.activations.language_model.loading import content_hash
from sae_core.activations.language_model.model_spec import ModelSpec, model_spec
from sae_core.errors import ConfigError, UnknownNameError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def demo() -> ModelSpec:
    return model_spec(DEMO_MODEL)


def test_outline_knows_the_shapes_without_the_weights(demo: ModelSpec) -> None:
    assert (demo.n_ctx, demo.d_vocab) == (128, 4096)
    assert demo.d_in("blocks.2.hook_resid_post") == 128
    assert demo.d_in("blocks.2.mlp.hook_post") == 512
    assert demo.d_in("blocks.0.attn.hook_z") == 4 * 32  # heads are concatenated
    assert demo.d_in("hook_embed") == 128


@pytest.mark.parametrize(
    ("hook_point", "message"),
    [
        ("transformer@output", "a forward pass reaches it 0 times, not once.*Choose 'blocks.0.hook_resid_post'"),
        ("transformer.wpe", r"shape \[1, 11, 128\] for 2 windows of 11 tokens"),
        ("embed.hook_in", "int64, not floating-point.*Choose 'blocks.[02].hook_resid_post'"),
        ("unembed.hook_in", "in the unembedding.*Choose 'blocks.[02].hook_resid_post'"),
        ("hook_unembed", "in the unembedding.*Choose 'blocks.[02].hook_resid_post'"),
    ],
)
def test_unusable_hook_points(demo: ModelSpec, hook_point: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"but got '{hook_point}': .*{message}"):
        demo.d_in(hook_point)


@pytest.mark.parametrize(
    ("hook_point", "nearest"),
    [
        ("blocks.2.attn.hook_pattern", r"blocks\.2\.attn\.\w+"),
        ("blocks.2.attn.hook_q", r"blocks\.2\.attn\.\w+"),  # GPT-2 computes queries, keys and values at once
        ("blocks.2.ln1.hook_scale", r"blocks\.2\.ln1\.hook_\w+"),
    ],
)
def test_what_is_no_side_of_a_module_is_refused_with_the_nearest_that_is(demo: ModelSpec, hook_point: str, nearest: str) -> None:
    with pytest.raises(ConfigError, match=f"the output of a module, but got '{hook_point}', which lies within one. Choose '{nearest}' or"):
        demo.d_in(hook_point)


@pytest.mark.parametrize("hook_point", ["transformer.h.2.mpl", "transformer.h.2.mlp@inptu", "transformer.h.2.mlp@", "", "@input", "."])
def test_a_path_that_the_model_does_not_have(demo: ModelSpec, hook_point: str) -> None:
    with pytest.raises(UnknownNameError, match=f"but got '{hook_point}'\\."):
        demo.place(hook_point)


def test_places_say_what_lies_below_and_what_is_added(demo: ModelSpec) -> None:
    places = {
        name: demo.place(f"blocks.2.{name}")
        for name in ("hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_mlp_out", "ln2.hook_in")
    }
    assert [place.n_before for place in places.values()] == [2, 2, 3, 2, 2]
    assert [place.is_stream for place in places.values()] == [True, False, True, False, False]
    assert [place.adds_to_stream for place in places.values()] == [False, False, False, True, False]
    assert places["hook_resid_mid"].adds == ("transformer.h.2", "transformer.h.2.mlp")
    assert places["ln2.hook_in"].adds is None  # what the norm reads, and not the stream
    assert demo.place("hook_embed").layer is None


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("blocks.*.hook_resid_post", [f"blocks.{layer}.hook_resid_post" for layer in range(4)]),
        ("transformer.h.*.mlp", [f"transformer.h.{layer}.mlp" for layer in range(4)]),
        ("transformer.h.[13]@input", ["transformer.h.1@input", "transformer.h.3@input"]),
        ("blocks.*", []),
        ("model.layers.*.mlp", []),
    ],
)
def test_a_pattern_stands_for_hook_points_in_the_order_of_the_model(demo: ModelSpec, pattern: str, expected: list[str]) -> None:
    assert demo.matching(pattern) == expected


@pytest.mark.parametrize("hook_point", ["rotary_emb.hook_in", "rotary_emb.hook_out", "hook_pos_embed"])
def test_what_rotary_models_have_and_no_sae_can_be_put_at(tmp_path: Path, hook_point: str) -> None:
    found = model_spec(random_model(tmp_path, "gpt_neox"))
    with pytest.raises(
        ConfigError, match=f"but got '{hook_point}': (other values put in there change no logit|its values have shape|a forward)"
    ):
        found.d_in(hook_point)


def test_unknown_hook_point_names_the_nearest(demo: ModelSpec) -> None:
    with pytest.raises(UnknownNameError, match=r"but got 'blocks\.2\.hook_residpost'\. Did you mean 'blocks\.2\.hook_resid_post'"):
        demo.d_in("blocks.2.hook_residpost")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/no/such/directory", "existing directory.*but got '/no/such/directory'"),
        ("./missing", r"but got '\./missing'"),
        ("nobody/nothing", "reachable Hugging Face Hub name, but got 'nobody/nothing'.*network"),
        ("~nosuchuser/model", "existing directory.*but got '~nosuchuser/model'"),
        ("a\0b", r"but got 'a\\x00b'"),
        ("x" * 5000, "but got 'xxx"),
        ("\ud800", r"but got '\\ud800'"),
    ],
)
def test_missing_models(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        model_spec(name)
    with pytest.raises(ConfigError, match=message):
        content_hash(name)


def test_directory_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"readable causal language model, but got '{tmp_path}': .*config.json"):
        model_spec(str(tmp_path))


def test_an_architecture_that_nobody_knows(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "no_such", "architectures": ["NoSuchForCausalLM"]}')
    with pytest.raises(ConfigError, match=f"readable causal language model, but got '{tmp_path}': .*no_such"):
        model_spec(str(tmp_path))


def test_a_model_that_is_none_of_language(tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTForImageClassification

    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "image_size": 32}
    ViTForImageClassification(ViTConfig(**size, patch_size=8)).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=f"readable causal language model, but got '{tmp_path}': .*ViTConfig"):
        model_spec(str(tmp_path))


def test_a_mixture_of_experts_is_built_without_weights(tmp_path: Path) -> None:
    found = model_spec(random_model(tmp_path, "mixtral"))
    assert not isinstance(found.tracing(), nullcontext)
    assert (found.d_vocab, found.n_ctx, found.d_in("blocks.1.hook_mlp_out")) == (4096, 64, 32)


def test_a_model_that_cannot_be_built_without_values_is_built_of_random_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    build, calls = module.loading.build, []

    def refuse_once(name: str) -> Any:
        calls.append(name)
        if len(calls) == 1:
            raise ConfigError("no values") from RuntimeError("it looks at them")
        return build(name)

    monkeypatch.setattr(module.loading, "build", refuse_once)
    found = model_spec(DEMO_MODEL)
    assert isinstance(found.tracing(), nullcontext)
    assert found.d_in("blocks.1.hook_resid_post") == 128


def test_what_is_missing_is_looked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def refuse(name: str, **options: Any) -> None:
        calls.append(name)
        raise ConfigError("not there") from OSError("no network")

    monkeypatch.setattr(module.loading, "build", refuse)
    with pytest.raises(ConfigError, match="not there"):
        model_spec("owner/name")
    assert calls == ["owner/name"]


def test_hash_follows_the_weights_and_not_the_place(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(DEMO_MODEL, copy)
    assert content_hash(str(copy)) == content_hash(DEMO_MODEL)
    for name in ("notes.md", ".DS_Store", "._model.safetensors", "training_args.bin", "pytorch_model.bin"):
        (copy / name).write_text("read by nobody")
    assert content_hash(str(copy)) == content_hash(DEMO_MODEL)
    files = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    # As it was when caches of activations were made that are still there.
    assert content_hash(DEMO_MODEL) == hash_files([Path(DEMO_MODEL) / name for name in files], Path(DEMO_MODEL))
    (copy / "tokenizer_config.json").write_text("{}")
    assert content_hash(str(copy)) != content_hash(DEMO_MODEL)


def test_model_gives_the_activations_of_hugging_face() -> None:
    from transformers import AutoModelForCausalLM

    tokens = torch.arange(20).view(2, 10) + 5
    model = hooked_model(DEMO_MODEL, "blocks.2.hook_resid_post")
    reference = AutoModelForCausalLM.from_pretrained(DEMO_MODEL, dtype=torch.float32, attn_implementation="eager").eval()
    seen = []
    reference.transformer.h[2].register_forward_hook(lambda block, inputs, output: seen.append(output))
    with torch.no_grad():
        logits = reference(tokens).logits
    (clean,), h = model.run(tokens)
    # not bit for bit: the fused GELU and the fused attention round otherwise
    assert torch.allclose(clean.x, seen[0], atol=1e-4)
    assert torch.allclose(model.logits(h.flatten(0, 1)), logits.flatten(0, 1), atol=1e-4)


def test_precision_is_the_one_asked_for() -> None:
    assert hooked_model(DEMO_MODEL, "hook_embed", dtype="bfloat16").read(torch.zeros(1, 3, dtype=torch.long))[0].dtype == torch.bfloat16
