from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_model import DEMO_MODEL, hooked_model, random_model
from torch.nn.functional import cross_entropy, kl_div

from sae_core.activations.language_model import splice
from sae_core.activations.language_model.engine import HookedModel
from sae_core.activations.language_model.splice import CleanText, SplicedText
from sae_core.activations.source import NextToken

pytestmark = pytest.mark.slow

HOOK_POINT = "blocks.2.hook_resid_post"


@pytest.fixture(scope="module")
def model() -> HookedModel:
    return hooked_model(DEMO_MODEL, HOOK_POINT)


@pytest.fixture
def tokens() -> torch.Tensor:
    """Windows that start with BOS (0); one has another in the middle, one at its end."""
    tokens = torch.randint(1, 4096, (5, 16), generator=torch.Generator().manual_seed(0))
    tokens[:, 0] = 0
    tokens[1, 7] = tokens[2, 15] = 0
    return tokens


@pytest.fixture
def text(model: HookedModel, tokens: torch.Tensor) -> SplicedText:
    return CleanText(model, tokens, tokens != 0).at()


def only(scores: list[NextToken]) -> NextToken:
    (one,) = scores
    return one


def reference(model: HookedModel, tokens: torch.Tensor, replace: Callable[..., torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy and KL by a plain run of the whole model, as SAELens defines them."""
    with torch.no_grad():
        clean = model._model(tokens).logits.log_softmax(-1)
        handle = model._model.transformer.h[2].register_forward_hook(lambda block, inputs, output: replace(output, None))
        logits = model._model(tokens).logits
        handle.remove()
    keep = tokens != 0
    ce = cross_entropy(logits[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none")[keep[:, :-1]]
    kl = kl_div(logits.log_softmax(-1), clean, log_target=True, reduction="none").sum(-1)[keep]
    return ce, kl


def noisy(text: SplicedText) -> torch.Tensor:
    return text.x + 0.3 * torch.randn(text.x.shape, generator=torch.Generator().manual_seed(1))


def spliced_and_plain(model: HookedModel, text: SplicedText, tokens: torch.Tensor) -> tuple[NextToken, NextToken]:
    """The scores of a noisy x_hat, and those of a plain run of the whole model."""
    x_hat = noisy(text)

    def replace(x: torch.Tensor, hook: object) -> torch.Tensor:
        return x.masked_scatter((tokens != 0)[..., None], x_hat)

    return only(text.splice([x_hat])), NextToken(*reference(model, tokens, replace))


def test_splice_equals_a_plain_run(model: HookedModel, text: SplicedText, tokens: torch.Tensor) -> None:
    scored, plain = spliced_and_plain(model, text, tokens)
    assert torch.allclose(scored.ce, plain.ce, atol=1e-4)
    assert torch.allclose(scored.kl, plain.kl, atol=1e-4)
    assert float(plain.kl.mean()) > 0.01


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("far_off", ["mean", "zeros", "ten times x", "noise of norm 1e3"])
def test_what_is_far_off_is_scored_exactly(model: HookedModel, tokens: torch.Tensor, far_off: str) -> None:
    text = CleanText(model, tokens, tokens != 0).at()
    noise = torch.randn(text.x.shape, generator=torch.Generator().manual_seed(2))
    x_hat = {
        "mean": text.x.mean(dim=0).expand_as(text.x).contiguous(),
        "zeros": torch.zeros_like(text.x),
        "ten times x": 10 * text.x,
        "noise of norm 1e3": 1e3 * noise / noise.norm(dim=1, keepdim=True),
    }[far_off]
    ce, kl = reference(model, tokens, lambda x, hook: x.masked_scatter((tokens != 0)[..., None], x_hat))
    scored = only(text.splice([x_hat]))
    assert float(scored.ce.double().mean()) == pytest.approx(float(ce.double().mean()), abs=1e-5)
    assert float(scored.kl.double().mean()) == pytest.approx(float(kl.double().mean()), abs=1e-5)
    assert float(kl.mean()) > 0.5


def test_the_mean_as_reconstruction_is_mean_ablation(text: SplicedText) -> None:
    mean = text.x.mean(dim=0)
    spliced, ablated = only(text.splice([mean.expand_as(text.x).contiguous()])), text.mean_ablated(mean)
    assert torch.equal(spliced.ce, ablated.ce) and torch.equal(spliced.kl, ablated.kl)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_gives_none(model: HookedModel, tokens: torch.Tensor, value: float) -> None:
    text = CleanText(model, tokens, tokens != 0).at()
    x_hat = text.x.clone()
    x_hat[:] = value
    scored = only(text.splice([x_hat]))
    assert scored.ce.isnan().all() and scored.kl.isnan().all()


def test_several_are_scored_as_each_alone(text: SplicedText) -> None:
    x_hats = [text.x * factor for factor in (0.5, 0.9, 1.1)]
    for together, x_hat in zip(text.splice(x_hats), x_hats, strict=True):
        alone = only(text.splice([x_hat]))
        assert torch.equal(together.ce, alone.ce) and torch.equal(together.kl, alone.kl)


def test_ablations_equal_plain_runs(model: HookedModel, text: SplicedText, tokens: torch.Tensor) -> None:
    zero_ce, zero_kl = reference(model, tokens, lambda x, hook: torch.zeros_like(x))  # BOS too
    assert torch.allclose(text.zero_ablated().ce, zero_ce, atol=1e-4)
    assert torch.allclose(text.zero_ablated().kl, zero_kl, atol=1e-4)
    mean = text.x.mean(dim=0)
    mean_ce, _ = reference(model, tokens, lambda x, hook: torch.where((tokens != 0)[..., None], mean, x))
    assert torch.allclose(text.mean_ablated(mean).ce, mean_ce, atol=1e-4)


@pytest.mark.parametrize("with_bias", [False, True])
def test_without_an_unembedding_of_its_own_the_model_computes_logits(with_bias: bool, tokens: torch.Tensor) -> None:
    model = hooked_model(DEMO_MODEL, HOOK_POINT)
    if with_bias:
        model._model.lm_head.bias = torch.nn.Parameter(torch.randn(4096, generator=torch.Generator().manual_seed(0)))
    fast = CleanText(model, tokens, tokens != 0).at()
    assert model.unembedding is not None and (model.unembedding.bias is not None) == with_bias
    model.unembedding = None  # as for a model with capped logits, or in half precision
    plain = CleanText(model, tokens, tokens != 0).at()
    other = fast.x * 0.7 + 0.1
    assert torch.allclose(plain.clean.ce, fast.clean.ce, atol=1e-5)
    assert torch.allclose(only(plain.splice([other])).ce, only(fast.splice([other])).ce, atol=1e-5)
    assert torch.allclose(only(plain.splice([other])).kl, only(fast.splice([other])).kl, atol=1e-5)


def test_counts(text: SplicedText) -> None:
    # 5 x 16 positions, less 5 first BOS and 2 others; of the kept ones, 4 are last in their window (the fifth is a BOS)
    assert text.x.shape == (73, 128)
    assert text.clean.kl.shape == (73,)
    assert text.clean.ce.shape == (69,)


def test_putting_x_back_changes_nothing(text: SplicedText) -> None:
    same = only(text.splice([text.x]))
    assert torch.allclose(same.ce, text.clean.ce, atol=1e-5)
    assert torch.allclose(same.kl, torch.zeros(73), atol=1e-5)


def test_parts_change_nothing(model: HookedModel, text: SplicedText, tokens: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(splice.RUN_TOKENS, "cpu", 1)  # one window at a time
    monkeypatch.setattr(splice, "PART_POSITIONS", 7)
    monkeypatch.setitem(splice.PART_LOGITS, "cpu", 1)
    in_parts = CleanText(model, tokens, tokens != 0).at()
    assert in_parts._text.positions == 7
    assert len(in_parts._text.parts) == 5
    assert len(text._text.parts) == 1
    assert torch.allclose(in_parts.x, text.x, atol=1e-5)
    x_hats = [text.x * 0.9, text.x * 1.1]
    for scored, whole in zip(in_parts.splice(x_hats), text.splice(x_hats), strict=True):
        assert torch.allclose(scored.ce, whole.ce, atol=1e-4)
        assert torch.allclose(scored.kl, whole.kl, atol=1e-4)


def test_one_clean_pass_serves_several_hook_points(tokens: torch.Tensor) -> None:
    hook_points = ["blocks.0.hook_mlp_out", HOOK_POINT, "blocks.1.attn.hook_z"]
    together = CleanText(hooked_model(DEMO_MODEL, *hook_points), tokens, tokens != 0)
    for number, hook_point in enumerate(hook_points):
        one, alone = together.at(number), CleanText(hooked_model(DEMO_MODEL, hook_point), tokens, tokens != 0).at()
        assert torch.equal(one.x, alone.x)
        assert torch.equal(one.clean.ce, alone.clean.ce)
        mine, theirs = only(one.splice([one.x * 0.9])), only(alone.splice([alone.x * 0.9]))
        assert torch.equal(mine.ce, theirs.ce) and torch.equal(mine.kl, theirs.kl)
        assert torch.equal(one.zero_ablated().ce, alone.zero_ablated().ce)


@pytest.mark.parametrize(("name", "dtype"), [("demo", "float32"), ("demo", "bfloat16"), ("gemma2", "float32")])
def test_a_large_vocabulary_takes_memory_for_a_few_positions(
    name: str, dtype: str, tokens: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(splice, "PART_POSITIONS", 8)
    monkeypatch.setitem(splice.PART_LOGITS, "cpu", 1)
    model = hooked_model(DEMO_MODEL if name == "demo" else random_model(tmp_path, name), "blocks.1.hook_resid_post", dtype=dtype)
    at_once: list[int] = []
    text = CleanText(model, tokens, tokens != 0)
    model._model.get_output_embeddings().register_forward_hook(lambda module, inputs, output: at_once.append(output.numel() // 4096))
    logits = text.logits
    monkeypatch.setattr(text, "logits", lambda h: (at_once.append(len(h)), logits(h))[1])
    text.at().splice([text.at().x * 0.9, text.at().x * 1.1])
    text.at().zero_ablated()
    assert max(at_once) == 8
