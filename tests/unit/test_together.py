"""Several hook points of a language model at once, for crosscoders: what is read and spliced is what the plain model computes there."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_model import DEMO_MODEL, hooked_model, language_model_config, random_model
from torch import Tensor
from torch.testing import assert_close

from analysis.features.run import LearnedRun
from sae_core.activations.language_model.hook_points import expanded_hook_points
from sae_core.activations.language_model.loading import ModelConfig
from sae_core.activations.language_model.source import LanguageModelSource
from sae_core.activations.language_model.splice import CleanText
from sae_core.activations.language_model.token_file import TokenFile
from sae_core.config.run import ARCHITECTURES
from sae_core.errors import ConfigError

pytestmark = pytest.mark.slow

SETS = {
    "outputs of MLPs": ["blocks.0.hook_mlp_out", "blocks.2.hook_mlp_out"],
    "the residual stream": ["blocks.0.hook_resid_post", "blocks.1.hook_resid_pre", "blocks.2.hook_resid_pre"],
    "one block": ["blocks.1.hook_resid_post", "blocks.1.hook_resid_mid", "blocks.1.hook_mlp_out", "blocks.1.hook_attn_out"],
    "another order": ["blocks.2.hook_attn_out", "blocks.1.hook_resid_pre", "blocks.1.hook_mlp_out"],
}
TOKENS = torch.randint(1, 4096, (3, 12), generator=torch.Generator().manual_seed(0)).index_fill_(1, torch.tensor([0]), 0)
KEEP = TOKENS != 0


@pytest.fixture(scope="module")
def plain() -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(DEMO_MODEL, dtype=torch.float32).eval()


def put(value: Tensor, x_hat: Tensor) -> Tensor:
    """The value with x_hat at the positions kept."""
    changed = value.clone()
    changed[KEEP] = x_hat
    return changed


@torch.no_grad()
def by_hand(plain: Any, changes: dict[str, Tensor]) -> Tensor:
    """Logits of a model whose blocks are written out, with x_hats put in where each is computed.

    GPT-2's blocks compute mid = pre + attn(ln_1(pre)), post = mid + mlp(ln_2(mid)).
    """
    handles: list[Any] = []
    for layer in range(4):
        block, own = (
            plain.transformer.h[layer],
            {name.split(".")[-1]: x for name, x in changes.items() if name.startswith(f"blocks.{layer}.")},
        )

        def whole(hidden: Tensor, *args: Any, block: Any = block, own: dict[str, Tensor] = own, **kwargs: Any) -> Tensor:
            pre = put(hidden, own["hook_resid_pre"]) if "hook_resid_pre" in own else hidden
            attention = block.attn(block.ln_1(pre))[0]
            mid = pre + (put(attention, own["hook_attn_out"]) if "hook_attn_out" in own else attention)
            mid = put(mid, own["hook_resid_mid"]) if "hook_resid_mid" in own else mid
            mlp = block.mlp(block.ln_2(mid))
            post = mid + (put(mlp, own["hook_mlp_out"]) if "hook_mlp_out" in own else mlp)
            return put(post, own["hook_resid_post"]) if "hook_resid_post" in own else post

        handles.append((block, block.forward))
        block.forward = whole
    try:
        return plain(TOKENS, use_cache=False).logits
    finally:
        for block, forward in handles:
            block.forward = forward


@pytest.mark.parametrize("names", SETS.values(), ids=SETS)
def test_all_are_replaced_at_once(plain: Any, names: list[str]) -> None:
    model = hooked_model(DEMO_MODEL, *names)
    text = CleanText(model, TOKENS, KEEP).at(*range(len(names)))
    assert text.x.shape == (int(KEEP.sum()), 128 * len(names))
    alone = [CleanText(hooked_model(DEMO_MODEL, name), TOKENS, KEEP).at().x for name in names]
    assert torch.equal(text.x, torch.cat(alone, dim=1))
    x_hat = text.x * 0.7 + 0.2
    (scores,) = text.splice([x_hat])
    logits = by_hand(plain, dict(zip(names, x_hat.split(128, dim=1), strict=True))).log_softmax(-1)
    losses = -logits[:, :-1].gather(-1, TOKENS[:, 1:, None]).squeeze(-1)[KEEP[:, :-1]]
    assert_close(scores.ce, losses, rtol=1e-4, atol=1e-4)
    (back,) = text.splice([text.x])
    assert_close(back.ce, text.clean.ce, rtol=1e-4, atol=1e-4)


def test_of_a_stack_of_residual_streams_the_last_decides() -> None:
    names = [f"blocks.{layer}.hook_resid_post" for layer in range(3)]
    together = CleanText(hooked_model(DEMO_MODEL, *names), TOKENS, KEEP).at(0, 1, 2)
    last = CleanText(hooked_model(DEMO_MODEL, names[-1]), TOKENS, KEEP).at()
    x_hat = together.x * 0.7
    assert_close(together.splice([x_hat])[0].ce, last.splice([x_hat[:, 256:].contiguous()])[0].ce, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module", params=["demo", "llama"])
def together(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[LanguageModelSource, Path]:
    directory = tmp_path_factory.mktemp(request.param)
    name = DEMO_MODEL if request.param == "demo" else random_model(directory / "model", request.param)
    hook_point = "blocks.2.hook_mlp_out + blocks.0.hook_mlp_out + blocks.1.mlp.hook_in"
    source = LanguageModelSource(language_model_config(directory, name=name, context_size=32, hook_point=hook_point))
    source.check()
    source.prepare(directory)
    return source, directory


def test_shards_and_chunks_are_those_of_each_hook_point_side_by_side(together: tuple[LanguageModelSource, Path]) -> None:
    source, directory = together
    width = source.d_in // 3
    assert source.parts == dict.fromkeys(source.config.model.read_at, width) and source.d_out is None
    model = source.config.model
    configs = [source.config.model_copy(update={"model": model.model_copy(update={"hook_point": name})}) for name in source.parts]
    ones = [LanguageModelSource(config) for config in configs]
    everything = source.shards(directory, 0, [source, *ones])
    assert torch.equal(everything[0], torch.cat(everything[1:], dim=1))
    assert torch.equal(source.shard(directory, 0), everything[0])
    mean = torch.linspace(-1, 1, source.d_in)
    chunk = source.eval_chunk(directory, 0, mean)
    assert chunk.parts == source.parts and chunk.target is None
    assert torch.equal(chunk.x, source.heldout(directory, 0).x)
    assert chunk.splice is not None and chunk.mean_ablated is not None and chunk.zero_ablated is not None and chunk.clean is not None
    assert_close(chunk.splice([mean.expand_as(chunk.x)])[0].ce, chunk.mean_ablated.ce)
    assert float((chunk.zero_ablated.ce - chunk.clean.ce).abs().max()) > 0.1 or source.config.model.name != DEMO_MODEL


def test_tokens_of_large_norm_at_any_hook_point_are_left_out(tmp_path: Path) -> None:
    names = ["blocks.0.hook_mlp_out", "blocks.3.hook_mlp_out"]
    sources = [
        LanguageModelSource(language_model_config(tmp_path, hook_point=name, exclude_high_norm=1.5)) for name in (*names, " + ".join(names))
    ]
    sources[0].prepare(tmp_path)
    first, last, both = (source.heldout(tmp_path, 0).keep for source in sources)
    assert first is not None and last is not None and both is not None
    assert torch.equal(both, first & last) and not torch.equal(first, last)
    chunk = sources[2].eval_chunk(tmp_path, 0, torch.zeros(256))
    assert len(chunk.x) == int(both.sum())
    n_tokens = int(TokenFile(tmp_path).windows("train", 0, 100)[1].sum())
    assert 0 < len(sources[2].shard(tmp_path, 0)) < n_tokens


def test_what_a_crosscoder_cannot_be(tmp_path: Path) -> None:
    def source(hook_point: str) -> LanguageModelSource:
        return LanguageModelSource(language_model_config(tmp_path, hook_point=hook_point))

    with pytest.raises(ConfigError, match=r"'transformer\.h\.0', which is where 'blocks\.0\.hook_resid_post' is"):
        source("blocks.0.hook_resid_post + transformer.h.0").check()
    with pytest.raises(ConfigError, match=r"blocks\.9\.hook_resid_post"):
        source("blocks.0.hook_resid_post + blocks.9.hook_resid_post").check()
    for wrong in ("a + a", "a + ", " + a"):
        with pytest.raises(ValueError, match="must name each hook point of a crosscoder once"):
            ModelConfig(name="m", hook_point=wrong)
    with pytest.raises(ValueError, match="`hook_out` must be left out of crosscoders"):
        ModelConfig(name="m", hook_point="a + b", hook_out="c")


def test_a_definition_lists_them_or_gives_a_pattern() -> None:
    def expanded(*values: object) -> list[object]:
        return expanded_hook_points({("model", "name"): [DEMO_MODEL], ("model", "hook_point"): values})["model", "hook_point"]

    mlps = " + ".join(f"blocks.{layer}.hook_mlp_out" for layer in range(4))
    assert expanded({"together": "blocks.*.hook_mlp_out"}) == [mlps]
    assert expanded({"together": ["blocks.3.hook_mlp_out", "blocks.[12].hook_mlp_out"]}, "blocks.0.*_pre") == [
        "blocks.3.hook_mlp_out + blocks.1.hook_mlp_out + blocks.2.hook_mlp_out",
        "blocks.0.hook_resid_pre",
    ]
    for wrong in ({"together": []}, {"together": 3}, {"together": ["a", "a"]}, {"togehter": ["a"]}, {"together": ["a"], "more": 1}):
        with pytest.raises(ConfigError, match=r"must be a hook point, or `\{together: \[\.\.\.\]\}`"):
            expanded(wrong)
    with pytest.raises(ConfigError, match="which matches none"):
        expanded({"together": ["blocks.*.nothing"]})


def test_latents_are_shown_and_not_changed(together: tuple[LanguageModelSource, Path]) -> None:
    source, directory = together
    kind = ARCHITECTURES["standard"]
    sae = kind(kind.Config(d_sae=8), source.d_in, generator=torch.Generator().manual_seed(0)).eval()
    sae.parts = source.parts
    run = LearnedRun("a", "b", sae, source, directory)
    assert run.has_model and not run.can_intervene
    assert run.activations.d_sae == 8
    with pytest.raises(ConfigError, match=r"need an SAE of one hook point, but got a crosscoder of \['blocks\.2\.hook_mlp_out'"):
        _ = run.model
