"""Tokens of large norm, as attention sinks are, left out of training, measurements and splices like special tokens."""

from pathlib import Path

import pytest
import torch
from tiny_model import language_model_config

from sae_core.activations.language_model.high_norm import NormLimits
from sae_core.activations.language_model.source import LanguageModelSource
from sae_core.activations.language_model.token_file import TokenFile
from sae_core.errors import ConfigError

pytestmark = pytest.mark.slow

HOOK_POINTS = ("blocks.2.hook_resid_post", "blocks.0.hook_resid_post")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("norms")
    LanguageModelSource(language_model_config(directory)).prepare(directory)
    return directory


def source(directory: Path, hook_point: str = HOOK_POINTS[0], factor: float | None = None) -> LanguageModelSource:
    return LanguageModelSource(language_model_config(directory, hook_point=hook_point, exclude_high_norm=factor))


def limit_of(directory: Path, hook_point: str, factor: float) -> float:
    file = TokenFile(directory)
    everything = source(directory, hook_point)
    rows = torch.cat([everything.heldout(directory, index).x for index in range(everything.n_eval_chunks(directory))])
    assert len(rows) == int(file.windows("heldout", 0, 100)[1].sum()) <= 8_192
    return factor * float(rows.norm(dim=1).median())


@pytest.mark.parametrize("hook_point", HOOK_POINTS)
def test_what_is_left_out_is_above_the_limit(directory: Path, hook_point: str) -> None:
    factor = 1.1
    limit = limit_of(directory, hook_point, factor)
    plain, low = source(directory, hook_point), source(directory, hook_point, factor)
    everything, kept = plain.shard(directory, 0), low.shard(directory, 0)
    assert 0 < len(kept) < len(everything)
    assert torch.equal(kept, everything[everything.norm(dim=1) <= limit])  # in the same order
    mean = torch.zeros(128)
    chunk, before = low.eval_chunk(directory, 0, mean), plain.eval_chunk(directory, 0, mean)
    is_low = before.x.norm(dim=1) <= limit
    assert torch.equal(chunk.x, before.x[is_low]) and torch.equal(chunk.documents, before.documents[is_low])
    assert len(chunk.clean.ce) == len(chunk.predicted_documents) and len(chunk.clean.kl) == len(chunk.x)
    (spliced,) = chunk.splice([chunk.x])
    assert torch.allclose(spliced.kl, torch.zeros(()), atol=1e-4)
    heldout = low.heldout(directory, 0)
    assert torch.equal(heldout.x, chunk.x) and int(heldout.keep.sum()) == len(chunk.x)


def test_together_is_alone(directory: Path) -> None:
    together = [source(directory, hook_point, 1.1) for hook_point in HOOK_POINTS]
    together[1].beside(together[0])
    means = [torch.zeros(128)] * 2
    for number, hook_point in enumerate(HOOK_POINTS):
        alone = source(directory, hook_point, 1.1)
        assert torch.equal(together[0].shards(directory, 0, together)[number], alone.shard(directory, 0))
        chunk = alone.eval_chunk(directory, 0, means[0])
        again = together[0].eval_chunks(directory, 0, together, means)[number]
        assert torch.equal(again.x, chunk.x) and torch.equal(again.clean.ce, chunk.clean.ce)


def test_a_limit_that_nothing_exceeds_changes_nothing_and_is_no_field_by_default(directory: Path) -> None:
    plain, low = source(directory), source(directory, factor=1e6)
    assert torch.equal(low.shard(directory, 0), plain.shard(directory, 0))
    assert "exclude_high_norm" not in plain.config.model_dump_json()
    assert plain.fingerprint() != low.fingerprint() and plain.eval_fingerprint(directory) != low.eval_fingerprint(directory)


def test_a_median_of_nothing_is_refused(directory: Path) -> None:
    limits = NormLimits(2.0, lambda hook_point, tokens, keep: torch.empty(0, 4))
    with pytest.raises(ConfigError, match=r"`data\.exclude_high_norm` needs tokens that count"):
        limits.of(HOOK_POINTS[0], directory)
