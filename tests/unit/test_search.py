"""The study's bookkeeping, with Optuna itself and without Ray's loop around it; tests/ray has the real thing."""

import dataclasses
import json
import math
import shutil

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from small_sweep import small_sweep

from sae_core.errors import ConfigError
from sae_core.records import RunRecord
from sweeps.execution.search import Study, SweepSearch, outcome
from sweeps.storage.store import Store

LR = {"low": 1e-3, "high": 3e-2, "log": True}


def sweep_of(**search):
    changes = {"train": {"batch_size": 256, "lr": LR}, "architectures": {"topk": {"k": [2, 4]}, "standard": {"l1_coefficient": 0.5}}}
    return small_sweep(**changes, search={"trials": 4, **search})


def record(run, status="finished", error=None, **metrics):
    told = error and {"type": error, "message": "told", "traceback": ""}
    return RunRecord(run.run_id, status, run.model_dump(mode="json"), "topk", "k", 2.0, run.seed, metrics=metrics, error=told)


class Launch:
    """What a launch does with a study, one trial after another."""

    def __init__(self, directory, sweep=None, **search):
        sweep = sweep or sweep_of(**search)
        self.store = Store(directory / "small")
        self.study = Study(sweep.space(), sweep.search, self.store.paths.search)
        self.store.begin(sweep, self.study.runs())
        self.study.open()
        self.search = SweepSearch(self.study, self.store, lambda runs: {"runs": [run.run_id for run in runs]})
        self.n = 0

    def propose(self):
        self.n += 1
        trial_id = f"{id(self)}-{self.n}"
        self.search.suggest(trial_id)
        return trial_id, self.search.points[trial_id]

    def trial(self, status="finished", error=None, l0=2.0, fvu=0.5):
        """Propose a point, leave its records, and tell the study; returns the runs."""
        trial_id, runs = self.propose()
        for run in runs:
            self.store.write_record(record(run, status, error, l0=l0, fvu=fvu))
        self.search.on_trial_complete(trial_id, {})
        return runs

    def states(self):
        return [trial.state.name for trial in self.study.trials()]


def test_a_trial_is_complete_with_the_values_of_its_record(tmp_path):
    launch = Launch(tmp_path)
    (run,) = launch.trial(l0=3.5, fvu=0.25)
    (trial,) = launch.study.trials()
    assert (trial.state, trial.values) == (TrialState.COMPLETE, [3.5, 0.25])
    assert trial.user_attrs == {"run_ids": [run.run_id]}
    (row,) = [json.loads(line) for line in launch.study.file.read_text().splitlines() if '"values": [' in line]
    assert row["values"] == [3.5, 0.25]


def test_samplers_see_l0_in_octaves(tmp_path):
    launch = Launch(tmp_path, objectives=["fvu", "l0"])
    for l0 in (8.0, 0.0):
        launch.trial(l0=l0, fvu=0.25)
    launch.trial("pruned", "StoppedEarly")
    study = optuna.load_study(study_name=launch.study.name, storage=launch.study.storage())
    assert [trial.values for trial in study.get_trials()] == [[0.25, 3.0], [0.25, math.log2(0.1)], None]
    assert [trial.values for trial in study.get_trials(deepcopy=False)][:1] == [[0.25, 3.0]]
    assert launch.study.storage().get_trial(0).values == [0.25, 3.0]
    assert [trial.values for trial in launch.study.trials()] == [[0.25, 8.0], [0.25, 0.0], None]


@pytest.mark.parametrize(
    ("status", "error", "metrics", "state"),
    [
        ("pruned", "StoppedEarly", {}, "PRUNED"),
        ("failed", "DivergedError", {}, "FAIL"),
        ("finished", None, {"fvu": None}, "FAIL"),
        ("finished", None, {"fvu": math.nan}, "FAIL"),
    ],
)
def test_what_has_no_values_is_never_complete_and_counts(tmp_path, status, error, metrics, state):
    launch = Launch(tmp_path)
    launch.trial(status, error, **metrics)
    assert launch.states() == [state]
    assert (launch.study.n_counted(), launch.study.n_left()) == (1, 3)


