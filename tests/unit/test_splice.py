import pytest
import torch
from tiny_model import DEMO_MODEL
from torch.nn.functional import cross_entropy, kl_div

from sae_core.activations import splice
from sae_core.activations.bridge import ModelConfig, load_model
from sae_core.activations.hooked_model import HookedModel
from sae_core.activations.splice import SplicedText

HOOK_POINT = "blocks.2.hook_resid_post"


@pytest.fixture(scope="module")
def model() -> HookedModel:
    return HookedModel(load_model(ModelConfig(name=DEMO_MODEL, hook_point=HOOK_POINT)), HOOK_POINT)


@pytest.fixture
def tokens() -> torch.Tensor:
    """Windows that start with BOS (0); one has another in the middle, one at its end."""
    tokens = torch.randint(1, 4096, (5, 16), generator=torch.Generator().manual_seed(0))
    tokens[:, 0] = 0
    tokens[1, 7] = tokens[2, 15] = 0
    return tokens


@pytest.fixture
def text(model: HookedModel, tokens: torch.Tensor) -> SplicedText:
    return SplicedText(model, tokens, tokens != 0)


def reference(model: HookedModel, tokens: torch.Tensor, replace: object) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy and KL by a plain run of the whole model, as SAELens defines them."""
    with torch.no_grad():
        clean = model._bridge(tokens, return_type="logits").log_softmax(-1)
        logits = model._bridge.run_with_hooks(tokens, fwd_hooks=[(HOOK_POINT, replace)], return_type="logits")
    keep = tokens != 0
    ce = cross_entropy(logits[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none")[keep[:, :-1]]
    kl = kl_div(logits.log_softmax(-1), clean, log_target=True, reduction="none").sum(-1)[keep]
    return ce, kl


def test_splice_equals_a_plain_run(model: HookedModel, text: SplicedText, tokens: torch.Tensor) -> None:
    x_hat = text.x + 0.3 * torch.randn(text.x.shape, generator=torch.Generator().manual_seed(1))
    scored = text.splice(x_hat)

    def replace(x: torch.Tensor, hook: object) -> torch.Tensor:
        return x.masked_scatter((tokens != 0)[..., None], x_hat)

    ce, kl = reference(model, tokens, replace)
    assert torch.allclose(scored.ce, ce, atol=1e-4)
    assert torch.allclose(scored.kl, kl, atol=1e-4)
    assert float(kl.mean()) > 0.01


def test_ablations_equal_plain_runs(model: HookedModel, text: SplicedText, tokens: torch.Tensor) -> None:
    zero_ce, zero_kl = reference(model, tokens, lambda x, hook: torch.zeros_like(x))  # BOS too
    assert torch.allclose(text.zero_ablated().ce, zero_ce, atol=1e-4)
    assert torch.allclose(text.zero_ablated().kl, zero_kl, atol=1e-4)
    mean = text.x.mean(dim=0)
    mean_ce, _ = reference(model, tokens, lambda x, hook: torch.where((tokens != 0)[..., None], mean, x))
    assert torch.allclose(text.mean_ablated(mean).ce, mean_ce, atol=1e-4)


@pytest.mark.parametrize("with_bias", [False, True])
def test_without_an_unembedding_of_its_own_the_model_computes_logits(with_bias: bool, tokens: torch.Tensor) -> None:
    model = HookedModel(load_model(ModelConfig(name=DEMO_MODEL, hook_point=HOOK_POINT)), HOOK_POINT)
    if with_bias:
        model._bridge.unembed.original_component.bias.copy_(torch.randn(4096, generator=torch.Generator().manual_seed(0)))
    fast = SplicedText(model, tokens, tokens != 0)
    assert model._unembedding is not None and (model._unembedding.bias is not None) == with_bias
    model._unembedding = None  # as for a model with capped logits, or in half precision
    plain = SplicedText(model, tokens, tokens != 0)
    other = fast.x * 0.7 + 0.1
    assert torch.allclose(plain.clean.ce, fast.clean.ce, atol=1e-5)
    assert torch.allclose(plain.splice(other).ce, fast.splice(other).ce, atol=1e-5)
    assert torch.allclose(plain.splice(other).kl, fast.splice(other).kl, atol=1e-5)


def test_counts(text: SplicedText) -> None:
    # 5 x 16 positions, less 5 first BOS and 2 others; of the kept ones, 4 are last in their window (the fifth is a BOS)
    assert text.x.shape == (73, 128)
    assert text.clean.kl.shape == (73,)
    assert text.clean.ce.shape == (69,)


def test_putting_x_back_changes_nothing(text: SplicedText) -> None:
    same = text.splice(text.x)
    assert torch.allclose(same.ce, text.clean.ce, atol=1e-5)
    assert torch.allclose(same.kl, torch.zeros(73), atol=1e-5)


def test_parts_change_nothing(model: HookedModel, text: SplicedText, tokens: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(splice.RUN_TOKENS, "cpu", 1)  # one window at a time
    monkeypatch.setattr(splice, "PART_POSITIONS", 7)
    monkeypatch.setitem(splice.PART_LOGITS, "cpu", 1)
    in_parts = SplicedText(model, tokens, tokens != 0)
    assert in_parts._positions == 7
    assert len(in_parts._parts) == 5
    assert len(text._parts) == 1
    assert torch.allclose(in_parts.x, text.x, atol=1e-5)
    assert torch.allclose(in_parts.splice(text.x * 0.9).ce, text.splice(text.x * 0.9).ce, atol=1e-4)
    assert torch.allclose(in_parts.splice(text.x * 0.9).kl, text.splice(text.x * 0.9).kl, atol=1e-4)
