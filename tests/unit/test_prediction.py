"""Times that `plan` tells: from finished runs, or measured now."""

import math

import pytest
from small_sweep import small_sweep

from sae_core import provenance
from sae_core.activations.synthetic import SyntheticSource
from sae_core.records import RunRecord
from sweeps.planning.plan import plan
from sweeps.planning.prediction import Costs, makespan, of_finished_runs
from sweeps.storage.store import Store


def write_finished_sweep(results, sweep, *, seconds, hardware=None, **facts):
    """Records of runs that took `seconds`, and a launch that harvested in 4 s and evaluated in 3 s."""
    store, runs = Store(results / sweep.name), sweep.runs()
    store.begin(sweep, runs)
    for run in runs:
        record = RunRecord(
            status="finished",
            d_in=16,
            metrics={"l0": run.sae.expected_l0},
            train_tokens=run.n_steps * run.train.batch_size,
            train_seconds=seconds,
            hardware=hardware or provenance.hardware(),
            launch=1,
            **run.identity,
        )
        store.write_record(record)
    store.note_stage("harvest", 4.0)
    store.note_stage("evaluate", 3.0)


@pytest.mark.parametrize(
    ("costs", "n_slots", "expected"), [([3.0, 2.0, 2.0], 2, 4.0), ([1.0, 1.0], 4, 1.0), ([], 3, 0.0), ([5.0, 1.0, 1.0, 1.0], 2, 5.0)]
)
def test_makespan(costs, n_slots, expected):
    assert makespan(costs, n_slots) == expected


def test_what_is_not_known(tmp_path):
    assert math.isnan(makespan([1.0, math.nan], 2))
    assert of_finished_runs(tmp_path / "nowhere") is None
    write_finished_sweep(tmp_path, small_sweep(name="elsewhere"), seconds=1.0, hardware="another machine")
    assert of_finished_runs(tmp_path) is None
    assert plan(small_sweep(), tmp_path, 1).lines()[-1].startswith("time        not known: no run finished on this hardware. `--measure`")
    assert Costs("x", lambda *_: math.nan).in_words({"harvest": 2.0, "training": math.nan}) == (
        "about 0:00:02 (harvest 0:00:02, training not known), predicted from x"
    )


def test_finished_runs_tell_the_time_of_a_larger_sweep(tmp_path):
    small = small_sweep(name="before", architectures={"topk": {"k": [2, 4]}})
    write_finished_sweep(tmp_path, small, seconds=3.0)
    wide = small_sweep(sae={"d_sae": 96}, architectures={"topk": {"k": [2, 4]}})
    # Two runs of twice the latents, one per slot: 6 s. The same harvest: 4 s. 3 s for 2 SAEs and the baselines, as before.
    told = "about 0:00:13 (harvest 0:00:04, training 0:00:06, evaluation 0:00:03), predicted from 2 finished runs on this hardware (before)"
    assert plan(wide, tmp_path, 2).lines()[-1] == f"time        {told}"
    stopped = small_sweep(sae={"d_sae": 96}, architectures={"topk": {"k": [2, 4]}}, early_stopping={})
    assert plan(stopped, tmp_path, 2).lines()[-1] == f"time        at most {told}"


def test_an_architecture_that_never_ran_is_not_known(tmp_path):
    write_finished_sweep(tmp_path, small_sweep(name="before", architectures={"topk": {"k": 2}}), seconds=3.0)
    assert "(harvest 0:00:04, training not known, evaluation 0:00:05)" in plan(small_sweep(), tmp_path, 1).lines()[-1]


def test_what_is_done_or_cached_takes_no_time(tmp_path):
    sweep = small_sweep(architectures={"topk": {"k": [2, 4]}})
    write_finished_sweep(tmp_path, sweep, seconds=3.0)
    assert "(harvest 0:00:00, training 0:00:00, evaluation 0:00:00)" in plan(sweep, tmp_path, 1).lines()[-1]
    more = small_sweep(architectures={"topk": {"k": [2, 4, 8]}})
    store = Store(tmp_path / "small")
    cache = store.paths.activations / SyntheticSource(sweep.runs()[0].activations).fingerprint()[:24]
    cache.mkdir(parents=True)
    (cache / "manifest.json").touch()
    lines = plan(more, tmp_path, 1).lines()
    assert lines[4] == "harvest     20,000 training tokens in 2 shards, all cached"
    assert "(harvest 0:00:00, training 0:00:03, evaluation 0:00:02)" in lines[-1]  # 3 s for 2 SAEs and 3 baselines: 2.4 s for one


def test_the_time_of_a_search(tmp_path):
    write_finished_sweep(tmp_path, small_sweep(name="before", architectures={"topk": {"k": [2, 4]}}), seconds=3.0)
    search = small_sweep(
        architectures={"topk": {"k": [2, 4]}}, train={"batch_size": 256, "lr": {"low": 1e-3, "high": 1e-2}}, search={"trials": 6}
    )
    # 6 trials in 2 slots: 9 s. 2.4 s for the SAE and the baselines of each.
    assert "(harvest 0:00:04, training 0:00:09, evaluation 0:00:14)" in plan(search, tmp_path, 2).lines()[-1]


@pytest.mark.slow
def test_measured_now(tmp_path):
    made = plan(small_sweep(), tmp_path / "results", 2, measure=True)
    assert made.costs is not None and "predicted from steps of each setting taken now" in made.lines()[-1]
    assert all(0 < seconds < 60 for seconds in (made.seconds or {}).values())
    assert list(tmp_path.iterdir()) == []
