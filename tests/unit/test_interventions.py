"""Steering and ablation equal plain PyTorch hooks on the Hugging Face model."""

import pytest
import torch
from learned_runs import of_language_model
from tiny_model import random_model

from analysis import features
from analysis.features.effects import ablated, steered
from analysis.features.interventions import changed_logits, next_logits
from sae_core.errors import ConfigError
from sae_core.sae.normalization import LAYER_NORM_EPS

pytestmark = pytest.mark.slow  # language models are loaded

TEXT = "def area(width, height):\n    return "


@pytest.fixture(scope="module", params=["gpt2", "gpt_neox", "llama", "gemma2"])
def run(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp(request.param)
    if request.param == "gpt2":
        return of_language_model(directory)
    name = random_model(directory / "model", request.param)
    return of_language_model(directory, name=name, hook_point="blocks.1.hook_resid_post", context_size=48)


def hugging_face_logits(run, tokens, change):
    """Logits of the Hugging Face model with `change` of the residual stream behind the block of the hook point."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(run.source.config.model.name, dtype=torch.float32)
    layers = next(module for name, module in model.named_modules() if name.endswith((".h", ".layers")))
    layer = layers[int(run.source.config.model.hook_point.split(".")[1])]

    def hook(module, inputs, output):
        if isinstance(output, tuple):
            return (change(output[0]), *output[1:])
        return change(output)

    handle = layer.register_forward_hook(hook)
    with torch.no_grad():
        logits = model(tokens).logits
    handle.remove()
    return logits


def added(run, tokens, vectors):
    """x + vectors at every token but special ones."""
    kept = ~torch.isin(tokens, torch.tensor(run.special_ids))
    return lambda x: x + kept.unsqueeze(-1) * vectors(x)


def check(run, tokens, latent, strength, vectors):
    expected = hugging_face_logits(run, tokens, added(run, tokens, vectors))
    scale = float(expected.abs().max())
    logits = changed_logits(run, tokens, [latent], [strength])
    assert float((logits - expected).abs().max()) <= 1e-5 * max(scale, 1)
    last = torch.tensor([tokens.shape[1] - 1])
    assert torch.allclose(next_logits(run, tokens, last, [latent], [strength]), expected[:, -1], atol=1e-5 * max(scale, 1))


def tokens_of(run):
    return torch.from_numpy(run.activations.windows[:1, :40]).long()


def test_steering_is_a_hook_that_adds_the_decoder_row(run):
    direction = run.sae.W_dec.detach()[5]
    check(run, tokens_of(run), 5, 7.5, lambda x: 7.5 * direction)


def test_ablation_is_a_hook_that_takes_the_latents_part_away(run):
    tokens, latent = tokens_of(run), int(run.activations.counts.argmax())

    def part(x):
        activation = run.sae.encode(x.flatten(0, 1))[:, latent].view(x.shape[:2])
        assert activation.count_nonzero() > 0
        return -activation.unsqueeze(-1) * run.sae.W_dec.detach()[latent]

    check(run, tokens, latent, None, part)


def test_with_layer_normed_tokens_the_decoder_row_is_in_their_units(tmp_path):
    run = of_language_model(tmp_path)
    run.sae.layer_norm = True
    direction = run.sae.W_dec.detach()[5]
    check(run, tokens_of(run), 5, 0.5, lambda x: 0.5 * direction * x.std(dim=-1, keepdim=True))
    latent = int(run.activations.counts.argmax())

    def part(x):
        normed = (x - x.mean(dim=-1, keepdim=True)) / (x.std(dim=-1, keepdim=True) + LAYER_NORM_EPS)
        activation = run.sae.encode(normed.flatten(0, 1))[:, latent].view(x.shape[:2])
        return -activation.unsqueeze(-1) * run.sae.W_dec.detach()[latent] * x.std(dim=-1, keepdim=True)

    check(run, tokens_of(run), latent, None, part)


def test_direct_effects_are_those_of_the_norm_and_the_unembedding(run):
    """By hand, with the scale of the final norm that the Hugging Face model has on the same text."""
    from transformers import AutoModelForCausalLM

    from analysis.features.logits import _some_text

    model = AutoModelForCausalLM.from_pretrained(run.source.config.model.name, dtype=torch.float32)
    names = {name: module for name, module in model.named_modules() if name.endswith((".ln_f", ".final_layer_norm", "model.norm"))}
    (norm,), seen = names.values(), []
    norm.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    d = run.sae.W_dec.detach()[[5, 7]]
    with torch.no_grad():
        model(_some_text(run))
        subtracts = isinstance(norm, torch.nn.LayerNorm)
        epsilon, h = getattr(norm, "variance_epsilon", getattr(norm, "eps", None)), seen[0]
        scales = ((h - h.mean(dim=-1, keepdim=True) * subtracts).square().mean(dim=-1) + epsilon).sqrt()
        weight = norm.weight + ("Gemma" in type(norm).__name__)
        expected = ((d - d.mean(dim=-1, keepdim=True) * subtracts) * weight * (1 / scales).mean()) @ model.get_output_embeddings().weight.T
    for row, effects in zip(expected, features.logit_effects(run, [5, 7]), strict=True):
        assert [value for _, value in effects.most_raised] == pytest.approx(row.topk(10).values.tolist(), rel=1e-4, abs=1e-6)


def test_a_batch_of_changes_equals_one_at_a_time(run):
    tokens = torch.from_numpy(run.activations.windows[:3, :20]).long()
    latents, strengths = [2, int(run.activations.counts.argmax()), 7], [3.0, None, -2.0]
    together = changed_logits(run, tokens, latents, strengths)
    for row in range(3):
        alone = changed_logits(run, tokens[row : row + 1], latents[row : row + 1], strengths[row : row + 1])
        assert torch.allclose(together[row], alone[0], atol=1e-4)


def test_an_effect_compares_distributions_and_texts(run):
    effect = features.steer(run, 5, TEXT, 20.0, n_new_tokens=4)
    tokens = torch.tensor([effect.tokens])
    log_p = run.model.logits(run.model.run(tokens)[1][0]).log_softmax(dim=-1)
    log_q = changed_logits(run, tokens, [5], [20.0])[0].log_softmax(dim=-1)
    assert effect.kl == pytest.approx((log_p.exp() * (log_p - log_q)).sum(dim=-1).tolist(), abs=1e-5)
    moved = effect.raised[0]
    assert (moved.before, moved.after) == pytest.approx(
        (float(log_p[-1].exp()[moved.token]), float(log_q[-1].exp()[moved.token])), abs=1e-6
    )
    assert float((log_q.exp() - log_p.exp())[-1].max()) == pytest.approx(moved.after - moved.before, abs=1e-6)
    assert all(change.after < change.before for change in effect.lowered)
    assert effect.continuation[0] == int(log_p[-1].argmax()) and effect.changed_continuation[0] == int(log_q[-1].argmax())
    assert len(effect.continuation) == len(effect.changed_continuation) == 4


def test_no_change_changes_nothing(run):
    effect = features.steer(run, 5, TEXT, 0.0, n_new_tokens=3)
    assert max(effect.kl) < 1e-5 and effect.continuation == effect.changed_continuation
    never = int(run.activations.counts.argmin())
    if run.activations.counts[never] == 0:
        assert max(features.ablate(run, never, run.activations.windows[0, :10].tolist(), n_new_tokens=0).kl) < 1e-5


def test_effects_of_many_latents_are_those_of_each(run):
    latents = [int(latent) for latent in run.activations.counts.argsort()[-2:]]
    examples = {latent: features.top_activating_examples(run, latent, 3) for latent in latents}
    for latent, lost in ablated(run, examples).items():
        windows = run.activations.windows
        each = [features.ablate(run, latent, windows[e.window, : e.position + 1].tolist(), n_new_tokens=0) for e in examples[latent]]
        assert lost.kl == pytest.approx(sum(effect.kl[-1] for effect in each) / len(each), abs=1e-5)
    unchanged, written = steered(run, latents)
    for texts in written.values():
        assert [text.strength for text in texts] == sorted(text.strength for text in texts)
        assert all(len(text.written) == len(unchanged) for text in texts)


def test_text_that_does_not_fit_is_refused(run):
    most = run.source.config.model.context_size - 24
    with pytest.raises(ConfigError, match=rf"1 to {most} tokens.* got {most + 1}"):
        features.steer(run, 0, [1] * (most + 1), 1.0)
    with pytest.raises(ConfigError, match="but got 0"):
        features.ablate(run, 0, [])
    with pytest.raises(ConfigError, match="but got 99999"):
        features.ablate(run, 0, [1, 99999], n_new_tokens=0)
    with pytest.raises(ConfigError, match="got 96 and d_sae=96"):
        features.steer(run, 96, TEXT, 1.0)