def test_means_over_the_seeds():
    first, second = small_sweep(seeds=[0, 1], architectures={"topk": {"k": 2}}).runs()
    done = [record(first, l0=2.0, fvu=0.2), record(second, l0=4.0, fvu=0.4)]
    assert outcome(done, ["l0", "fvu"]) == (TrialState.COMPLETE, [3.0, pytest.approx(0.3)])
    assert outcome([record(first, l0=0.0, fvu=1.0)], ["fvu", "l0"]) == (TrialState.COMPLETE, [1.0, 0.0])
    assert outcome([done[0], dataclasses.replace(done[1], status="pruned")], ["l0"]) == (TrialState.PRUNED, None)
    assert outcome([done[0], dataclasses.replace(done[1], status="trained")], ["l0"]) == (TrialState.FAIL, None)
    assert outcome([done[0], None], ["l0"]) == (TrialState.FAIL, None)


def test_a_later_launch_goes_on_and_a_longer_one_extends(tmp_path):
    first = Launch(tmp_path)
    made = [run.run_id for _ in range(4) for run in first.trial()]
    assert first.study.n_left() == 0
    assert Launch(tmp_path).study.n_left() == 0
    longer = Launch(tmp_path, trials=6)
    assert longer.study.n_left() == 2
    made += [run.run_id for _ in range(2) for run in longer.trial()]
    assert longer.study.n_left() == 0
    assert [run.run_id for run in longer.study.runs()] == list(dict.fromkeys(made))
    assert [entry["run_id"] for entry in longer.store.facts()["runs"]] == list(dict.fromkeys(made))


def test_a_later_launch_does_not_repeat_the_random_numbers(tmp_path):
    first = Launch(tmp_path, trials=9, sampler="random")
    points = [first.trial()[0].train.lr for _ in range(3)]
    second = Launch(tmp_path, trials=9, sampler="random")
    points += [second.trial()[0].train.lr for _ in range(3)]
    assert len(set(points)) == 6


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random"])
def test_the_seed_decides_the_proposals(tmp_path, sampler):
    def proposed(name, seed):
        launch = Launch(tmp_path / name, trials=20, sampler=sampler, seed=seed)
        return [launch.trial(l0=float(n), fvu=1 / (n + 1))[0].run_id for n in range(12)]

    assert proposed("a", 0) == proposed("b", 0) != proposed("c", 1)


def test_the_random_start_is_the_same_for_all_samplers(tmp_path):
    starts = [[Launch(tmp_path / sampler, sampler=sampler).trial()[0].run_id for _ in range(1)] for sampler in ("tpe", "nsga2", "random")]
    assert starts[0] == starts[1] == starts[2]


def test_what_a_killed_launch_left_is_tried_again_and_not_counted(tmp_path):
    killed = Launch(tmp_path)
    killed.trial()
    _, runs = killed.propose()
    again = Launch(tmp_path)
    assert again.states() == ["COMPLETE", "FAIL", "WAITING"]
    assert again.study.n_left() == 3
    assert again.trial() == runs
    # Once is enough.
    third = Launch(tmp_path)
    assert third.states() == ["COMPLETE", "FAIL", "COMPLETE"]
    assert third.study.n_left() == 2


def test_a_failure_that_may_not_happen_again_is_tried_again(tmp_path):
    first = Launch(tmp_path)
    runs = first.trial("failed", "ActorDiedError")
    trial_id, lost = first.propose()
    first.search.on_trial_complete(trial_id, error=True)
    assert first.study.n_left() == 4
    again = Launch(tmp_path)
    assert [again.trial(), again.trial()] == [runs, lost]
    assert again.study.n_left() == 2


