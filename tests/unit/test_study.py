"""The study's bookkeeping, with Optuna itself; whole searches: tests/integration/test_launch_search.py."""

import dataclasses
import json
import math
import shutil

import pytest
from optuna.trial import TrialState
from small_sweep import small_sweep

from sae_core.errors import ConfigError
from sae_core.records import RunRecord
from sweeps.storage.store import Store
from sweeps.storage.study import Study, outcome_of

LR = {"low": 1e-3, "high": 3e-2, "log": True}


def sweep_of(**search):
    changes = {"train": {"batch_size": 256, "lr": LR}, "architectures": {"topk": {"k": [2, 4]}, "standard": {"l1_coefficient": 0.5}}}
    return small_sweep(**changes, search={"trials": 4, **search})


def record(run, status="finished", error=None, **metrics):
    told = error and {"type": error, "message": "told", "traceback": ""}
    return RunRecord(status=status, metrics=metrics, error=told, **run.identity)


def runs_of(study):
    return list({run.run_id: run for runs in study.groups() for run in runs}.values())


class Launch:
    """What a launch does with a study, one trial after another."""

    def __init__(self, directory, sweep=None, **search):
        sweep = sweep or sweep_of(**search)
        self.store = Store(directory / "small")
        self.study = Study(sweep.space(), sweep.search, self.store)
        self.store.begin(sweep, runs_of(self.study))
        self.study.open()

    def trial(self, status="finished", error=None, l0=2.0, fvu=0.5):
        """Propose a point, leave its records, and tell the study; returns the runs."""
        trial, runs = self.study.propose()
        self.store.add_runs(runs)
        for run in runs:
            self.store.write_record(record(run, status, error, l0=l0, fvu=fvu))
        self.study.conclude(trial, runs)
        return runs

    def kill(self):
        """Propose a point of which nothing comes."""
        return self.study.propose()[1]


@pytest.mark.parametrize(
    ("status", "error", "metrics", "state"),
    [
        ("pruned", "StoppedEarly", {}, TrialState.PRUNED),
        ("failed", "DivergedError", {}, TrialState.FAIL),
        ("finished", None, {"l0": 2.0, "fvu": None}, TrialState.FAIL),
        ("finished", None, {"l0": 2.0, "fvu": math.nan}, TrialState.FAIL),
    ],
)
def test_what_has_no_values_is_never_complete_and_counts(tmp_path, status, error, metrics, state):
    launch = Launch(tmp_path)
    (run,) = launch.trial(status, error, **metrics)
    assert outcome_of([record(run, status, error, **metrics)], ["l0", "fvu"]) == (state, None)
    assert launch.study.n_left() == 3


def test_means_over_the_seeds():
    first, second = small_sweep(seeds=[0, 1], architectures={"topk": {"k": 2}}).runs()
    done = [record(first, l0=2.0, fvu=0.2), record(second, l0=4.0, fvu=0.4)]
    assert outcome_of(done, ["l0", "fvu"]) == (TrialState.COMPLETE, [3.0, pytest.approx(0.3)])
    assert outcome_of([record(first, l0=0.0, fvu=1.0)], ["fvu", "l0"]) == (TrialState.COMPLETE, [1.0, 0.0])
    assert outcome_of([done[0], dataclasses.replace(done[1], status="pruned")], ["l0"]) == (TrialState.PRUNED, None)


@pytest.mark.parametrize("status", ["trained", None, "killed"])
def test_what_is_to_be_tried_again_has_no_outcome(status):
    first, second = small_sweep(seeds=[0, 1], architectures={"topk": {"k": 2}}).runs()
    lost = {"trained": record(second, "trained"), None: None, "killed": record(second, "failed", "ProcessDied")}[status]
    assert outcome_of([record(first, l0=2.0), lost], ["l0"]) is None


@pytest.mark.slow
def test_a_later_launch_continues_and_a_longer_one_extends(tmp_path):
    first = Launch(tmp_path)
    made = [run.run_id for _ in range(4) for run in first.trial()]
    assert first.study.n_left() == 0
    assert Launch(tmp_path).study.n_left() == 0
    longer = Launch(tmp_path, trials=6)
    assert longer.study.n_left() == 2
    made += [run.run_id for _ in range(2) for run in longer.trial()]
    assert longer.study.n_left() == 0
    assert [run.run_id for run in runs_of(longer.study)] == list(dict.fromkeys(made))
    assert [entry["run_id"] for entry in longer.store.facts()["runs"]] == list(dict.fromkeys(made))


@pytest.mark.slow
def test_a_later_launch_does_not_repeat_the_random_numbers(tmp_path):
    first = Launch(tmp_path, trials=9, sampler="random")
    points = [first.trial()[0].train.lr for _ in range(3)]
    second = Launch(tmp_path, trials=9, sampler="random")
    points += [second.trial()[0].train.lr for _ in range(3)]
    assert len(set(points)) == 6


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random"])
def test_the_seed_decides_the_proposals(tmp_path, sampler):
    def proposed(name, seed):
        launch = Launch(tmp_path / name, trials=20, sampler=sampler, seed=seed)
        return [launch.trial(l0=float(n), fvu=1 / (n + 1))[0].run_id for n in range(12)]

    assert proposed("a", 0) == proposed("b", 0) != proposed("c", 1)


def test_the_random_start_is_the_same_for_all_samplers(tmp_path):
    starts = [Launch(tmp_path / sampler, sampler=sampler).trial()[0].run_id for sampler in ("tpe", "nsga2", "random")]
    assert starts[0] == starts[1] == starts[2]


