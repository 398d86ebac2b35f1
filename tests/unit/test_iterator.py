"""Streams from iterators: every row once per repetition, the same batches from any start, resumed training bit for bit."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sae_core.activations.iterator import IteratorStream
from sae_core.architectures.topk import TopKConfig
from sae_core.config.run import ActivationsConfig, RunConfig, TrainConfig
from sae_core.errors import ConfigError
from sae_core.training.loop import Learner, train_group

N_ROWS = 1_000
ROWS = torch.randn(N_ROWS, 6, generator=torch.Generator().manual_seed(0)) + torch.arange(N_ROWS)[:, None] / N_ROWS


def pieces() -> Iterator[Tensor]:
    """All rows in tensors of different lengths, one of them empty."""
    yield from ROWS.split([0, 7, 300, 93, 1, 599])


def stream(activations: object = pieces, **options: object) -> IteratorStream:
    return IteratorStream(activations, **{"batch_size": 64, "buffer_rows": 256, "normalize_activations": "none"} | options)  # type: ignore[arg-type]


def batches(found: IteratorStream, n: int, start: int = 0) -> Tensor:
    return torch.stack(list(islice(found.batches(start), n)))


def rows_of(x: Tensor) -> list[tuple[float, ...]]:
    return sorted(tuple(row) for row in x.reshape(-1, x.shape[-1]).tolist())


def seek(row: int) -> Iterator[Tensor]:
    yield from ROWS[row % N_ROWS :].split(50)


@pytest.mark.parametrize("seek", [None, seek])
def test_each_block_of_rows_is_shuffled_and_every_row_comes_once(seek: object) -> None:
    found = stream(seek=seek)
    assert (found.d_in, found.d_out) == (6, None)
    x = batches(found, 20)
    assert rows_of(x[:4]) == rows_of(ROWS[:256]), "a buffer holds 4 batches"
    assert not torch.equal(x[:4].reshape(-1, 6), ROWS[:256])
    assert rows_of(x[4:8]) == rows_of(ROWS[256:512])
    assert rows_of(x[12:16]) == rows_of(torch.cat([ROWS[768:], ROWS[:24]])), "then the rows come again"
    for start in (1, 4, 5, 17):
        assert torch.equal(batches(found, 20 - start, start), x[start:])
    assert torch.equal(batches(stream(), 20), x), "with or without `seek`"
    assert not torch.equal(batches(stream(data_seed=1), 20), x)


def test_seeking_makes_no_row_before_the_block_that_is_needed() -> None:
    asked: list[int] = []

    def counted(row: int) -> Iterator[Tensor]:
        asked.append(row)
        yield from seek(row)

    next(stream(seek=counted).batches(9))
    assert asked == [512]


def test_scale_mean_and_pairs() -> None:
    targets = ROWS[:, :2] * 3 + 1
    found = stream([(ROWS, targets)], normalize_activations="expected_norm", statistics_rows=500)
    assert (found.d_in, found.d_out) == (6, 2)
    assert torch.allclose(found.mean, torch.cat([ROWS, targets], dim=1)[:500].mean(dim=0))
    x = batches(found, 4).reshape(-1, 8)
    first = torch.cat([ROWS[:256] * 6**0.5 / ROWS[:500].norm(dim=1).mean(), targets[:256] * 2**0.5 / targets[:500].norm(dim=1).mean()], 1)
    assert torch.allclose(x.sum(dim=0), first.sum(dim=0), rtol=1e-4)


def test_what_cannot_be_a_stream_is_refused() -> None:
    nan = ROWS[:20].clone()
    nan[13, 1] = torch.inf
    cases = [
        (pieces(), "but got generator, which can be read once"),
        ([], "must yield rows, but got none"),
        ([ROWS.view(2, 500, 6)], r"but got \[\[2, 500, 6\]\] at row 0"),
        (lambda: iter([ROWS[:3], "text"]), r"but got \['str'\] at row 3"),
        ([(ROWS[:3], ROWS[:4])], r"but got \[\[3, 6\], \[4, 6\]\] at row 0"),
        ([ROWS[:3], ROWS[:3, :5]], r"but got \[5\] at row 3 after \[6\]"),
        ([ROWS[:5], nan], "in row 18"),
        ([torch.zeros(4, 6)], "a mean norm of 0"),
    ]
    for activations, problem in cases:
        with pytest.raises(ConfigError, match=problem):
            stream(activations)
    for options, problem in (
        ({"buffer_rows": 0}, "buffer_rows=0"),
        ({"statistics_rows": 0}, "statistics_rows=0"),
        ({"batch_size": 0}, "size=0"),
    ):
        with pytest.raises(ConfigError, match=problem):
            stream(**options)


def test_an_iterator_that_is_empty_when_repeated_is_no_endless_stream() -> None:
    parts = [[ROWS], [ROWS], []]
    found = stream(lambda: parts.pop(0))
    with pytest.raises(ConfigError, match="got none after row 1000"):
        batches(found, 20)


def test_an_iterator_that_begins_otherwise_each_time_is_refused() -> None:
    found = stream(lambda: [ROWS[torch.randperm(N_ROWS)]])
    with pytest.raises(ConfigError, match="got others in its first 64"):
        next(found.batches())


@pytest.mark.parametrize("seek", [None, seek])
@pytest.mark.slow
def test_training_resumes_bit_for_bit_and_tells_of_its_checkpoints(tmp_path: Path, seek: object) -> None:
    runs = [
        RunConfig(
            activations=ActivationsConfig(source="mine", train_tokens=1_280, eval_tokens=100),
            sae=TopKConfig(d_sae=16, k=k),
            train=TrainConfig(batch_size=64, normalize_activations="none"),
        )
        for k in (2, 3)
    ]
    uninterrupted = train_group(runs, stream(seek=seek))
    seen: list[tuple[str, int, bool]] = []

    def note(learner: Learner, file: Path) -> None:
        seen.append((learner.run.run_id, learner.step, file.is_file()))
        if learner.step == 10 and learner.run is runs[1]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_group(runs, stream(seek=seek), directory=tmp_path, checkpoint_seconds=0, on_checkpoint=note)
    assert seen[-2:] == [(runs[0].run_id, 10, True), (runs[1].run_id, 10, True)]
    resumed = train_group(runs, stream(seek=seek), directory=tmp_path)
    for one, other in zip(uninterrupted, resumed, strict=True):
        assert one.sae is not None and other.sae is not None
        assert one.history == other.history
        assert all(torch.equal(tensor, other.sae.state_dict()[name]) for name, tensor in one.sae.state_dict().items())