def test_points_to_evaluate_come_first_and_once(tmp_path):
    point = {"architectures": "topk", "architectures.topk.k": 4, "train.lr": 4e-3}
    first = Launch(tmp_path, points_to_evaluate=[point, {"architectures": "standard"}])
    (run,), (other,) = first.trial(), first.trial()
    assert (run.sae.architecture, run.sae.sparsity_value, run.train.lr) == ("topk", 4, 4e-3)
    assert other.sae.architecture == "standard"
    again = Launch(tmp_path, points_to_evaluate=[point, {"architectures": "standard"}])
    assert again.states() == ["COMPLETE", "COMPLETE"]


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
    assert launch.states() == ["FAIL", "FAIL", "COMPLETE"]
    assert launch.study.n_left() == 3
    calls[:] = []
    monkeypatch.setattr(type(launch.study.space), "runs", lambda space, point: runs(space, calls.clear() or point))
    with pytest.raises(ConfigError, match=r"but got 100 invalid ones in a row\. The last one:\ntrain\.lr: no"):
        launch.propose()


def test_half_a_line_at_the_end_does_not_disturb(tmp_path, caplog):
    launch = Launch(tmp_path)
    launch.trial()
    with launch.study.file.open("a") as file:
        file.write('{"op_code":')
    again = Launch(tmp_path)
    again.trial()
    assert Launch(tmp_path).states() == ["COMPLETE", "COMPLETE"]
    assert caplog.messages == []


def flipped(content):
    """A digit in the middle of the last value of the second trial is another one."""
    place = content.rindex(b'"values": [') + len(b'"values": [')
    return content[:place] + b"7" + content[place + 1 :]


def without_a_line(content):
    lines = content.splitlines(keepends=True)
    return b"".join(lines[:3] + lines[4:])


