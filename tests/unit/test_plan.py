import pytest

from sae_core import plugins
from sae_core.activations.synthetic import SyntheticSource
from sae_core.errors import ConfigError
from sae_core.records import RunRecord
from sweeps.definition.sweep import Sweep
from sweeps.demo.corpus import demo_text_file
from sweeps.planning.plan import plan
from sweeps.storage.store import Store


def sweep(**changes):
    definition = {
        "name": "small",
        "activations": {"source": "synthetic", "d_in": 32, "train_tokens": 10_000, "eval_tokens": 1000},
        "sae": {"d_sae": 64},
        "train": {"batch_size": 512},
        "architectures": {"topk": {"k": [2, 4, 8, 16]}, "standard": {"l1_coefficient": 0.5}},
    }
    return Sweep(**{**definition, **changes})


def write_record(store, run, status, error=None):
    told = error and {"type": error, "message": "", "traceback": ""}
    store.write_record(RunRecord(status=status, error=told, **run.identity))


def test_a_fresh_sweep(tmp_path):
    made = plan(sweep(), tmp_path, n_slots=1)
    assert [run.setting for run in made.runs] == [
        "topk k=2 seed=0",
        "topk k=4 seed=0",
        "topk k=8 seed=0",
        "topk k=16 seed=0",
        "standard l1_coefficient=0.5 seed=0",
    ]
    assert {run.state for run in made.runs} == {"missing"}
    assert {run.group for run in made.runs} == {1, 2, 3}
    # 19 whole batches of 512 tokens.
    assert {run.tokens for run in made.runs} == {9_728}
    assert made.flops == 5 * 12 * 32 * 64 * 9_728
    assert (made.harvest_tokens, made.eval_tokens) == (10_000, 1_000)
    assert made.activations_bytes == 10_000 * 32 * 4
    assert made.results_bytes == 5 * (2 * 32 * 64 + 64 + 32) * 4


def test_runs_that_differ_in_a_field_which_configs_leave_out_are_told_apart(tmp_path):
    data = {"dataset": "demo", "train_tokens": 2_000, "eval_tokens": 200, "exclude_high_norm": [None, 10]}
    model = {"name": "demo", "hook_point": "blocks.0.hook_resid_post"}
    made = plan(sweep(activations=None, model=model, data=data, architectures={"topk": {"k": 2}}), tmp_path, n_slots=1)
    assert [run.setting for run in made.runs] == ["topk k=2 exclude_high_norm=None seed=0", "topk k=2 exclude_high_norm=10.0 seed=0"]


def test_runs_are_told_apart(tmp_path):
    made = plan(
        sweep(
            train={"batch_size": 512, "lr": [1e-3, 4e-3]},
            target_l0=[4, 8],
            architectures={"topk": {}, "jumprelu": {"target_l0": 4, "lr": 1e-3, "bandwidth": [0.1, 0.2]}},
        ),
        tmp_path,
        n_slots=1,
    )
    assert [run.setting for run in made.runs] == [
        "topk target_l0=4 lr=0.001 seed=0",
        "topk target_l0=4 lr=0.004 seed=0",
        "topk target_l0=8 lr=0.001 seed=0",
        "topk target_l0=8 lr=0.004 seed=0",
        "jumprelu target_l0=4 bandwidth=0.1 seed=0",
        "jumprelu target_l0=4 bandwidth=0.2 seed=0",
    ]


def test_nothing_is_written(tmp_path):
    plan(sweep(), tmp_path / "results", n_slots=2)
    assert list(tmp_path.iterdir()) == []


def test_what_is_done_is_not_trained_again(tmp_path):
    store = Store(tmp_path / "small")
    runs = sweep().runs()
    store.begin(sweep(), runs)
    write_record(store, runs[0], "finished")
    write_record(store, runs[1], "trained")
    write_record(store, runs[2], "failed", "DivergedError")
    write_record(store, runs[3], "failed", "WorkerDiedError")
    made = plan(sweep(), tmp_path, n_slots=1)
    assert [run.state for run in made.runs] == ["finished", "trained", "failed", "failed", "missing"]
    assert [run.group is not None for run in made.runs] == [False, False, False, True, True]
    assert made.flops == 2 * 12 * 32 * 64 * 9_728
    words = [line.split(" FLOPs  ")[1] for line in made.lines()[1:6]]
    assert words[:3] == ["done", "to evaluate", "failed"]
    assert words[3].startswith("failed, to do (group ")
    assert words[4].startswith("to do (group ")


