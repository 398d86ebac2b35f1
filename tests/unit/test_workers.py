from types import SimpleNamespace

import pytest
import torch
from ray.exceptions import ActorDiedError, RayTaskError
from small_runs import activations_config, random_sae

from sae_core import provenance
from sae_core.activations.shards import finish, read_manifest
from sae_core.activations.synthetic import SyntheticSource
from sae_core.errors import ConfigError
from sweeps.execution.failures import LaunchError
from sweeps.execution.workers import SourceWorker, WorkerPool


class Job:
    """Stands in for a Ray actor's method."""

    def __init__(self, ray, number):
        self.ray, self.number = ray, number

    def remote(self, index, *arguments):
        ref = (self.number, index, *arguments)
        self.ray.started.append(ref)
        return ref


@pytest.fixture
def ray(monkeypatch):
    """Stands in for Ray: the job started last is finished first; it returns its index squared, or `ray.failure`."""
    ray = SimpleNamespace(started=[], workers=[], killed=[], options=None, failure=None)

    def start(*arguments):
        ray.workers.append(SimpleNamespace(arguments=arguments, square=Job(ray, len(ray.workers))))
        return ray.workers[-1]

    def options(**options):
        ray.options = options
        return SimpleNamespace(remote=start)

    def get(ref):
        if ray.failure:
            raise ray.failure
        return ref[1] ** 2

    monkeypatch.setattr("ray.remote", lambda cls: SimpleNamespace(options=options))
    monkeypatch.setattr("ray.wait", lambda refs, num_returns, timeout: (refs[-1:], refs[:-1]))
    monkeypatch.setattr("ray.get", get)
    monkeypatch.setattr("ray.kill", ray.killed.append)
    return ray


@pytest.fixture
def pool(ray):
    needs = SimpleNamespace(directory="results/sweep")
    return WorkerPool(
        SimpleNamespace(n_workers=2, cpus=3, gpus=0.0, actor={"num_cpus": 3, "num_gpus": 0}, needs=needs, stall_seconds=0.0), "fast"
    )


def test_each_worker_takes_the_next_job_when_it_is_free(pool, ray):
    results = []
    pool.map("square", range(5), results.append, "shared")
    assert sorted(results) == [0, 1, 4, 9, 16]
    # Worker 1 is always the one that finishes; worker 0 keeps its first job to the end.
    assert ray.started == [(0, 0, "shared"), *((1, index, "shared") for index in range(1, 5))]
    pool.close()
    assert len(ray.killed) == 2


def test_a_pool_has_no_more_workers_than_jobs_or_slots(pool, ray):
    pool.map("square", [], lambda _: pytest.fail("no job was given"))
    assert len(ray.workers) == 0
    assert pool.ask("square", 3) == 9
    assert len(ray.workers) == 1
    assert ray.workers[0].arguments == (3, "fast", 0.0, "results/sweep/.hangs.tmp", {}, 0)
    assert ray.options == {"max_restarts": 2, "max_task_retries": 2, "num_cpus": 3, "num_gpus": 0}
    pool.map("square", range(9), lambda _: None)
    assert len(ray.workers) == 2


def test_workers_come_and_go_with_the_nodes(pool, ray):
    """A slot that is gone takes that of an idle worker, so that the job which was on it can be repeated there."""
    slots = {0: 3, 1: 3, 4: 1}

    def done(square):
        pool.cluster.n_workers = slots.get(square, pool.cluster.n_workers)

    pool.map("square", range(6), done)
    assert len(ray.workers) == 3
    assert len(ray.killed) == 2
    assert pool.workers == [worker for worker in ray.workers if worker not in ray.killed]
    assert sorted(index for _, index in ray.started) == list(range(6))


@pytest.mark.parametrize("error", [ConfigError("`x` must be 1, but got x=2. Lower it."), OSError(28, "No space left on device")])
def test_an_exception_is_what_it_was_in_the_worker(pool, ray, error):
    """Type and message; where it happened is in the cause, for the file with the traceback."""
    ray.failure = RayTaskError("square", "Traceback of the worker", error).as_instanceof_cause()
    with pytest.raises(type(error)) as raised:
        pool.map("square", [0], lambda _: None)
    assert type(raised.value) is type(error)
    assert str(raised.value) == str(error)
    assert isinstance(raised.value.__cause__, RayTaskError)


def test_a_worker_that_dies_again_and_again_ends_the_launch(pool, ray):
    ray.failure = ActorDiedError()
    with pytest.raises(LaunchError, match=r"but its process was killed or crashed \(out of memory\?\), 3 times"):
        pool.map("square", [0], lambda _: None)


def source_of(tmp_path, tokens):
    return activations_config(tokens).model_dump(mode="json"), str(tmp_path / str(tokens))


def test_all_sources_are_checked_before_any_is_prepared(tmp_path, monkeypatch):
    problems = {101: "`x` is wrong.\n`y` is wrong.", 103: "`y` is wrong.\n`z` is wrong."}
    done = []

    def check(source):
        done.append(("check", source.config.train_tokens))
        if source.config.train_tokens in problems:
            raise ConfigError(problems[source.config.train_tokens])

    monkeypatch.setattr(SyntheticSource, "check", check)
    monkeypatch.setattr(SyntheticSource, "prepare", lambda source, cache: done.append(("prepare", source.config.train_tokens, cache.name)))
    worker = SourceWorker("cpu", 1, "fast")
    sources = [source_of(tmp_path, tokens) for tokens in (101, 102, 103)]
    with pytest.raises(ConfigError) as error:
        worker.prepare(sources)
    assert str(error.value).splitlines() == ["`x` is wrong.", "`y` is wrong.", "`z` is wrong."]
    assert done == [("check", 101), ("check", 102), ("check", 103)]
    problems.clear()
    done.clear()
    assert worker.prepare(sources[:2]) == [({}, 16, None, {}, 0), ({}, 16, None, {}, 0)]
    assert done == [("check", 101), ("check", 102), ("prepare", 101, "101"), ("prepare", 102, "102")]


def test_a_worker_harvests_and_evaluates(tmp_path):
    source = config, _ = source_of(tmp_path, 20_000)
    for run_id, name in (("a", "topk"), ("b", "standard")):
        random_sae(name, d_in=config["d_in"]).eval().save_pretrained(tmp_path / run_id)
    worker = SourceWorker("cpu", 1, "fast")
    worker.prepare([source])
    assert [worker.harvest(index, [(*source, None)]) for index in (0, 1)] == [16_384, 3_616]
    assert worker.harvest(1, [(*source, None)]) == 3_616  # exists
    finish(SyntheticSource(activations_config(20_000)), tmp_path / "20000")
    assert read_manifest(tmp_path / "20000").n_tokens == 20_000
    (sums,), node = worker.evaluate(0, [source], [{run_id: str(tmp_path / run_id) for run_id in ("a", "b")}])
    assert (sums.index, sums.n_tokens, set(sums.by_sae)) == (0, 512, {"a", "b"})
    assert node == {**provenance.node(), "arithmetic": node["arithmetic"]}


def test_a_worker_has_the_threads_of_a_slot():
    before = torch.get_num_threads()
    try:
        SourceWorker("cpu", before + 1, "fast")
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)