DAMAGE = {
    "empty": (lambda content: b"", 0),
    "binary": (lambda content: b"\xff\x00" * 100 + b"\n", 0),
    "garbage at the end": (lambda content: content + b"garbage\n{}\n", 2),
    "garbage at the start": (lambda content: b"{}\n" + content, 0),
    "a flipped digit": (flipped, 2),
    "a line less": (without_a_line, 1),
    "half": (lambda content: content[: content.index(b'"values": [')], 1),
    "deep nesting": (lambda content: content + b"[" * 100_000 + b"\n", 2),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_study_keeps_the_trials_before_the_damage(tmp_path, damage, caplog):
    first = Launch(tmp_path)
    runs = [*first.trial(l0=2.0), *first.trial(l0=3.0)]
    damaged, n_kept = DAMAGE[damage]
    content = damaged(first.study.file.read_bytes())
    first.study.file.write_bytes(content)
    study = Study(first.study.space, first.study.config, first.store.paths.search)  # as `plan` does
    assert len(study.trials()) == n_kept
    assert study.n_counted() <= n_kept
    assert first.study.file.read_bytes() == content
    again = Launch(tmp_path)
    kept = [trial.values for trial in again.study.trials() if trial.values]
    assert kept == [[2.0, 0.5], [3.0, 0.5]][: len(kept)] and again.study.n_counted() == len(kept)
    aside = first.study.file.with_name(f"{first.study.file.name}.damaged")
    if damage == "half":  # as a kill leaves it
        assert not aside.exists() and caplog.messages == []
    else:
        assert aside.read_bytes() == content
        lost, renamed = caplog.messages[0], caplog.messages[-1]
        assert lost.startswith(f"trials of the study in {first.study.file} are lost, and count again when they are proposed again: ")
        assert renamed.startswith(f"{first.study.file} was renamed to {aside.name}: ")
    # What was lost is proposed again, before anything new; a trial of which only a part is left may have another point than it had.
    proposed = [again.trial()[0].run_id for _ in range(3)]
    assert {run.run_id for run in runs[len(kept) :]} <= set(proposed)
    assert Launch(tmp_path).study.n_counted() == len(kept) + 3


def test_the_journal_of_another_study_is_none(tmp_path):
    first, other = Launch(tmp_path / "a"), Launch(tmp_path / "b", objectives=["fvu"])
    other.trial()
    first.study.file.write_bytes(other.study.file.read_bytes())
    assert first.study.trials() == []
    assert Launch(tmp_path / "a").states() == []


def test_a_directory_in_the_place_of_the_journal(tmp_path, caplog):
    study = Launch(tmp_path).study
    study.file.unlink()
    study.file.mkdir()
    assert study.n_left() == 4
    assert Launch(tmp_path).states() == []
    assert "Is a directory" in caplog.text
    shutil.rmtree(study.file.parent)
    study.file.parent.write_text("a file")
    assert study.n_left() == 4
    assert Launch(tmp_path).states() == []
    assert (study.file.parent.with_name("search.damaged")).read_text() == "a file"


def test_a_study_that_optuna_cannot_read(tmp_path, monkeypatch):
    study = Launch(tmp_path).study
    monkeypatch.setattr("sweeps.execution.search.optuna.load_study", lambda **_: 1 / 0)
    with pytest.raises(ConfigError, match=rf"a study must be readable, but got '{study.file}': ZeroDivisionError.*Move it away"):
        study.trials()


def test_studies_of_earlier_versions_are_left_alone(tmp_path):
    launch = Launch(tmp_path)
    old = launch.study.file.with_name(launch.study.file.name.replace("-v2", ""))
    old.write_text('{"op_code": 0, "study_name": "old"}\n')
    assert Launch(tmp_path).states() == []
    assert Launch(tmp_path).states() == []
    assert old.read_text() == '{"op_code": 0, "study_name": "old"}\n'


def test_records_of_a_study_of_an_earlier_version_are_found_again(tmp_path):
    first = Launch(tmp_path)
    runs = [first.trial()[0] for _ in range(3)]
    first.store.write_record(record(small_sweep(name="small", architectures={"topk": {"k": 3}}).runs()[0]))  # of a grid
    first.study.file.rename(first.study.file.with_name(first.study.file.name.replace("-v2", "")))
    again = Launch(tmp_path)
    assert {again.trial()[0].run_id for _ in range(3)} == {run.run_id for run in runs}
    assert again.study.n_left() == 1


def test_optuna_itself_reads_the_journal(tmp_path):
    study = Launch(tmp_path).study
    launch = Launch(tmp_path)
    launch.trial(l0=3.0)
    storage = JournalStorage(JournalFileBackend(str(study.file)))
    (trial,) = optuna.load_study(study_name=study.name, storage=storage).get_trials()
    assert trial.values == [3.0, 0.5]


def test_another_space_is_another_study(tmp_path):
    Launch(tmp_path).trial()
    sweep = sweep_of()
    other = Study(
        sweep.model_copy(update={"train": {"batch_size": 128, "lr": LR}}).space(), sweep.search, Store(tmp_path / "small").paths.search
    )
    assert (other.n_left(), other.runs()) == (4, [])


def test_ray_neither_saves_the_search_nor_asks_for_metrics(tmp_path):
    search = Launch(tmp_path).search
    assert search.metric is None
    search.save(str(tmp_path / "state"))
    assert not (tmp_path / "state").exists()
    assert search.__getstate__() == {}


def test_after_the_random_start_targets_take_turns(tmp_path):
    sweep = small_sweep(train={"batch_size": 256, "lr": LR}, target_l0=[2, 4, 8], architectures={"topk": {}}, search={"trials": 16})
    launch = Launch(tmp_path, sweep)
    for n in range(16):
        launch.trial(l0=float(n + 1), fvu=1 / (n + 1))
    assert [trial.params["target_l0"] for trial in launch.study.trials()][10:] == [4, 8, 2, 4, 8, 2]
