"""What an SAE learned: the pass over the text, examples, densities, logit effects, matches."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from learned_runs import of_known_features, of_language_model

from analysis import features
from analysis.features.content import most_written, page_content, written_shares
from analysis.features.examples import examples_between
from sae_core.errors import ConfigError

pytestmark = pytest.mark.slow  # a language model is loaded


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return of_language_model(tmp_path_factory.mktemp("features"))


@pytest.fixture(scope="module")
def dense(run):
    """All latents of all held-out tokens, and the text: what the pass must agree with, [N, d_sae]."""
    chunks = [run.source.heldout(run.cache, index) for index in range(run.source.n_eval_chunks(run.cache))]
    x, tokens, keep = (torch.cat([getattr(chunk, name) for chunk in chunks]) for name in ("x", "tokens", "keep"))
    with torch.no_grad():
        return run.sae.encode(x), tokens, keep


def test_the_text_is_that_of_the_evaluation(run):
    for index in range(run.source.n_eval_chunks(run.cache)):
        heldout, evaluated = run.source.heldout(run.cache, index), run.source.eval_chunk(run.cache, index, torch.zeros(run.sae.d_in))
        assert torch.equal(heldout.x, evaluated.x)
        assert int(heldout.keep.sum()) == len(heldout.x)


def test_a_pass_finds_every_active_latent(run, dense):
    latents, tokens, keep = dense
    activations = run.activations
    assert activations.n_tokens == len(latents)
    assert np.array_equal(activations.windows, tokens.numpy())
    assert np.array_equal(activations.positions, keep.flatten().nonzero().squeeze(1).numpy())
    assert np.array_equal(activations.counts, (latents != 0).sum(dim=0).numpy())
    assert np.allclose(activations.largest, latents.amax(dim=0).clamp_min(0).numpy(), rtol=1e-6)
    assert np.allclose(activations.squares, latents.double().square().sum(dim=0).numpy(), rtol=1e-6)
    assert np.array_equal(features.latent_density(run), (latents != 0).double().mean(dim=0).numpy())
    for latent in range(run.sae.d_sae):
        where, values = activations.of(latent)
        assert np.array_equal(where, latents[:, latent].nonzero().squeeze(1).numpy())
        assert np.allclose(values, latents[where, latent].numpy(), rtol=1e-6)


def test_few_entries_sorted_at_a_time_give_the_same(run, monkeypatch):
    monkeypatch.setattr("analysis.features.activations.SORTED_AT_A_TIME", 97)
    from analysis.features.activations import collect

    again = collect(run.sae, run.source, run.cache)
    for latent in range(run.sae.d_sae):
        for mine, theirs in zip(again.of(latent), run.activations.of(latent), strict=True):
            assert np.array_equal(mine, theirs)


def busiest(run):
    return int(run.activations.counts.argmax())


def test_examples_are_the_strongest_places_with_their_text(run, dense):
    latents, tokens, keep = dense
    latent = busiest(run)
    at = torch.zeros(tokens.shape)
    at[keep] = latents[:, latent]
    examples = features.top_activating_examples(run, latent, 5)
    assert examples[0].value == pytest.approx(float(latents[:, latent].max()))
    assert [example.value for example in examples] == sorted((example.value for example in examples), reverse=True)
    for example in examples:
        shown = slice(example.first, example.first + len(example.tokens))
        assert example.tokens == tuple(tokens[example.window, shown].tolist())
        assert example.values == pytest.approx(at[example.window, shown].tolist(), rel=1e-6)
        assert example.values[example.position - example.first] == pytest.approx(example.value)


def test_no_stretch_of_text_is_shown_twice(run):
    examples = features.top_activating_examples(run, busiest(run), 100)
    assert len({example.tokens for example in examples}) == len(examples)
    for number, example in enumerate(examples):
        for earlier in examples[:number]:
            inside = earlier.first <= example.position < earlier.first + len(earlier.tokens)
            assert not (inside and earlier.window == example.window)


def test_quantiles_hold_equal_parts_and_do_not_overlap(run):
    parts = features.quantile_examples(run, busiest(run), 3, 4)
    assert [part.share for part in parts] == pytest.approx([0.25] * 4, abs=0.02)
    assert all(above.low >= below.high for above, below in pairwise(parts))
    for part in parts:
        assert part.examples and all(part.low <= example.value <= part.high for example in part.examples)
    assert parts == features.quantile_examples(run, busiest(run), 3, 4)


def test_examples_between_lie_there(run):
    largest = float(run.activations.largest[busiest(run)])
    for example in examples_between(run, busiest(run), largest / 2, largest * 0.9, 4):
        assert largest / 2 <= example.value <= largest * 0.9


def test_a_histogram_counts_every_activation(run):
    histogram = features.activation_histogram(run, busiest(run))
    assert histogram.counts.sum() == run.activations.counts.max()
    assert (histogram.edges[0], histogram.edges[-1]) == (0, pytest.approx(float(run.activations.largest[busiest(run)])))


def test_logit_effects_are_those_of_the_hugging_face_model(run):
    """((d - mean) * weight / scale) @ W_U, with the scale of the final norm by hand."""
    from transformers import AutoModelForCausalLM

    from analysis.features.logits import _some_text

    model = AutoModelForCausalLM.from_pretrained(run.source.config.model.name, dtype=torch.float32)
    norm, seen = model.transformer.ln_f, []
    norm.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    latents = [0, 3, busiest(run)]
    with torch.no_grad():
        model(_some_text(run))
        scales = (seen[0].var(dim=-1, correction=0) + norm.eps).sqrt()
        d = run.sae.W_dec[latents]
        expected = ((d - d.mean(dim=-1, keepdim=True)) * norm.weight * (1 / scales).mean()) @ model.lm_head.weight.T
    for row, effects in zip(expected, features.logit_effects(run, latents), strict=True):
        top, bottom = row.topk(10), (-row).topk(10)
        assert [value for _, value in effects.most_raised] == pytest.approx(top.values.tolist(), rel=1e-4)
        assert [value for _, value in effects.most_lowered] == pytest.approx((-bottom.values).tolist(), rel=1e-4)
        assert effects.most_raised[0][0] == int(top.indices[0])
        assert effects.histogram.counts.sum() == len(row)


def test_logit_effects_need_a_place_in_the_residual_stream(tmp_path):
    run = of_language_model(tmp_path, hook_point="blocks.1.mlp.hook_post")
    with pytest.raises(ConfigError, match=r"'blocks.1.mlp.hook_post'"):
        features.logit_effects(run, [0])
    assert page_content(run, [busiest(run)])["no_logits"]


def test_latents_that_there_are_not_are_refused(run):
    for latents, named in (([96], "96"), ([0, -1, 200], "-1, 200")):
        with pytest.raises(ConfigError, match=rf"got {named} and d_sae=96"):
            features.logit_effects(run, latents)
    with pytest.raises(ConfigError, match="d_sae=96"):
        features.top_activating_examples(run, 96)


def test_what_is_written_most_comes_first(run, dense):
    latents, _, _ = dense
    written = (latents.double().square().sum(dim=0) * run.sae.W_dec.double().square().sum(dim=1)).detach()
    assert most_written(run, 5) == written.argsort(descending=True)[:5].tolist()
    assert written_shares(run).sum() == pytest.approx(1)


def test_the_page_of_a_run_without_a_language_model(tmp_path):
    run, other = of_known_features(tmp_path), of_known_features(tmp_path, seed=1)
    content = page_content(run, most_written(run, 3), other)
    one = content["latents"][0]
    assert (one["logits"], one["ablation"], one["steering"], content["prompt"], content["tokens"]) == (None, None, [], [], {})
    assert one["match"]["overlap"] is not None and one["examples"][0]["tokens"] == []
    for asked in (
        lambda: features.steer(run, 0, "x", 1.0),
        lambda: features.ablate(run, 0, [1, 2]),
        lambda: features.logit_effects(run, [0]),
    ):
        with pytest.raises(ConfigError, match="need a language model, but got activations of source 'synthetic'"):
            asked()


def test_the_page_holds_the_text_of_every_token(run):
    content = page_content(run, [busiest(run), 1, 2], run)
    one = content["latents"][0]
    assert (one["latent"], one["count"]) == (busiest(run), int(run.activations.counts.max()))
    assert (one["match"]["latent"], one["match"]["overlap"]) == (busiest(run), 1)
    shown = {token for example in one["examples"] for token in example["tokens"]} | {token for token, _ in one["logits"]["raised"]}
    assert {str(token) for token in shown} <= content["tokens"].keys()
    assert content["n_dead"] == int((run.activations.counts == 0).sum())
    assert sum(content["densities"]["counts"]) + content["n_dead"] == run.sae.d_sae


def test_a_disk_without_room_is_refused_before_the_pass(run, monkeypatch):
    import shutil

    from analysis.features.activations import collect

    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(ConfigError, match="Set TMPDIR"):
        collect(run.sae, run.source, run.cache, l0=8.0)


def test_no_temporary_file_is_left(tmp_path, monkeypatch):
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    run = of_known_features(tmp_path)
    assert run.activations.counts.sum() > 0 and len(run.activations.of(busiest(run))[0]) > 0
    assert not list(tmp_path.glob("sae-sweep-latents-*"))