@pytest.mark.slow
def test_what_a_killed_launch_left_is_tried_again_and_not_counted(tmp_path):
    killed = Launch(tmp_path)
    killed.trial()
    runs = killed.kill()
    again = Launch(tmp_path)
    assert again.study.n_left() == 3
    assert again.trial() == runs
    # Once is enough.
    third = Launch(tmp_path)
    assert third.study.n_left() == 2
    assert third.trial() != runs


def test_a_failure_that_may_not_happen_again_is_tried_again(tmp_path):
    first = Launch(tmp_path)
    runs, lost = first.trial("failed", "ProcessDied"), first.kill()
    assert first.study.n_left() == 4
    again = Launch(tmp_path)
    assert [again.trial(), again.trial()] == [runs, lost]
    assert again.study.n_left() == 2


def test_points_to_evaluate_come_first_and_once(tmp_path):
    point = {"architectures": "topk", "architectures.topk.k": 4, "train.lr": 4e-3}
    points = {"points_to_evaluate": [point, {"architectures": "standard"}]}
    first = Launch(tmp_path, **points)
    (run,), (other,) = first.trial(), first.trial()
    assert (run.sae.architecture, run.sae.sparsity_value, run.train.lr) == ("topk", 4, 4e-3)
    assert other.sae.architecture == "standard"
    assert Launch(tmp_path, **points).trial()[0] not in (run, other)


def test_invalid_points_are_not_trained_and_not_counted(tmp_path, monkeypatch):
    launch = Launch(tmp_path)
    real, calls = type(launch.study.space).runs, []

    def runs(space, point):
        calls.append(point)
        if len(calls) <= 2:
            raise ConfigError("train.lr: no")
        return real(space, point)

    monkeypatch.setattr(type(launch.study.space), "runs", runs)
    launch.trial()
    assert len(calls) == 3
    assert launch.study.n_left() == 3
    monkeypatch.setattr(type(launch.study.space), "runs", lambda space, point: runs(space, calls.clear() or point))
    with pytest.raises(ConfigError, match=r"but got 100 invalid ones in a row\. The last one:\ntrain\.lr: no"):
        launch.kill()


DAMAGE = {
    "empty": lambda content: b"",
    "binary": lambda content: b"\xff\x00" * 100 + b"\n",
    "garbage at the end": lambda content: content + b"garbage\n{}\n",
    "half": lambda content: content[: len(content) // 2],
    "a flipped digit": lambda content: content.replace(b"0.00", b"0.01", 1),
    "no points": lambda content: b'{"points": 3}',
    "strange points": lambda content: b'{"points": [{"architectures": "topk", "architectures.topk.k": 3, "train.lr": 0.01}, "x"]}',
    "deep nesting": lambda content: b"[" * 100_000,
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.slow
def test_a_damaged_study_is_found_again_by_its_records(tmp_path, damage, caplog):
    first = Launch(tmp_path)
    runs = [*first.trial(l0=2.0), *first.trial(l0=3.0)]
    content = DAMAGE[damage](first.study.file.read_bytes())
    first.study.file.write_bytes(content)
    # As `plan` does: nothing is written.
    assert Study(first.study.space, first.study.config, first.store).n_left() == 2
    assert first.study.file.read_bytes() == content
    again = Launch(tmp_path)
    aside = first.study.file.with_name(f"{first.study.file.name}.damaged")
    assert aside.read_bytes() == content
    assert [message for message in caplog.messages if f"{first.study.file} was renamed to {aside.name}: " in message]
    assert {run.run_id for run in runs_of(again.study)} == {run.run_id for run in runs}
    assert again.trial()[0] not in runs
    assert Launch(tmp_path).study.n_left() == 1


def test_a_directory_in_the_place_of_the_study(tmp_path):
    launch = Launch(tmp_path)
    launch.trial()
    launch.study.file.unlink()
    launch.study.file.mkdir()
    assert Launch(tmp_path).study.n_left() == 3
    shutil.rmtree(launch.study.file.parent)
    launch.study.file.parent.write_text("a file")
    assert Launch(tmp_path).study.n_left() == 3
    assert (launch.study.file.parent.with_name("search.damaged")).read_text() == "a file"


def test_trials_of_an_earlier_version_are_found_by_their_records(tmp_path):
    """It kept a journal of Optuna."""
    first = Launch(tmp_path)
    runs = [first.trial()[0] for _ in range(3)]
    first.store.write_record(record(small_sweep(name="small", architectures={"topk": {"k": 3}}).runs()[0]))  # of a grid
    first.study.file.rename(first.study.file.with_name(f"{first.study.file.stem}-v2.log"))
    again = Launch(tmp_path)
    assert {run.run_id for run in runs_of(again.study)} == {run.run_id for run in runs}
    assert again.study.n_left() == 1
    assert json.loads(again.study.file.read_text())["objectives"] == ["l0", "fvu"]


def test_another_space_is_another_study(tmp_path):
    Launch(tmp_path).trial()
    sweep = sweep_of()
    other = Study(sweep.model_copy(update={"train": {"batch_size": 128, "lr": LR}}).space(), sweep.search, Store(tmp_path / "small"))
    assert (other.n_left(), runs_of(other)) == (4, [])


@pytest.mark.slow
def test_after_the_random_start_targets_take_turns(tmp_path):
    sweep = small_sweep(train={"batch_size": 256, "lr": LR}, target_l0=[2, 4, 8], architectures={"topk": {}}, search={"trials": 16})
    launch = Launch(tmp_path, sweep)
    asked = [launch.trial(l0=float(n + 1), fvu=1 / (n + 1))[0].sae.target_l0 for n in range(16)]
    assert asked[10:] == [4, 8, 2, 4, 8, 2]
