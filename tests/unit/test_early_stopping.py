import json

import pytest
from small_runs import activations_config, run_of

from sae_core.config.run import ARCHITECTURES, RunConfig, TrainConfig
from sae_core.errors import ConfigError
from sae_core.files import read_json_lines, write_text
from sweeps.definition.sections import EarlyStoppingConfig
from sweeps.definition.sweep import Sweep
from sweeps.execution.early_stopping import AtRung, EarlyStopping, at_rung, dominating
from sweeps.storage.store import Store, record_without_result

CONFIG = EarlyStoppingConfig()
FACTS = {"hardware": "a machine"}


def shown(name="mine", density=32.0, l0=32.0, mse=1.0, aims=True, comparable="topk", setting=None):
    return AtRung(name, comparable, setting or name, density, aims, l0, mse)


def test_the_worse_of_two_runs_of_one_sparsity_stops():
    better, worse = shown("a", mse=1.0), shown("b", mse=1.1)
    assert dominating(worse, [better], CONFIG) == better
    assert dominating(better, [worse], CONFIG) is None
    assert dominating(better, [], CONFIG) is None


@pytest.mark.parametrize("repeats", ["seed", "data_seed"])
def test_seeds_and_orders_of_one_setting_do_not_stop_each_other(store, repeats):
    lucky, unlucky = (run_of("topk", n_steps=100, lr=1e-3).model_copy(update={repeats: n}) for n in (0, 1))
    better = run_of("topk", n_steps=100, lr=1e-2, seed=0)
    stopping = EarlyStopping(EarlyStoppingConfig(rungs=[0.5]), store, [])
    for run, error in ((lucky, 1.0), (unlucky, 2.0), (better, 0.5)):
        write_history(store, run, error)
    assert not stopping.stops([lucky], 0.5, FACTS)
    assert not stopping.stops([unlucky], 0.5, FACTS)
    assert not stopping.stops([better], 0.5, FACTS)
    assert stopping.stops([unlucky], 0.5, FACTS)
    assert f"by {better.run_id}" in store.read_record(unlucky.run_id).error["message"]


def test_equal_runs_both_go_on():
    assert dominating(shown("a"), [shown("b")], CONFIG) is None


def test_the_best_third_goes_on():
    # Six runs, of which two are kept: the second best may go on, the third may not.
    others = [shown(str(mse), mse=mse) for mse in (1.0, 3.0, 4.0, 5.0, 6.0)]
    assert dominating(shown(mse=2.0), others, CONFIG) is None
    assert dominating(shown(mse=3.5), others, CONFIG).mse == 1.0
    assert dominating(shown(mse=2.0), others, EarlyStoppingConfig(reduction_factor=6)) is not None


@pytest.mark.parametrize("aims", [True, False])
@pytest.mark.parametrize("density", [32.1 * 1.05, 40, 64, 1000])
def test_denser_runs_never_stop_a_sparser_one(aims, density):
    denser = [shown(str(n), density=density, l0=l0, mse=0.01, aims=aims) for n, l0 in enumerate([density, 32.0, 1.0])]
    assert dominating(shown(density=32.0, l0=32.0, aims=aims), denser, CONFIG) is None


def test_much_sparser_runs_are_not_compared_with():
    assert dominating(shown(mse=1.0), [shown("a", density=20.0, l0=20.0, mse=0.1)], CONFIG) is None
    assert dominating(shown(mse=1.0), [shown("a", density=22.0, l0=22.0, mse=0.1)], CONFIG) is not None


@pytest.mark.parametrize("comparable", ["standard", "topk wider"])
def test_only_runs_of_the_same_kind_are_compared(comparable):
    assert dominating(shown(mse=9.0), [shown("a", mse=1.0, comparable=comparable)], CONFIG) is None


