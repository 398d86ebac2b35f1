import fcntl
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ray.exceptions import ActorDiedError, RayTaskError
from small_runs import activations_config, random_sae

from sae_core.activations.shards import finish, read_manifest
from sae_core.activations.synthetic import SyntheticSource
from sae_core.errors import ConfigError
from sweeps.execution import workers
from sweeps.execution.failures import LaunchError
from sweeps.execution.workers import SourceWorker, WorkerPool, WorkerPools


class Job:
    """Stands in for a Ray actor's method."""

    def __init__(self, ray, worker):
        self.ray, self.worker = ray, worker

    def remote(self, index, *arguments):
        ref = (self.worker.number, index, *arguments)
        self.ray.started.append(ref)
        return ref


class Worker:
    """Stands in for a Ray actor; its memory is `ray.memory`."""

    def __init__(self, ray, number, arguments):
        self.number, self.arguments, self.killed, self.loads = number, arguments, False, 0
        self.square = Job(ray, self)
        self.memory_bytes = SimpleNamespace(remote=lambda: ray.memory)
        self.load = SimpleNamespace(remote=lambda: setattr(self, "loads", self.loads + 1))
        self.rest = SimpleNamespace(remote=lambda lock: setattr(self, "lock", lock))


@pytest.fixture
def ray(monkeypatch):
    """Stands in for Ray: the job started last is finished first; it returns its index squared, or `ray.failure`."""
    ray = SimpleNamespace(started=[], workers=[], options=None, failure=None, memory=10)

    def options(**options):
        ray.options = options
        return SimpleNamespace(remote=lambda *arguments: ray.workers.append(Worker(ray, len(ray.workers), arguments)) or ray.workers[-1])

    def get(ref):
        if ray.failure:
            raise ray.failure
        return ref if isinstance(ref, list) else ref[1] ** 2

    monkeypatch.setattr(workers.ray, "remote", lambda cls: SimpleNamespace(options=options))
    monkeypatch.setattr(workers.ray, "wait", lambda refs, num_returns, timeout=None: (refs[-1:], refs[:-1]))
    monkeypatch.setattr(workers.ray, "get", get)
    monkeypatch.setattr(workers.ray, "kill", lambda worker: setattr(worker, "killed", True))
    monkeypatch.setattr(workers.ray, "get_gpu_ids", list)
    return ray


def pool_of(tmp_path, n_workers):
    pool = WorkerPool(activations_config(100), tmp_path, threads=3, kernels="fast", resources={"num_cpus": 1})
    pool.grow(n_workers)
    return pool


def pools_of(keeps_workers, n_slots=2):
    cluster = SimpleNamespace(n_slots=n_slots, cpus=1, keeps_workers=keeps_workers, actor={"num_cpus": 1, "num_gpus": 1.0}, directory=None)
    return WorkerPools(cluster, "fast")


def test_each_worker_takes_the_next_job_when_it_is_free(tmp_path, ray):
    results = []
    pool = pool_of(tmp_path, 2)
    pool.map("square", range(5), results.append)
    pool.close()
    assert sorted(results) == [0, 1, 4, 9, 16]
    # Worker 1 is always the one that finishes; worker 0 keeps its first job to the end.
    assert ray.started == [(0, 0), (1, 1), (1, 2), (1, 3), (1, 4)]
    assert all(worker.killed for worker in ray.workers)


def test_workers_are_told_what_they_need_and_started_again_when_they_die(tmp_path, ray):
    pool_of(tmp_path, 1)
    config, cache, threads, kernels = ray.workers[0].arguments
    assert config == activations_config(100).model_dump(mode="json")
    assert (cache, threads, kernels) == (str(tmp_path), 3, "fast")
    assert ray.options == {"max_restarts": 2, "max_task_retries": 2, "num_cpus": 1}


def test_one_worker_is_asked(tmp_path, ray, monkeypatch):
    asked = []
    monkeypatch.setattr(workers.ray, "get", lambda ref: f"got {ref}")
    pool = pool_of(tmp_path, 2)
    for worker in ray.workers:
        worker.check = SimpleNamespace(remote=lambda what, number=worker.number: asked.append((number, what)) or "checked")
    assert pool.ask("check", "all") == "got checked"
    assert asked == [(0, "all")]


