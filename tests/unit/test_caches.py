import fcntl
import json
from contextlib import contextmanager

import pytest
from inline import launch
from small_sweep import small_sweep
from typer.testing import CliRunner

from sae_core.errors import ConfigError
from sweeps.cli import app
from sweeps.storage import lease
from sweeps.storage.cache_use import held, users
from sweeps.storage.caches import list_caches, remove_caches
from sweeps.storage.lock import locked
from sweeps.storage.store import Store

TINY = {"activations": {"source": "synthetic", "d_in": 8, "train_tokens": 600, "eval_tokens": 100}, "sae": {"d_sae": 16}}
SOURCE = {"source": "language_model", "model": {"name": "gpt2", "hook_point": "blocks.8.hook_resid_pre"}, "train_tokens": 5000}


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr("analysis.report.write_report", lambda *_: None)
    for name, seconds in (("BEAT_SECONDS", 0.05), ("DEAD_SECONDS", 0.5), ("_POLL_SECONDS", 0.05)):
        monkeypatch.setattr(lease, name, seconds)


@pytest.fixture
def results(tmp_path):
    return tmp_path / "results"


@pytest.fixture
def cache(results):
    path = results / ".activations" / "a1b2c3d4e5f6"
    path.mkdir(parents=True)
    (path / "train-00000.safetensors").write_bytes(b"x" * 1000)
    return path


@contextmanager
def using(cache, name="demo"):
    """A launch of a sweep that uses a cache."""
    with locked(cache.parent.parent / name) as ours:
        (ours.path.parent / "sweep.json").touch()
        with held([(cache, SOURCE)], ours):
            yield ours


def temporary(cache):
    path = cache / ".train-00001.safetensors.k3j2h1g0"
    path.touch()
    return path


def test_a_cache_that_nobody_uses_is_cleaned(cache):
    file = temporary(cache)
    with using(cache):
        assert not file.exists()
        file = temporary(cache)
    assert not file.exists()


def test_what_another_launch_may_be_writing_stays(cache):
    with using(cache, "one"):
        file = temporary(cache)
        with using(cache, "two"):
            assert file.exists()
    with using(cache, "two"):
        assert not file.exists()


def test_a_launch_of_another_node_is_known_by_its_lease(cache, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    boots = iter(f"node-{n}" for n in range(1000))
    monkeypatch.setattr(lease, "boot", lambda: next(boots))
    with using(cache, "one"):
        file = temporary(cache)
        with using(cache, "two"):
            assert file.exists()
        with pytest.raises(ConfigError, match=r"a cache must not be in use, but a1b2c3d4e5f6 is: process \d+ on .* runs 'one'"):
            remove_caches(cache.parent.parent, ["a1b2"], unused=False)


def test_a_cache_to_which_nothing_was_written_is_removed(results):
    with using(results / ".activations" / "empty"):
        pass
    assert not (results / ".activations" / "empty").exists()


def test_what_caches_are_of_and_who_uses_them(results, cache):
    with using(cache):
        (listed,) = list_caches(results)
        assert (listed.sweeps, listed.running, listed.complete) == (["demo"], ["demo"], False)
    (listed,) = list_caches(results)
    assert (listed.model, listed.hook_point, listed.tokens, listed.n_shards) == ("gpt2", "blocks.8.hook_resid_pre", 5000, 1)
    assert listed.running == [] and listed.last_used.startswith("20") and listed.n_bytes >= 1000
    (users_file,) = (cache / ".users").iterdir()
    users_file.write_text("{}")
    assert users(cache) == []
    assert list_caches(results)[0].model is None


@pytest.mark.slow
def test_the_caches_of_launches(results):
    launch(small_sweep(**TINY), results=results, cache_limit=0.0)  # nothing but statistics is stored
    (listed,) = list_caches(results)
    assert (listed.n_shards, listed.all_shards) == (0, 1)
    assert (
        ", 600 tokens, 0 of 1 shards stored, used by small, " in CliRunner().invoke(app, ["cache", "ls", "--results", str(results)]).stdout
    )
    assert (listed.source, listed.tokens, listed.d_in, listed.complete, listed.sweeps) == ("synthetic", 600, 8, True, ["small"])
    for file in (listed.path / ".users").iterdir():
        file.unlink()  # as of an earlier version: records know it
    (listed,) = list_caches(results)
    assert (listed.source, listed.sweeps, listed.last_used) == ("synthetic", ["small"], None)
    remove_caches(results, [listed.name[:6]], unused=False)
    assert list_caches(results) == []
    assert launch(small_sweep(**{**TINY, "seeds": [1]}), results=results).finished == 4  # it is created again
    assert Store(results / "small").facts()["launches"][1]["ended_at"]


def test_a_cache_in_use_is_not_removed(results, cache):
    with using(cache), pytest.raises(ConfigError, match=r"but a1b2c3d4e5f6 is: process .* runs 'demo'. Stop it first"):
        remove_caches(results, ["a1b2c3"], unused=False)
    assert cache.exists()
    with using(cache):
        assert remove_caches(results, [], unused=True) == []
    assert [removed.name for removed in remove_caches(results, ["a1b2c3"], unused=False)] == [cache.name]
    assert list((results / ".activations").iterdir()) == []


def test_unused_are_those_without_a_sweep(results, cache):
    with using(cache.with_name("ffff0000"), "other"):
        (cache.with_name("ffff0000") / "tokens.safetensors").touch()
    with using(cache):
        pass
    assert remove_caches(results, [], unused=True) == []
    for path in (results / "other").iterdir():
        path.unlink()
    (results / "other").rmdir()
    assert [removed.name for removed in remove_caches(results, [], unused=True)] == ["ffff0000"]
    assert cache.exists()


def test_every_problem_at_once_and_nothing_removed(results, cache):
    with pytest.raises(ConfigError) as error:
        remove_caches(results, ["a1b2c3", "dead", "a1"], unused=False)
    assert [line.partition(", but ")[2][:20] for line in str(error.value).splitlines()] == ["'dead' names 0. `sae", "'a1' names 0. `sae-s"]
    with pytest.raises(ConfigError, match="must get hashes or `--unused`, but got neither"):
        remove_caches(results, [], unused=False)
    assert cache.exists()


def test_the_commands(results, cache):
    with using(cache):
        pass
    run = CliRunner().invoke
    done = run(app, ["cache", "ls", "--results", str(results)])
    assert "a1b2c3d4e5f6      0.00 GiB  gpt2 blocks.8.hook_resid_pre, 5,000 tokens, not complete, used by demo, last 20" in done.stdout
    data = json.loads(run(app, ["cache", "ls", "--results", str(results), "--json"]).stdout)
    assert (data["caches"][0]["hash"], data["caches"][0]["sweeps"]) == ("a1b2c3d4e5f6", ["demo"])
    assert run(app, ["cache", "rm", "none", "--results", str(results)]).exit_code == 2
    done = run(app, ["cache", "rm", "a1b2", "--results", str(results)])
    assert done.exit_code == 0 and done.stdout.startswith("removed: a1b2c3d4e5f6")
    assert run(app, ["cache", "ls", "--results", str(results / "none")]).exit_code == 2