def test_on_the_way_to_an_l0_errors_are_compared_at_the_same_l0():
    # The other is twice as dense: at the L0 of mine its error would be up to twice as large.
    assert dominating(shown(mse=1.9), [shown("a", l0=64.0, mse=1.0)], CONFIG) is None
    assert dominating(shown(mse=2.1), [shown("a", l0=64.0, mse=1.0)], CONFIG) is not None
    # The other is four times as sparse: at the L0 of mine its error would be at most half as large.
    assert dominating(shown(mse=0.6), [shown("a", l0=8.0, mse=1.0)], CONFIG) is not None
    assert dominating(shown(mse=0.4), [shown("a", l0=8.0, mse=1.0)], CONFIG) is None


def test_where_a_coefficient_was_given_the_l0_shown_decides():
    assert dominating(shown(mse=2.1, aims=False), [shown("a", l0=64.0, mse=1.0, aims=False)], CONFIG) is None
    assert dominating(shown(mse=2.1, aims=False), [shown("a", l0=33.0, mse=2.0, aims=False)], CONFIG) is not None
    assert dominating(shown(mse=2.1, aims=False), [shown("a", l0=8.0, mse=2.2, aims=False)], CONFIG) is None


def test_a_run_without_active_latents_stops_nobody_and_divides_nothing():
    assert dominating(shown(l0=32.0, mse=1.0), [shown("a", l0=0.0, mse=5.0, aims=False)], CONFIG) is None
    assert dominating(shown(l0=0.0, mse=5.0), [shown("a", mse=1.0)], CONFIG) is None


def history(n_steps, error, l0=8.0, until=None):
    return [{"step": step, "l0": l0, "mse_loss": error(step)} for step in range(1, (until or n_steps) + 1)]


def test_what_a_run_showed_is_a_mean_over_the_steps_before_the_rung():
    run = run_of("topk", n_steps=100)
    found = at_rung([run], [history(100, float)], 0.5)
    # Steps 46 to 50.
    assert (found.mse, found.l0, found.name) == (48.0, 8.0, run.run_id)
    assert found == at_rung([run], [history(100, float, until=50)], 0.5)
    assert at_rung([run], [history(100, float, until=49)], 0.5) is None
    assert at_rung([run], [[]], 0.5) is None


def test_rows_are_rarer_in_long_runs():
    run = run_of("topk", n_steps=976)  # a row every 9 steps: 99 is the last before step 107
    rows = [row for row in history(976, float) if row["step"] % 9 == 0 and row["step"] <= 99]
    assert at_rung([run], [rows], 0.11).mse == pytest.approx((63 + 72 + 81 + 90 + 99) / 5)
    assert at_rung([run], [rows[:-1]], 0.11) is None


def test_seeds_are_averaged_and_what_is_not_finite_says_nothing():
    runs = [run_of("topk", n_steps=100), run_of("topk", n_steps=100, seed=1)]
    assert at_rung(runs, [history(100, lambda _: 1.0), history(100, lambda _: 3.0, l0=6.0)], 0.5).mse == 2.0
    assert at_rung(runs, [history(100, lambda _: 1.0), history(100, lambda _: None)], 0.5) is None


@pytest.mark.parametrize(
    ("sae", "density", "aims"),
    [
        ({"architecture": "topk", "k": 4}, 4, True),
        ({"architecture": "standard", "l1_coefficient": 0.5}, 2, False),
        ({"architecture": "standard", "l1_coefficient": 0.0}, float("inf"), False),
        ({"architecture": "standard", "l1_coefficient": 0.5, "target_l0": 8.0}, 8, True),
    ],
)
def test_what_was_asked_for(sae, density, aims):
    run = RunConfig(activations=activations_config(6400), sae={"d_sae": 64, **sae}, train=TrainConfig(batch_size=64))
    found = at_rung([run], [history(100, float)], 0.5)
    assert (found.density, found.aims) == (density, aims)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "sweep")


def write_history(store, run, error):
    rows = history(run.n_steps, lambda _: error, until=50)
    write_text(store.paths.run(run.run_id).history, "".join(json.dumps(row) + "\n" for row in rows))


