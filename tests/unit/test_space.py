from itertools import pairwise

import optuna
import pytest
from optuna.trial import FixedTrial

from sae_core.errors import ConfigError
from sweeps.definition.grid import Range
from sweeps.definition.problems import Problems
from sweeps.definition.space import GOLDEN_RATIO
from sweeps.definition.sweep import Sweep

optuna.logging.set_verbosity(optuna.logging.WARNING)

BASE = {
    "name": "small",
    "activations": {"source": "synthetic", "d_in": 16, "train_tokens": 10_000, "eval_tokens": 1000},
    "sae": {"d_sae": [32, 64]},
    "train": {"lr": {"low": 1e-3, "high": 3e-2, "log": True}, "batch_size": 256},
    "architectures": {
        "topk": {"k": {"low": 2, "high": 16}},
        "matryoshka_batchtopk": {"k": 4, "matryoshka_widths": [[8], [8, 16]], "lr": 4e-3},
    },
    "search": {"trials": 10},
}


def space(**changes):
    return Sweep(**{**BASE, **changes}).space()


def problems(**changes):
    with pytest.raises(ConfigError) as error:
        space(**changes)
    return str(error.value).splitlines()


def sampled(found, n=40, seed=0):
    """Points that Optuna draws from a space at random."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    points = []
    for _ in range(n):
        trial = study.ask()
        found(trial)
        points.append(trial.params)
        study.tell(trial, 0.0)
    return points


def test_the_architecture_decides_which_parameters_there_are():
    points = sampled(space())
    assert {point["architectures"] for point in points} == {"topk", "matryoshka_batchtopk"}
    for point in points:
        own = (
            {"architectures.topk.k", "train.lr"}
            if point["architectures"] == "topk"
            else {"architectures.matryoshka_batchtopk.matryoshka_widths"}
        )
        assert set(point) == {"architectures", "sae.d_sae", *own}


def test_every_point_becomes_valid_runs():
    found = space(seeds=[0, 3])
    for point in sampled(found):
        first, second = found.runs(point)
        assert (first.seed, second.seed) == (0, 3)
        assert first.sae.architecture == point["architectures"]
        assert first.sae.d_sae == point["sae.d_sae"]
        assert first.train.batch_size == 256
        if first.sae.architecture == "topk":
            assert (first.sae.k, first.train.lr) == (point["architectures.topk.k"], point["train.lr"])
            assert 2 <= first.sae.k <= 16 and isinstance(first.sae.k, int)
            assert 1e-3 <= first.train.lr <= 3e-2
        else:
            assert first.train.lr == 4e-3
            assert first.sae.matryoshka_widths in ((8,), (8, 16))


def test_the_same_point_is_the_same_run():
    found, again = space(), space()
    for point in sampled(found, 5):
        assert [run.run_id for run in found.runs(point)] == [run.run_id for run in again.runs(point)]


def test_a_target_l0_is_one_parameter_of_all_architectures():
    found = space(target_l0={"low": 2, "high": 16, "log": True}, architectures={"topk": {}, "standard": {}})
    for point in sampled(found):
        (run,) = found.runs(point)
        assert set(point) == {"architectures", "sae.d_sae", "train.lr", "target_l0"}
        assert run.sae.target_l0 == point["target_l0"] == round(point["target_l0"])
    listed = space(target_l0=[4, 8], architectures={"topk": {}})
    assert {point["target_l0"] for point in sampled(listed)} == {4, 8}


def test_steps_and_kinds_of_numbers():
    batchtopk = space(architectures={"batchtopk": {"k": {"low": 2, "high": 3, "step": 0.25}}}, train={})
    assert {point["architectures.batchtopk.k"] for point in sampled(batchtopk)} == {2.0, 2.25, 2.5, 2.75, 3.0}
    topk = space(architectures={"topk": {"k": {"low": 2, "high": 8, "step": 3}}}, train={})
    assert {point["architectures.topk.k"] for point in sampled(topk)} == {2, 5, 8}


def test_one_architecture_is_no_parameter():
    found = space(architectures={"topk": {"k": [2, 4]}})
    point = FixedTrial({"sae.d_sae": 32, "train.lr": 4e-3, "architectures.topk.k": 4})
    found(point)
    assert found.runs(point.params)[0].sae.k == 4


def test_identity_is_that_of_what_can_be_tried():
    objectives = ["l0", "fvu"]
    assert space().identity(objectives) == space(search={"trials": 99, "sampler": "random", "seed": 3}).identity(objectives)
    others = [
        space(train={"lr": {"low": 1e-3, "high": 2e-2, "log": True}, "batch_size": 256}),
        space(train={**BASE["train"], "batch_size": 128}),
        space(seeds=[0, 1]),
        space(sae={"d_sae": [32, 48]}),
    ]
    assert len({found.identity(objectives) for found in [space(), *others]} | {space().identity(["l0", "mse"])}) == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architectures": {"topk": {"k": {"low": 8, "high": 40}}}},
            "architectures.topk.k: `k` must satisfy 0 < k <= d_sae, but got k=40",
        ),
        ({"architectures": {"topk": {"k": {"low": 2.0, "high": 9.0}}}}, "architectures.topk.k: `k` must be a valid integer, but got k=2.0"),
        (
            {"train": {"lr": {"low": 3e-2, "high": 1e-3}}},
            "low < high <= 1e+100, but got low=0.03 and high=0.001.",
        ),
        ({"train": {"lr": {"low": 0, "high": 1e-3, "log": True}}}, "but got low=0 and high=0.001."),
        ({"train": {"lr": {"low": 1e-3, "high": 2e-3, "step": 1}}}, "train.lr.step: `step` must be at most high - low"),
        ({"train": {"lr": {"low": 1e-3}}}, "train.lr.high: `high` must be given, but is missing."),
        ({"train": {"lr": {"low": 1e-3, "high": 1e-2, "lgo": True}}}, "train.lr: unknown key 'lgo'."),
        ({"train": {"lr": {"low": 1e-3, "high": 1e101}}}, "but got low=0.001 and high=1e+101."),
        ({"train": {"lr": {"low": 1e-101, "high": 1, "log": True}}}, "but got low=1e-101 and high=1."),
        (
            {"train": {"lr": {"low": 0, "high": 1, "step": 1e-12}}},
            "at least a 1,000,000,000th of that, and without",
        ),
        ({"train": {"lr": {"low": 0, "high": 1, "step": 0}}}, "and without `log`, but got step=0"),
        ({"search": {"trials": 200_000}}, "search: a sweep must have at most 100,000 runs, but got 200,000."),
        ({"search": {"trials": 20_000}, "seeds": [0, 1, 2], "data_seed": [0, 1]}, "100,000 runs, but got 120,000."),
        (
            {"activations": {**BASE["activations"], "d_in": [16, 32]}},
            "activations.d_in: a search must have one stream of activations, but got (16, 32).",
        ),
        ({"search": {"trials": 1, "objectives": ["l0", "fvuu"]}}, "search.objectives: metric must be one of "),
        ({"search": {"trials": 1, "objectives": ["l0", "fvuu"]}}, "but got 'fvuu'. Did you mean 'fvu'?"),
        (
            {"search": {"trials": 1, "objectives": ["ce_loss_clean"]}},
            "search.objectives: an objective must have a direction (min or max), but got 'ce_loss_clean'.",
        ),
        (
            {"search": {"trials": 1, "objectives": ["l0", "delta_ce"]}},
            "search.objectives: an objective must be a metric of the source of activations, but got 'delta_ce' for 'synthetic'.",
        ),
        (
            {"search": {"trials": 1, "objectives": ["l0", "l0"]}},
            "search.objectives: `objectives` must be listed once each, but got ['l0', 'l0'].",
        ),
        (
            {"architectures": {"topk": {"k": 4}}, "sae": {"d_sae": 32}, "train": {}},
            "search: a search must have at least one range or choice, but got only fixed fields.",
        ),
        (
            {"early_stopping": {"rungs": [0.05, 0.5]}, "architectures": {"jumprelu": {}}, "target_l0": 8},
            "early_stopping.rungs: rungs must be after the sparsity warm-up, but got rungs=[0.05, 0.5]",
        ),
    ],
)
@pytest.mark.slow
def test_what_bad_spaces_get(changes, message):
    assert any(message in line for line in problems(**changes)), problems(**changes)


@pytest.mark.parametrize(
    ("point", "message"),
    [
        ({"train.lrr": 1e-3}, "search.points_to_evaluate: unknown key 'train.lrr'. Did you mean 'train.lr'?"),
        ({"train.lr": 1}, "search.points_to_evaluate: `train.lr` must be in 0.001 to 0.03 (log), but got train.lr=1."),
        ({"architectures.topk.k": 2.5}, "`architectures.topk.k` must be in 2 to 16, but got architectures.topk.k=2.5."),
        ({"sae.d_sae": 48}, "`sae.d_sae` must be in 32, 64, but got sae.d_sae=48."),
        ({"architectures": "gated"}, "`architectures` must be one of ['topk', 'matryoshka_batchtopk'], but got 'gated'."),
        (
            {"architectures": "topk", "architectures.matryoshka_batchtopk.matryoshka_widths": [8]},
            "unknown key 'architectures.matryoshka_batchtopk.",
        ),
    ],
)
def test_what_bad_points_get(point, message):
    (line,) = problems(search={"trials": 1, "points_to_evaluate": [point]})
    assert message in line


@pytest.mark.parametrize(
    ("search", "message"),
    [
        (
            {"trials": 1, "points_to_evaluate": [{"sae.d_sae": 32}, {"sae.d_sae": 64}]},
            "one trial per point, but got 2 points and trials=1.",
        ),
        ({"trials": 3, "points_to_evaluate": [{"sae.d_sae": 32}, {"sae.d_sae": 32}]}, "once each, but got {'sae.d_sae': 32} twice."),
        ({"trials": 3, "points_to_evaluate": [{}]}, "a point must give at least one value, but got {}."),
    ],
)
def test_points_that_nobody_would_try(search, message):
    (line,) = problems(search=search)
    assert line.startswith("search.points_to_evaluate: ") and message in line


def test_orders_of_the_tokens_are_repeats():
    found = space(seeds=[0, 1], data_seed=[3, 4])
    for point in sampled(found, 5):
        runs = found.runs(point)
        assert [(run.data_seed, run.seed) for run in runs] == [(3, 0), (3, 1), (4, 0), (4, 1)]
        assert len({run.model_copy(update={"seed": 0, "data_seed": 0}).run_id for run in runs}) == 1
    assert found.axes.n_repeats == 4
    assert all("seed" not in place for name in found.axes.architectures for place in found.parameters(name))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("k", "values"),
    [
        ({"low": 1, "high": 10, "step": 4}, [1, 5, 9]),
        ({"low": 1, "high": 8, "step": 4}, [1, 5]),  # the nearest to 8 would be 9
        ({"low": 2, "high": 3, "step": 0.4}, [2.0, 2.4, 2.8]),
        ({"low": 0.1, "high": 0.3, "step": 0.1}, [0.1, 0.2, 0.3]),  # 0.1 + 2 * 0.1 is above 0.3 in floating point
    ],
)
def test_a_stepped_range_never_leaves_its_ends(k, values):
    point = {"architectures.batchtopk.k": values[-1]}
    found = space(architectures={"batchtopk": {"k": k}}, train={}, sae={"d_sae": 64}, search={"trials": 9, "points_to_evaluate": [point]})
    axis = found.parameters("batchtopk")["architectures.batchtopk.k"]
    assert sorted({point["architectures.batchtopk.k"] for point in sampled(found)}) == pytest.approx(values, rel=1e-12)
    levels = {found.level(axis, turn) for turn in range(50)}
    assert sorted(levels) == pytest.approx(values, rel=1e-12)
    assert max(levels) <= k["high"] and max(run.sae.k for run in found.corners) <= k["high"]


@pytest.mark.parametrize(("k", "value"), [({"low": 1, "high": 10, "step": 4}, 10), ({"low": 1, "high": 10, "step": 4}, 6)])
def test_a_point_between_the_steps(k, value):
    (line,) = problems(architectures={"topk": {"k": k}}, search={"trials": 1, "points_to_evaluate": [{"architectures.topk.k": value}]})
    assert f"must be in 1 to 10, step 4, but got architectures.topk.k={value}." in line


@pytest.mark.parametrize(
    "one", [{"low": 1e-100, "high": 1e100, "log": True}, {"low": 1, "high": 2**62, "log": True}, {"low": -1e100, "high": 1e100}]
)
def test_levels_of_a_huge_range_lie_in_it(one):
    found = Range.model_validate(one)
    assert all(found.low <= found.at(turn * GOLDEN_RATIO % 1, whole=found.whole) <= found.high for turn in range(1_000))


def test_points_are_given_in_the_words_of_the_definition():
    point = {"architectures": "matryoshka_batchtopk", "architectures.matryoshka_batchtopk.matryoshka_widths": [8, 16], "sae.d_sae": 64}
    found = space(search={"trials": 1, "points_to_evaluate": [point]})
    (run,) = found.runs(found.fixed_point(point, Problems()))
    assert run.sae.matryoshka_widths == (8, 16)


def test_a_range_needs_a_search():
    sweep = Sweep(**{**BASE, "search": None})
    with pytest.raises(ConfigError, match=r"train\.lr: a range must come with `search`, but got low=0\.001 high=0\.03"):
        sweep.runs()


def test_a_search_has_no_list_of_runs():
    with pytest.raises(ConfigError, match="but got search=trials=10"):
        Sweep(**BASE).runs()


def test_turns_spread_over_the_targets():
    listed = space(target_l0=[4, 8, 16], architectures={"topk": {}, "standard": {}})
    assert [listed.level(listed.target_l0, turn) for turn in range(4)] == [4, 8, 16, 4]
    ranged = space(target_l0={"low": 2, "high": 16, "log": True}, architectures={"topk": {}, "standard": {}})
    levels = sorted(ranged.level(ranged.target_l0, turn) for turn in range(9))
    assert levels[0] == 2 and levels[-1] >= 14 and all(isinstance(level, int) for level in levels)
    assert max(later / earlier for earlier, later in pairwise(levels)) <= 2
    assert space().target_l0 is None
    assert space(target_l0=8, architectures={"topk": {}}).target_l0 is None