def test_all_sources_are_checked_before_any_is_prepared(tmp_path, ray, monkeypatch):
    problems = {101: "`x` is wrong.\n`y` is wrong.", 103: "`y` is wrong.\n`z` is wrong."}
    done = []

    def check(source):
        done.append(("check", source.config.train_tokens))
        if source.config.train_tokens in problems:
            raise ConfigError(problems[source.config.train_tokens])

    monkeypatch.setattr(SyntheticSource, "check", check)
    monkeypatch.setattr(SyntheticSource, "prepare", lambda source, cache: done.append(("prepare", source.config.train_tokens, cache.name)))
    sources = [(activations_config(tokens).model_dump(mode="json"), str(tmp_path / str(tokens))) for tokens in (101, 102, 103)]
    worker = SourceWorker(*sources[1], 1, "fast")
    with pytest.raises(ConfigError) as error:
        worker.prepare(sources)
    assert str(error.value).splitlines() == ["`x` is wrong.", "`y` is wrong.", "`z` is wrong."]
    assert done == [("check", 101), ("check", 102), ("check", 103)]
    problems.clear()
    done.clear()
    assert worker.prepare(sources[:2]) == [{}, {}]
    assert done == [("check", 101), ("check", 102), ("prepare", 101, "101"), ("prepare", 102, "102")]


def test_no_jobs(tmp_path, ray):
    pool_of(tmp_path, 2).map("square", [], lambda _: pytest.fail("no job was given"))
    assert ray.started == []


def test_what_a_user_can_mend_comes_without_the_workers_traceback(tmp_path, ray):
    ray.failure = RayTaskError("square", "Traceback ...", ConfigError("`x` must be 1, but got x=2. Lower it.")).as_instanceof_cause()
    with pytest.raises(ConfigError) as error:
        pool_of(tmp_path, 1).map("square", [0], lambda _: None)
    assert str(error.value) == "`x` must be 1, but got x=2. Lower it."


def test_other_errors_are_what_they_were_there(tmp_path, ray):
    """Type and message; where it happened is in the cause, for the file with the traceback."""
    ray.failure = RayTaskError("square", "Traceback of the worker", OSError(28, "No space left on device")).as_instanceof_cause()
    with pytest.raises(OSError, match="No space left on device") as error:
        pool_of(tmp_path, 1).map("square", [0], lambda _: None)
    assert type(error.value) is OSError
    assert str(error.value) == "[Errno 28] No space left on device"
    assert isinstance(error.value.__cause__, RayTaskError)


def test_a_worker_that_dies_again_and_again_ends_the_launch(tmp_path, ray):
    ray.failure = ActorDiedError()
    with pytest.raises(LaunchError, match=r"a worker must do its job, but its process was killed or crashed \(out of memory\?\), 3 times"):
        pool_of(tmp_path, 1).map("square", [0], lambda _: None)


def test_every_call_gets_what_all_jobs_share(tmp_path, ray):
    pool_of(tmp_path, 1).map("square", [1, 2], lambda _: None, "shared")
    assert ray.started == [(0, 1, "shared"), (0, 2, "shared")]


def test_workers_that_take_nothing_from_trials_are_kept(tmp_path, ray, monkeypatch):
    monkeypatch.setattr(workers.provenance, "memory_bytes", lambda: 200)
    pools = pools_of(keeps_workers=True)
    pools.load(activations_config(100), tmp_path)
    assert [worker.loads for worker in ray.workers] == [1, 1]
    assert ray.options["num_cpus"] == 0
    pool = pools.of(activations_config(100), tmp_path, 1)
    pools.rest()  # 2 workers of 10 bytes are less than 15 % of 200
    assert pools.of(activations_config(100), tmp_path, 5) is pool
    assert len(ray.workers) == 2
    assert not any(worker.killed for worker in ray.workers)
    pools.close()
    assert all(worker.killed for worker in ray.workers)


