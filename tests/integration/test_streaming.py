"""Where the disk is too small for the activations, each group makes again what is not stored: same order, same numbers."""

import shutil
from collections import namedtuple

import pytest
from inline import launch
from small_sweep import results_of, small_sweep

from sae_core.activations.shards import shard_path
from sae_core.activations.synthetic import SyntheticSource
from sae_core.errors import ConfigError
from sweeps.planning.plan import plan
from sweeps.storage.verify import verify

SHARD_BYTES = 16_384 * 16 * 4


def sweep(**changes):
    """Of five shards; some of its runs also start from the activations, or are calibrated with them."""
    sections = {
        "architectures": {"batchtopk": {"k": 2}, "standard": {"l1_coefficient": 0.3}},
        "activations": {"source": "synthetic", "d_in": 16, "n_features": 32, "n_active": 3.0, "train_tokens": 70_000, "eval_tokens": 2_000},
        "sae": {"d_sae": 48, "b_dec_init": "mean"},
        "train": {"batch_size": 2048},
    }
    return small_sweep(**{**sections, **changes})


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Results of a launch that stored all."""
    results = tmp_path_factory.mktemp("stored")
    assert launch(sweep(), results=results).finished == 2
    return results


@pytest.fixture(autouse=True)
def _without_report(monkeypatch):
    monkeypatch.setattr("analysis.report.write_report", lambda *_: None)


def n_stored(results):
    (cache,) = (results / ".activations").iterdir()
    return len(list(cache.glob("train-*.safetensors")))


def test_a_sweep_that_streams_gives_the_same_table(stored, tmp_path, capsys):
    assert launch(sweep(), results=tmp_path, cache_limit=2.5 * SHARD_BYTES / 2**30).finished == 2
    assert n_stored(tmp_path) == 2
    assert results_of(tmp_path / "small") == results_of(stored / "small")
    assert "harvest: 3 of 5 shards are not stored: each group makes them again as it reads them" in capsys.readouterr().err
    assert not verify(tmp_path).files


@pytest.mark.slow
def test_a_relaunch_with_more_room_stores_what_is_missing_and_changes_nothing(stored, tmp_path):
    launch(sweep(), results=tmp_path, cache_limit=0)
    shutil.rmtree(tmp_path / "small" / "runs")
    launch(sweep(), results=tmp_path)
    assert n_stored(tmp_path) == 5
    assert results_of(tmp_path / "small") == results_of(stored / "small")


@pytest.mark.slow
def test_a_full_disk_is_seen_before_the_harvest(stored, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    free = int(2**30 + 3.5 * SHARD_BYTES)  # 1 GiB is left free; results of two runs need a little
    monkeypatch.setattr("sweeps.planning.caches.shutil.disk_usage", lambda path: usage(2**40, 2**40 - free, free))
    launch(sweep(), results=tmp_path)
    assert n_stored(tmp_path) == 3
    assert results_of(tmp_path / "small") == results_of(stored / "small")


@pytest.mark.slow
def test_stored_shards_that_were_damaged_are_made_again_as_they_are_read(stored, tmp_path):
    launch(sweep(), results=tmp_path, cache_limit=2.5 * SHARD_BYTES / 2**30)
    (cache,) = (tmp_path / ".activations").iterdir()
    content = bytearray(shard_path(cache, 1).read_bytes())
    content[-5] ^= 1
    shard_path(cache, 1).write_bytes(content)
    shutil.rmtree(tmp_path / "small" / "runs")
    launch(sweep(), results=tmp_path, cache_limit=0)
    assert n_stored(tmp_path) == 1  # the first; a limit does not remove what is there
    assert results_of(tmp_path / "small") == results_of(stored / "small")


@pytest.mark.slow
def test_a_search_streams(tmp_path):
    search = {"trials": 1, "objectives": ["fvu"], "sampler": "random"}
    streamed, all_stored = (
        small_sweep(name=name, architectures={"topk": {"k": {"low": 2, "high": 8}}}, search=search) for name in ("streamed", "stored")
    )
    assert launch(streamed, results=tmp_path, cache_limit=0).finished == 1
    assert n_stored(tmp_path) == 0
    launch(all_stored, results=tmp_path)
    assert list(results_of(tmp_path / "streamed").values()) == list(results_of(tmp_path / "stored").values())


def test_the_plan_says_what_is_not_stored_and_what_that_takes(tmp_path):
    made = plan(sweep(), tmp_path, n_slots=1, cache_limit=2.5 * SHARD_BYTES / 2**30)
    # One group of two runs on one slot reads 34 whole batches of 2,048 tokens; three of five shards are not stored.
    assert [line for line in made.lines() if line.startswith("streaming")] == [
        "streaming   3 of 5 shards are not stored: each group makes them again as it reads them, 41,779 tokens in all. To store more, free "
        "disk or raise `--cache-limit`"
    ]
    assert len(made.groups) == 1
    assert made.data()["streamed_tokens"] == 41_779
    assert made.activations_bytes == 70_000 * 2 / 5 * 16 * 4


@pytest.mark.slow
def test_a_source_that_makes_other_activations_the_second_time_is_refused(tmp_path, monkeypatch):
    launch(sweep(), results=tmp_path, cache_limit=0)
    shutil.rmtree(tmp_path / "small" / "runs")
    made = SyntheticSource.shard
    monkeypatch.setattr(SyntheticSource, "shard", lambda source, directory, index: 1.1 * made(source, directory, index))
    done = launch(sweep(), results=tmp_path, cache_limit=0)
    assert len(done.failed) == 2
    assert "a shard must be the same each time it is made, but shard" in next(iter(done.failed.values()))


def test_a_limit_below_zero_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="cache_limit"):
        launch(sweep(), results=tmp_path, cache_limit=-1.0)


def test_a_disk_without_room_for_the_results_is_refused(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("sweeps.planning.caches.shutil.disk_usage", lambda path: usage(2**40, 2**40 - 1, 1))
    with pytest.raises(ConfigError, match=r"results must have room on their disk, but got 0\.00 GiB free in '.*' for 2 SAEs of 0\.00 GiB"):
        launch(sweep(), results=tmp_path)
    assert not list((tmp_path / ".activations").rglob("train-*"))
