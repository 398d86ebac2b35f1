"""A language model as a source of pairs: what is read and spliced at two hook points is what PyTorch's own hooks read and splice."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_model import DEMO_MODEL, language_model_config, random_model
from torch import Tensor

from analysis.features.interventions import changed_logits
from analysis.features.run import LearnedRun
from sae_core.activations.language_model.loading import ModelConfig
from sae_core.activations.language_model.source import LanguageModelSource
from sae_core.activations.language_model.token_file import TokenFile
from sae_core.config.run import ARCHITECTURES, SOURCES
from sae_core.errors import ConfigError

pytestmark = pytest.mark.slow

HOOKS = {"hook_point": "blocks.1.mlp.hook_in", "hook_out": "blocks.1.hook_mlp_out"}
MLPS = {"demo": "transformer.h.1.mlp", "llama": "model.layers.1.mlp"}


@pytest.fixture(scope="module", params=MLPS)
def pairs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[LanguageModelSource, Path, Any, str]:
    """A source of pairs with its prepared directory, the plain model, and the path of the MLP between the hook points."""
    from transformers import AutoModelForCausalLM

    directory = tmp_path_factory.mktemp(request.param)
    name = DEMO_MODEL if request.param == "demo" else random_model(directory / "model", request.param)
    source = LanguageModelSource(language_model_config(directory, name=name, context_size=32, **HOOKS))
    source.check()
    source.prepare(directory)
    return source, directory, AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32).eval(), MLPS[request.param]


@torch.no_grad()
def by_hook(model: Any, path: str, tokens: Tensor, keep: Tensor, y_hat: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Input and output of a module at the positions of `keep`, and the logits with `y_hat` in place of its output there."""
    seen: list[Tensor] = []

    def hook(module: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        seen.extend((args[0][keep], output[keep]))
        if y_hat is None:
            return None
        changed = output.clone()
        changed[keep] = y_hat
        return changed

    handle = model.get_submodule(path).register_forward_hook(hook)
    try:
        logits = model(tokens, use_cache=False).logits
    finally:
        handle.remove()
    return seen[0], seen[1], logits


def cross_entropy(logits: Tensor, tokens: Tensor, keep: Tensor) -> Tensor:
    """Of the next token, where the token itself counts and has one."""
    losses = -logits[:, :-1].log_softmax(-1).gather(-1, tokens[:, 1:, None].long()).squeeze(-1)
    return losses[keep[:, :-1]]


def test_shards_are_the_input_and_output_of_the_module(pairs: tuple[LanguageModelSource, Path, Any, str]) -> None:
    source, directory, plain, path = pairs
    x = source.shard(directory, 0)
    assert x.shape[1] == source.d_in + (source.d_out or 0)
    tokens, keep = TokenFile(directory).windows("train", 0, source.shard_tokens // 32)
    read, written, _ = by_hook(plain, path, tokens, keep)
    expected = torch.cat([read, written], dim=1)
    found = x[x[:, 0].argsort()], expected[expected[:, 0].argsort()]
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


def test_a_splice_replaces_the_output_of_the_module(pairs: tuple[LanguageModelSource, Path, Any, str]) -> None:
    source, directory, plain, path = pairs
    mean = torch.linspace(-1, 1, source.d_out or 0)
    chunk = source.eval_chunk(directory, 0, mean)
    tokens, keep = TokenFile(directory).windows("heldout", 0, TokenFile(directory).chunk_windows)
    read, written, logits = by_hook(plain, path, tokens, keep)
    assert chunk.target is not None and chunk.splice is not None
    torch.testing.assert_close(chunk.x, read, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(chunk.y, written, rtol=1e-4, atol=1e-5)
    y_hats = [0.5 * chunk.y + 0.3, chunk.y]
    for y_hat, scores in zip(y_hats, chunk.splice(y_hats), strict=True):
        spliced = by_hook(plain, path, tokens, keep, y_hat)[2]
        torch.testing.assert_close(scores.ce, cross_entropy(spliced, tokens, keep), rtol=1e-4, atol=1e-4)
        p, q = logits.log_softmax(-1)[keep], spliced.log_softmax(-1)[keep]
        torch.testing.assert_close(scores.kl, (p.exp() * (p - q)).sum(-1), rtol=1e-3, atol=1e-4)
    means = by_hook(plain, path, tokens, keep, mean.expand_as(chunk.y))[2]
    zeros = by_hook(plain, path, tokens, torch.ones_like(keep), torch.zeros(()))[2]
    for scores, changed in ((chunk.mean_ablated, means), (chunk.zero_ablated, zeros), (chunk.clean, logits)):
        assert scores is not None
        torch.testing.assert_close(scores.ce, cross_entropy(changed, tokens, keep), rtol=1e-4, atol=1e-4)


def test_a_latent_is_steered_and_ablated_where_the_transcoder_writes(pairs: tuple[LanguageModelSource, Path, Any, str]) -> None:
    source, directory, plain, path = pairs
    kind = ARCHITECTURES["standard"]
    generator = torch.Generator().manual_seed(0)
    sae = kind(kind.Config(d_sae=8, l1_coefficient=1.0), source.d_in, source.d_out, generator=generator).eval()
    run = LearnedRun("a", "b", sae, source, directory)
    tokens = TokenFile(directory).windows("heldout", 0, 2)[0].long()
    keep = ~torch.isin(tokens, torch.tensor(run.special_ids))
    read, written, _ = by_hook(plain, path, tokens, keep)
    latents = sae.encode(read).detach()
    latent = int(latents.sum(dim=0).argmax())
    row = sae.W_dec[latent].detach()
    for strength, added in ((None, -latents[:, latent]), (3.0, torch.full((len(read),), 3.0))):
        found = changed_logits(run, tokens, [latent] * 2, [strength] * 2)
        expected = by_hook(plain, path, tokens, keep, written + added[:, None] * row)[2]
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_pairs_are_read_in_one_pass_with_others_and_are_the_same(tmp_path: Path) -> None:
    configs = [language_model_config(tmp_path, **changes) for changes in (HOOKS, {}, {**HOOKS, "hook_out": "blocks.2.hook_resid_post"})]
    sources = [LanguageModelSource(config) for config in configs]
    assert len({source.pass_key for source in sources}) == 1
    assert len({source.fingerprint() for source in sources}) == 3
    sources[0].prepare(tmp_path)
    together = sources[0].shards(tmp_path, 0, sources)
    assert all(torch.equal(source.shard(tmp_path, 0), x) for source, x in zip(sources, together, strict=True))
    assert torch.equal(together[0][:, :128], together[2][:, :128]) and torch.equal(together[1], together[2][:, 128:])
    chunks = sources[0].eval_chunks(tmp_path, 0, sources, [torch.zeros(128)] * 3)
    assert torch.equal(chunks[1].x, chunks[2].y) and chunks[1].target is None
    assert len({source.eval_fingerprint(tmp_path) for source in sources}) == 3


def test_configs_and_hashes_without_an_output_say_nothing_of_it(tmp_path: Path) -> None:
    config = language_model_config(tmp_path)
    assert "hook_out" not in config.model_dump_json()
    assert "hook_name_out" not in LanguageModelSource(config).export_metadata()
    pairs = SOURCES["language_model"](language_model_config(tmp_path, **HOOKS))
    assert pairs.export_metadata()["hook_name_out"] == HOOKS["hook_out"]


@pytest.mark.parametrize(
    ("hook_out", "message"),
    [
        ("blocks.1.hook_mlp_outt", "`model.hook_out`.* got 'blocks.1.hook_mlp_outt'"),
        ("transformer.h.1.mlp@input", "must be another place than the one that is read, but got 'transformer.h.1.mlp@input'"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused(tmp_path: Path, hook_out: str, message: str) -> None:
    source = LanguageModelSource(language_model_config(tmp_path, **{**HOOKS, "hook_out": hook_out}))
    with pytest.raises(ConfigError, match=message):
        source.check()


def test_reading_and_writing_at_one_hook_point_is_an_sae() -> None:
    with pytest.raises(ValueError, match=r"but got 'blocks\.1\.hook_mlp_out' for both"):
        ModelConfig(name="demo", hook_point="blocks.1.hook_mlp_out", hook_out="blocks.1.hook_mlp_out")