def test_kept_workers_rest_until_they_are_needed(tmp_path, ray):
    def rests(worker):
        """Whether a real worker, in another process, would wait for the lock of this one."""
        program = "import fcntl, sys; fcntl.flock(open(sys.argv[1]), fcntl.LOCK_SH | fcntl.LOCK_NB)"
        return subprocess.run([sys.executable, "-c", program, worker.lock], stderr=subprocess.DEVNULL, check=False).returncode != 0

    pools = pools_of(keeps_workers=True, n_slots=1)
    pools.of(activations_config(100), tmp_path / "one", 1)
    pools.rest()
    assert rests(ray.workers[0])
    pools.of(activations_config(200), tmp_path / "other", 1)
    assert rests(ray.workers[0])
    pools.rest()  # asks all for their memory first, so none may rest then
    assert all(rests(worker) for worker in ray.workers)
    pools.of(activations_config(100), tmp_path / "one", 1)
    assert not Path(ray.workers[0].lock).exists()
    assert rests(ray.workers[1])
    pools.close()
    assert not Path(ray.workers[1].lock).exists()


def test_a_rest_ends_when_the_lock_is_free(tmp_path, ray):
    worker = SourceWorker(activations_config(100).model_dump(mode="json"), str(tmp_path), 1, "fast")
    worker.rest(str(tmp_path / "gone"))
    lock = tmp_path / "lock"
    with lock.open("w") as file, ThreadPoolExecutor() as threads:
        fcntl.flock(file, fcntl.LOCK_EX)
        resting = threads.submit(worker.rest, str(lock))
        with pytest.raises(TimeoutError):
            resting.result(timeout=0.2)
        fcntl.flock(file, fcntl.LOCK_UN)
        resting.result(timeout=10)


def test_a_pool_grows_to_the_slots(tmp_path, ray):
    pools = pools_of(keeps_workers=True)
    pools.of(activations_config(100), tmp_path, 1)
    assert len(ray.workers) == 1
    pools.of(activations_config(100), tmp_path, 5)
    assert len(ray.workers) == 2


@pytest.mark.parametrize(("keeps_workers", "memory"), [(True, 16), (False, 0)])
def test_workers_that_trials_need_the_room_of_end(tmp_path, ray, monkeypatch, keeps_workers, memory):
    monkeypatch.setattr(workers.provenance, "memory_bytes", lambda: 200)
    ray.memory = memory
    pools = pools_of(keeps_workers)
    pool = pools.of(activations_config(100), tmp_path, 2)
    assert ray.options["num_cpus"] == (0 if keeps_workers else 1)
    pools.rest()
    assert all(worker.killed for worker in ray.workers)
    assert pools.of(activations_config(100), tmp_path, 2) is not pool


def test_a_worker_harvests_and_evaluates(tmp_path, ray):
    config = activations_config(20_000)
    for run_id, name in (("a", "topk"), ("b", "standard")):
        random_sae(name, d_in=config.d_in).eval().save_pretrained(tmp_path / run_id)
    cache = tmp_path / "cache"
    worker = SourceWorker(config.model_dump(mode="json"), str(cache), 1, "fast")
    worker.load()
    worker.prepare([(config.model_dump(mode="json"), str(cache))])
    assert worker.memory_bytes() > 2**20
    assert [worker.harvest(0), worker.harvest(1)] == [16_384, 3_616]
    assert worker.harvest(1) == 3_616  # there already
    finish(worker.source, cache)
    assert read_manifest(cache).n_tokens == 20_000
    sums, node = worker.evaluate(0, {run_id: str(tmp_path / run_id) for run_id in ("a", "b")})
    assert (sums.index, sums.n_tokens, set(sums.by_sae)) == (0, 512, {"a", "b"})
    assert node == {"versions": workers.provenance.versions(), "hardware": workers.provenance.hardware()}


def test_a_worker_has_the_threads_of_a_slot(tmp_path, ray):
    before = torch.get_num_threads()
    try:
        SourceWorker(activations_config(100).model_dump(mode="json"), str(tmp_path), before + 1, "fast")
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_a_worker_uses_the_gpu_that_ray_gave_it(tmp_path, monkeypatch):
    monkeypatch.setattr(workers.ray, "get_gpu_ids", lambda: [3])
    assert SourceWorker(activations_config(100).model_dump(mode="json"), str(tmp_path), 1, "fast").source.device == "cuda:0"
    monkeypatch.setattr(workers.ray, "get_gpu_ids", list)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert SourceWorker(activations_config(100).model_dump(mode="json"), str(tmp_path), 1, "fast").source.device == "cpu"
