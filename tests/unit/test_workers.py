from types import SimpleNamespace

import pytest
import torch
from ray.exceptions import RayTaskError
from small_runs import activations_config, random_sae

from sae_core.activations.shards import finish, read_manifest
from sae_core.errors import ConfigError
from sweeps import workers
from sweeps.workers import SourceWorker, WorkerPool


class Job:
    """Stands in for a Ray actor's method."""

    def __init__(self, ray, worker):
        self.ray, self.worker = ray, worker

    def remote(self, index):
        ref = (self.worker.number, index)
        self.ray.started.append(ref)
        return ref


class Worker:
    def __init__(self, ray, number, arguments):
        self.number, self.arguments, self.killed = number, arguments, False
        self.square = Job(ray, self)


@pytest.fixture
def ray(monkeypatch):
    """Stands in for Ray: the job started last is finished first; it returns its index squared, or `ray.failure`."""
    ray = SimpleNamespace(started=[], workers=[], options=None, failure=None)

    def options(**options):
        ray.options = options
        return SimpleNamespace(remote=lambda *arguments: ray.workers.append(Worker(ray, len(ray.workers), arguments)) or ray.workers[-1])

    def get(ref):
        if ray.failure:
            raise ray.failure
        return ref[1] ** 2

    monkeypatch.setattr(workers.ray, "remote", lambda cls: SimpleNamespace(options=options))
    monkeypatch.setattr(workers.ray, "wait", lambda refs, num_returns: (refs[-1:], refs[:-1]))
    monkeypatch.setattr(workers.ray, "get", get)
    monkeypatch.setattr(workers.ray, "kill", lambda worker: setattr(worker, "killed", True))
    monkeypatch.setattr(workers.ray, "get_gpu_ids", list)
    return ray


def pool_of(tmp_path, n_workers):
    return WorkerPool(activations_config(100), tmp_path, n_workers=n_workers, resources={"num_cpus": 1}, saes={"topk-1": tmp_path / "sae"})


def test_each_worker_takes_the_next_job_when_it_is_free(tmp_path, ray):
    results = []
    with pool_of(tmp_path, 2) as pool:
        pool.map("square", range(5), results.append)
    assert sorted(results) == [0, 1, 4, 9, 16]
    # Worker 1 is always the one that finishes; worker 0 keeps its first job to the end.
    assert ray.started == [(0, 0), (1, 1), (1, 2), (1, 3), (1, 4)]
    assert all(worker.killed for worker in ray.workers)


def test_workers_are_told_what_they_need_and_started_again_when_they_die(tmp_path, ray):
    pool_of(tmp_path, 1)
    config, cache, saes = ray.workers[0].arguments
    assert config == activations_config(100).model_dump(mode="json")
    assert (cache, saes) == (str(tmp_path), {"topk-1": str(tmp_path / "sae")})
    assert ray.options == {"max_restarts": 2, "max_task_retries": 2, "num_cpus": 1}


def test_no_jobs(tmp_path, ray):
    pool_of(tmp_path, 2).map("square", [], lambda _: pytest.fail("no job was given"))
    assert ray.started == []


def test_what_a_user_can_mend_comes_without_the_workers_traceback(tmp_path, ray):
    ray.failure = RayTaskError("square", "Traceback ...", ConfigError("`x` must be 1, but got x=2. Lower it.")).as_instanceof_cause()
    with pytest.raises(ConfigError) as error, pool_of(tmp_path, 1) as pool:
        pool.map("square", [0], lambda _: None)
    assert str(error.value) == "`x` must be 1, but got x=2. Lower it."
    assert ray.workers[0].killed


def test_other_errors_keep_it(tmp_path, ray):
    ray.failure = RayTaskError("square", "Traceback ...", KeyError("x")).as_instanceof_cause()
    with pytest.raises(KeyError, match=r"pid="):
        pool_of(tmp_path, 1).map("square", [0], lambda _: None)


def test_a_worker_harvests_and_evaluates(tmp_path, ray):
    config = activations_config(20_000)
    for run_id, name in (("a", "topk"), ("b", "standard")):
        random_sae(name, d_in=config.d_in).eval().save_pretrained(tmp_path / run_id)
    cache = tmp_path / "cache"
    worker = SourceWorker(config.model_dump(mode="json"), str(cache), {run_id: str(tmp_path / run_id) for run_id in ("a", "b")})
    assert [worker.harvest(0), worker.harvest(1)] == [16_384, 3_616]
    assert worker.harvest(1) == 3_616  # there already
    finish(worker.source, cache)
    assert read_manifest(cache).n_tokens == 20_000
    sums = worker.evaluate(0)
    assert (sums.index, sums.n_tokens, set(sums.by_sae)) == (0, 512, {"a", "b"})


def test_a_worker_uses_the_gpu_that_ray_gave_it(tmp_path, monkeypatch):
    monkeypatch.setattr(workers.ray, "get_gpu_ids", lambda: [3])
    assert SourceWorker(activations_config(100).model_dump(mode="json"), str(tmp_path), {}).source.device == "cuda:0"
    monkeypatch.setattr(workers.ray, "get_gpu_ids", list)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert SourceWorker(activations_config(100).model_dump(mode="json"), str(tmp_path), {}).source.device == "cpu"