def lr_runs(*rates):
    return [run_of("topk", n_steps=100, lr=lr) for lr in rates]


def test_a_stopped_run_leaves_a_record_and_no_checkpoint(store):
    good, bad = lr_runs(1e-3, 1e-2)
    stopping = EarlyStopping(EarlyStoppingConfig(rungs=[0.5]), store, [])
    write_history(store, good, 1.0)
    write_history(store, bad, 2.0)
    store.paths.run(bad.run_id).checkpoint.touch()
    assert not stopping.stops([good], 0.5, FACTS)
    assert stopping.stops([bad], 0.5, FACTS)
    assert store.read_record(good.run_id) is None
    record = store.read_record(bad.run_id)
    assert (record.status, record.train_tokens, record.hardware) == ("pruned", 50 * 64, "a machine")
    assert record.error["message"] == f"dominated at 50% of its tokens by {good.run_id}, whose error is 1 at L0 8.0; its own 2 at L0 8.0"
    assert json.loads(store.paths.run(bad.run_id).config.read_text()) == bad.model_dump(mode="json")
    assert read_json_lines(store.paths.run(bad.run_id).history, record.history_checksum) == store.read_history(bad.run_id) != []
    assert not store.paths.run(bad.run_id).checkpoint.exists()


def test_a_relaunch_knows_what_runs_showed_before(store):
    good, bad = lr_runs(1e-3, 1e-2)
    write_history(store, good, 1.0)
    write_history(store, bad, 2.0)
    relaunched = EarlyStopping(EarlyStoppingConfig(rungs=[0.5]), store, [[good], [bad]])
    assert relaunched.stops([bad], 0.5, FACTS)


def test_a_run_that_diverged_stops_nobody(store):
    diverged, other = lr_runs(1e-1, 1e-2)
    write_history(store, diverged, 1.0)
    write_history(store, other, 2.0)
    store.write_record(record_without_result(diverged, "failed", {"type": "DivergedError", "message": "", "traceback": ""}))
    stopping = EarlyStopping(EarlyStoppingConfig(rungs=[0.5]), store, [[diverged]])
    assert not stopping.stops([other], 0.5, FACTS)


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_every_architecture_can_be_judged(name):
    run = run_of(name, n_steps=100)
    assert at_rung([run], [history(100, float)], 0.5).density > 0


def sweep(**changes):
    definition = {
        "name": "small",
        "activations": {"source": "synthetic", "train_tokens": 10_000, "eval_tokens": 1000},
        "sae": {"d_sae": 64},
        "train": {"batch_size": 100},
        "architectures": {"topk": {"k": 4}},
    }
    return Sweep(**{**definition, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"early_stopping": {"rungs": [0.3, 0.1]}}, r"`rungs` must increase, but got rungs=\[0\.3, 0\.1\]"),
        ({"early_stopping": {"rungs": [0.5, 1.0]}}, "`rungs` must be less than 1, but got rungs=1.0"),
        ({"early_stopping": {"rungs": []}}, r"but got rungs=\[\]"),
        ({"early_stopping": {"l0_band": 1.0}}, "`l0_band` must be greater than 1, but got l0_band=1.0"),
        ({"early_stopping": {"reduction_factor": 1}}, "`reduction_factor` must be greater than 1, but got reduction_factor=1"),
        (
            {
                "early_stopping": {},
                "train": {"batch_size": 100, "sparsity_warm_up": 0.2},
                "architectures": {"gated": {"l1_coefficient": 1}},
            },
            r"but got rungs=\[0\.1, 0\.3\] where the sparsity of 'gated' settles at 0\.2 of the run",
        ),
        (
            {"early_stopping": {}, "architectures": {"topk": {"k": 4, "k_start": 16, "k_anneal": 0.3}}},
            "where the sparsity of 'topk' settles at 0.3 of the run",
        ),
    ],
)
def test_what_bad_settings_get(changes, message):
    with pytest.raises(ConfigError, match=message):
        sweep(**changes).runs()