def test_with_early_stopping_every_run_is_a_group(tmp_path):
    made = plan(sweep(early_stopping={}), tmp_path, n_slots=1)
    assert len(made.groups) == len(made.runs) == 5
    store = Store(tmp_path / "small")
    store.begin(sweep(), sweep().runs())
    write_record(store, sweep().runs()[0], "pruned", "StoppedEarly")
    made = plan(sweep(early_stopping={}), tmp_path, n_slots=1)
    assert (made.runs[0].state, made.runs[0].group, len(made.groups)) == ("pruned", None, 4)
    assert made.lines()[1].endswith(" FLOPs  pruned")


def test_all_done(tmp_path):
    store = Store(tmp_path / "small")
    store.begin(sweep(), sweep().runs())
    for run in sweep().runs():
        write_record(store, run, "finished")
    made = plan(sweep(), tmp_path, n_slots=2)
    assert (len(made.groups), made.memory_bytes, made.flops) == (0, 0, 0)
    assert made.lines()[0] == f"Sweep small: 5 runs, 0 to train. Results in {tmp_path / 'small'}"


def test_axes_over_activations(tmp_path):
    wide = sweep(activations={"source": "synthetic", "d_in": [16, 32], "train_tokens": 10_000, "eval_tokens": 1000})
    made = plan(wide, tmp_path, n_slots=1)
    assert made.harvest_tokens == 20_000
    assert made.activations_bytes == 10_000 * (16 + 32) * 4
    assert {run.flops for run in made.runs} == {12 * 16 * 64 * 9_728, 12 * 32 * 64 * 9_728}


def test_text(tmp_path):
    made = plan(sweep(), tmp_path, n_slots=3)
    text = made.lines()
    assert len(text) == 1 + 5 + 6
    first = made.runs[0]
    assert text[1] == f"{first.run_id:<21}  topk k=2 seed=0{' ' * 19}        9,728 tokens  2.4e+08 FLOPs  to do (group {first.group})"
    assert text[-6:-3] == [
        "harvest     10,000 training tokens in 1 shards, once for all runs",
        "evaluation  1,000 held-out tokens",
        "training    1.2e+09 FLOPs in 5 groups on 3 slots",
    ]
    assert text[-2] == "disk        1 MiB for activations, 0 MiB for results"


def test_another_sweep_stands_there(tmp_path):
    store = Store(tmp_path / "small")
    store.begin(sweep(), sweep().runs())
    other = sweep(activations={"source": "synthetic", "d_in": 16, "train_tokens": 10_000, "eval_tokens": 1000})
    with pytest.raises(ConfigError, match="d_in is 32 there and 16 here"):
        plan(other, tmp_path, n_slots=1)


def test_what_the_source_finds_wrong_is_told(tmp_path, monkeypatch):
    def check(self):
        raise ConfigError("`model.hook_point` must be one of ['a'], but got 'b'.")

    monkeypatch.setattr(SyntheticSource, "check", check)
    with pytest.raises(ConfigError, match=r"`model\.hook_point` must be one of \['a'\], but got 'b'"):
        plan(sweep(), tmp_path, n_slots=1)


def test_the_demo_text_made_for_the_check_is_thrown_away(tmp_path, monkeypatch):
    seen = []

    def stand_in(config, cache):
        seen.append(cache)
        return config

    monkeypatch.setattr("sweeps.planning.inputs.locate", stand_in)
    plan(sweep(), tmp_path, n_slots=1)
    assert not seen[0].exists()
    kept = demo_text_file(tmp_path / ".activations")
    kept.parent.mkdir()
    kept.touch()
    plan(sweep(), tmp_path, n_slots=1)
    assert seen[1] == tmp_path / ".activations"


def test_plugins_that_will_be_imported_are_named(tmp_path, monkeypatch):
    plugin = plugins.Plugin("/home/me/my_sae.py", "my_sae.py", "0123456789abcdef", tmp_path, frozenset())
    monkeypatch.setattr(plugins, "loaded", lambda: [plugin])
    assert "plugins     my_sae.py (01234567)" in plan(sweep(), tmp_path, n_slots=1).lines()
