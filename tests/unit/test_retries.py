"""Trials that fail: started again, or split where memory was short; in the end a run fails alone."""

from collections import Counter

import pytest
from inline import launch
from small_sweep import result_of, small_sweep

from sae_core import trainable
from sae_core.training import loop
from sweeps.execution.training import RETRIES
from sweeps.storage.store import Store
from sweeps.storage.study import Study

TINY = {"activations": {"source": "synthetic", "d_in": 8, "train_tokens": 2000, "eval_tokens": 500}, "sae": {"d_sae": 16}}
N_RUNS = 8
GRID = {**TINY, "architectures": {"topk": {"k": list(range(1, N_RUNS + 1))}}}


@pytest.fixture(autouse=True)
def _without_report(monkeypatch):
    monkeypatch.setattr("analysis.report.write_report", lambda *_: None)


@pytest.fixture
def failing(monkeypatch):
    """Have groups fail: `failing(when)` with a function of the runs that returns what to raise, or None. Returns the groups so far."""
    train_group = trainable.train_group

    def install(error_of):
        groups = []

        def train(runs, *arguments, **options):
            groups.append([run.run_id for run in runs])
            if error := error_of(groups[-1]):
                raise error
            return train_group(runs, *arguments, **options)

        monkeypatch.setattr(trainable, "train_group", train)
        return groups

    return install


def records(tmp_path):
    return Store(tmp_path / "small").records()


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("no room"),
        loop.torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
@pytest.mark.slow
def test_a_group_without_memory_is_split_until_a_run_fails_alone(tmp_path, failing, error, capsys):
    undisturbed = launch(small_sweep(name="undisturbed", **GRID), results=tmp_path)
    large = small_sweep(**GRID).runs()[2].run_id
    groups = failing(lambda runs: error if len(runs) > 2 or large in runs else None)
    done = launch(small_sweep(**GRID), results=tmp_path)
    assert (done.finished, list(done.failed), done.missing) == (N_RUNS - 1, [large], [])
    assert done.failed[large].startswith(type(error).__name__)
    assert max(Counter(run for group in groups for run in group).values()) <= 3
    assert groups.count([large]) == 1
    for run_id, record in records(tmp_path).items():
        if record.status == "finished":
            assert result_of(done.directory / "runs" / run_id) == result_of(undisturbed.directory / "runs" / run_id)
    assert "SAEs are trained again, in two groups" in capsys.readouterr().err


@pytest.mark.slow
def test_a_step_without_memory_is_the_failure_of_its_group(tmp_path, monkeypatch):
    """Unless the run is alone: then it fails, and its trial is not started again."""
    train_step = loop.Learner.train_step

    def step(learner, *batch):
        if learner.run.sae.k == 3:
            raise MemoryError("no room")
        train_step(learner, *batch)

    monkeypatch.setattr(loop.Learner, "train_step", step)
    done = launch(small_sweep(**GRID), results=tmp_path)
    assert done.finished == N_RUNS - 1
    assert list(done.failed.values()) == ["MemoryError: no room"]
    attempts = {record.config["sae"]["k"]: record.attempts for record in records(tmp_path).values()}
    assert attempts[3] > 1 and max(attempts.values()) <= 3 and 1 in attempts.values()


def test_a_trial_that_fails_is_started_again_a_few_times(tmp_path, failing, capsys):
    groups = failing(lambda runs: OSError(5, "Input/output error") if len(groups) <= RETRIES else None)
    sweep = small_sweep(**TINY, architectures={"topk": {"k": 2}})
    assert launch(sweep, results=tmp_path).finished == 1
    (record,) = records(tmp_path).values()
    assert (len(groups), record.attempts) == (RETRIES + 1, RETRIES + 1)
    assert f"retry {RETRIES} of {RETRIES}: OSError: [Errno 5] Input/output error" in capsys.readouterr().err


def test_at_last_its_runs_have_failed(tmp_path, failing):
    groups = failing(lambda runs: OSError(5, "Input/output error"))
    sweep = small_sweep(**TINY, architectures={"topk": {"k": 2}})
    done = launch(sweep, results=tmp_path)
    assert list(done.failed.values()) == ["OSError: [Errno 5] Input/output error"]
    (record,) = records(tmp_path).values()
    assert (len(groups), record.attempts) == (RETRIES + 1, RETRIES + 1)
    assert "Traceback" in record.error["traceback"]


def test_what_was_saved_in_between_starts_the_count_anew(tmp_path, failing):
    """As long as each attempt gets further than the one before, a trial may be killed any number of times."""
    sweep = small_sweep(**TINY, architectures={"topk": {"k": 2}})
    checkpoint = tmp_path / "small" / "runs" / sweep.runs()[0].run_id / "checkpoint.safetensors"

    def error_of(runs):
        if len(groups) <= 3 * RETRIES:
            checkpoint.parent.mkdir(parents=True, exist_ok=True)
            checkpoint.write_bytes(b"damaged, but new")
            return OSError("killed")
        return None

    groups = failing(error_of)
    assert launch(sweep, results=tmp_path).finished == 1
    assert len(groups) == 3 * RETRIES + 1


@pytest.mark.parametrize(
    ("error_of", "sizes"),
    [
        (lambda groups: MemoryError("no room") if len(groups[-1]) > 1 else None, [2, 1, 1, 2, 1, 1]),
        (lambda groups: OSError(5, "blip") if groups.count(groups[-1]) == 1 else None, [2, 2, 2, 2]),
    ],
)
@pytest.mark.slow
def test_a_point_of_a_search_that_failed_at_first_is_concluded_once(tmp_path, failing, monkeypatch, error_of, sizes):
    conclude, concluded = Study.conclude, []
    monkeypatch.setattr(Study, "conclude", lambda *arguments: concluded.append(arguments) or conclude(*arguments))
    groups = failing(lambda runs: error_of(groups))
    sweep = small_sweep(
        **TINY,
        train={"batch_size": 256, "lr": {"low": 1e-3, "high": 3e-2}},
        architectures={"topk": {"k": 2}},
        seeds=[0, 1],
        search={"trials": 2},
    )
    done = launch(sweep, results=tmp_path)
    assert (done.finished, done.failed, done.missing) == (4, {}, [])
    assert [len(group) for group in groups] == sizes
    assert len(concluded) == 2
