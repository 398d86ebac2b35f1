import time

import pytest

from sae_core.config.run import ARCHITECTURES
from sae_core.errors import ConfigError
from sweeps.definition.sweep import Sweep

BASE = {
    "name": "small",
    "model": {"name": "demo", "hook_point": "blocks.2.hook_resid_post"},
    "data": {"dataset": "demo", "train_tokens": 100_000, "eval_tokens": 1000},
    "sae": {"d_sae": 64},
    "train": {"lr": 1e-3},
    "architectures": {"topk": {"k": [8, 16]}},
}


def runs(**changes):
    return Sweep(**{**BASE, **changes}).runs()


def problems(**changes):
    with pytest.raises(ConfigError) as error:
        runs(**changes)
    return str(error.value).splitlines()


def test_the_grid_is_the_product_of_axes_and_seeds():
    found = runs(
        train={"lr": [1e-3, 3e-3]},
        architectures={"topk": {"k": [8, 16]}, "standard": {"l1_coefficient": 2}},
        seeds=[0, 1],
    )
    described = [(run.sae.architecture, run.sae.sparsity_value, run.train.lr, run.seed) for run in found]
    assert described[:4] == [("topk", 8, 1e-3, 0), ("topk", 8, 1e-3, 1), ("topk", 8, 3e-3, 0), ("topk", 8, 3e-3, 1)]
    assert described[8:] == [("standard", 2, 1e-3, 0), ("standard", 2, 1e-3, 1), ("standard", 2, 3e-3, 0), ("standard", 2, 3e-3, 1)]
    assert len({run.run_id for run in found}) == 12


def test_sections_reach_the_run():
    (run, _) = runs(data={**BASE["data"], "text_column": "body"}, data_seed=7)
    assert run.activations.source == "language_model"
    assert run.activations.model.name == "demo"
    assert run.activations.data.text_column == "body"
    assert run.activations.train_tokens == 100_000
    assert run.data_seed == 7


def test_an_architecture_overrides_common_fields():
    found = runs(
        train={"lr": [1e-3, 2e-3], "batch_size": 512},
        architectures={"topk": {"k": 8}, "gated": {"lr": 3e-4, "l1_coefficient": 1, "d_sae": 32}},
    )
    assert [(run.train.lr, run.sae.d_sae, run.train.batch_size) for run in found] == [
        (1e-3, 64, 512),
        (2e-3, 64, 512),
        (3e-4, 32, 512),
    ]


def test_activation_fields_are_axes_too():
    assert {run.activations.model.hook_point for run in runs(model={"name": "demo", "hook_point": ["a", "b"]})} == {"a", "b"}
    assert {run.data_seed for run in runs(data_seed=[1, 2])} == {1, 2}


def test_sequence_fields():
    widths = {"k": 4, "matryoshka_widths": [[16], [16, 32]]}
    assert [run.sae.matryoshka_widths for run in runs(architectures={"matryoshka_batchtopk": widths})] == [(16,), (16, 32)]
    widths = {"k": 4, "matryoshka_widths": [16, 32]}
    assert [run.sae.matryoshka_widths for run in runs(architectures={"matryoshka_batchtopk": widths})] == [(16, 32)]


def test_an_architecture_may_be_left_empty():
    assert [run.sae.k for run in runs(sae={"d_sae": 64, "k": 4}, architectures={"topk": None, "batchtopk": {}})] == [4, 4]


def test_local_paths_become_absolute(tmp_path, monkeypatch):
    (tmp_path / "text.jsonl").touch()
    monkeypatch.chdir(tmp_path)
    assert runs(data={**BASE["data"], "dataset": "text.jsonl"})[0].activations.data.dataset == str(tmp_path / "text.jsonl")


def test_another_source():
    section = {"source": "synthetic", "d_in": [16, 32], "train_tokens": 100_000, "eval_tokens": 1000}
    found = runs(model=None, data=None, activations=section)
    assert [(run.activations.source, run.activations.d_in, run.sae.k) for run in found] == [
        ("synthetic", 16, 8),
        ("synthetic", 16, 16),
        ("synthetic", 32, 8),
        ("synthetic", 32, 16),
    ]
    assert problems(model=None, data=None, activations={"source": "synthetic", "train_tokens": 0}) == [
        "activations.train_tokens: `train_tokens` must be greater than or equal to 1, but got train_tokens=0. Raise it.",
        "activations.eval_tokens: `eval_tokens` must be given, but is missing. Add it.",
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architectures": {"topk": {"k": [8, 65]}}},
            "architectures.topk.k: `k` must satisfy 0 < k <= d_sae, but got k=65 and d_sae=64.",
        ),
        ({"architectures": {"topk": {}}}, "architectures.topk.k: `k` must be given, but is missing. Add it."),
        ({"sae": {}}, "sae.d_sae: `d_sae` must be given, but is missing. Add it."),
        ({"architectures": {"topkk": {"k": 8}}}, "architectures: architecture must be one of "),
        ({"architectures": {"topkk": {"k": 8}}}, "but got 'topkk'. Did you mean 'topk'?"),
        ({"architectures": {}}, "architectures: a sweep must have at least one architecture, but got {}."),
        (
            {"architectures": {"standard": {"k": [8, 16], "l1_coefficient": 1}}},
            "architectures.standard: unknown key 'k'. The sparsity of 'standard' is set by `l1_coefficient`.",
        ),
        (
            {"sae": {"d_sae": 64, "k": [8]}, "architectures": {"topk": {}, "gated": {"l1_coefficient": 1}}},
            "sae: unknown key 'k'. A common field must belong to every architecture. The sparsity of 'gated' is set by `l1_coefficient`.",
        ),
        ({"train": {"lrr": 1}}, "train: unknown key 'lrr'. Did you mean 'lr'?"),
        ({"model": {**BASE["model"], "hook_pont": "a"}}, "model: unknown key 'hook_pont'. Did you mean 'hook_point'?"),
        (
            {"data": {**BASE["data"], "train_token": 1}},
            "data: unknown key 'train_token'. Did you mean 'train_tokens'?",
        ),
        (
            {"data": {**BASE["data"], "train_tokens": 0}},
            "data.train_tokens: `train_tokens` must be greater than or equal to 1, but got train_tokens=0.",
        ),
        (
            {"data": {**BASE["data"], "eval_tokens": -5}},
            "data.eval_tokens: `eval_tokens` must be greater than or equal to 1, but got eval_tokens=-5.",
        ),
        ({"data": {"dataset": "demo", "eval_tokens": 1}}, "data.train_tokens: `train_tokens` must be given, but is missing. Add it."),
        ({"model": {"name": "demo"}}, "model.hook_point: `hook_point` must be given, but is missing. Add it."),
        (
            {"data": {**BASE["data"], "train_tokens": 100}},
            "data.train_tokens: `train_tokens` must be >= `batch_size`, but got train_tokens=100 and batch_size=2048.",
        ),
        ({"train": {"lr": [0, 1e-3]}}, "train.lr: `lr` must be greater than 0, but got lr=0. Raise it."),
        ({"architectures": {"topk": {"k": 8, "lr": -1}}}, "architectures.topk.lr: `lr` must be greater than 0, but got lr=-1. Raise it."),
        ({"train": {"lr_warm_up": 0.5, "lr_decay": 0.6}}, "train.lr_warm_up: `lr_warm_up` + `lr_decay` must be <= 1"),
        ({"train": {"autocast": "bf16"}}, "train.autocast: `autocast` must be 'off' or 'bfloat16', but got autocast='bf16'."),
        ({"seeds": []}, "seeds: an axis must list at least one value, but got seeds=[]."),
        ({"seeds": [0, 0]}, "seeds: an axis must list each value once, but got 0 twice. Remove one."),
        ({"seeds": [-1]}, "seeds: `seeds` must be greater than or equal to 0, but got seeds=-1. Raise it."),
        ({"data_seed": "a"}, "data_seed: `data_seed` must be a valid integer, but got data_seed='a'."),
        ({"architectures": {"topk": {"k": []}}}, "architectures.topk.k: an axis must list at least one value, but got k=[]."),
        (
            {"architectures": {"topk": {"k": [8, 8]}}},
            "architectures.topk.k: an axis must list each value once, but got 8 twice. Remove one.",
        ),
        ({"model": None}, "a definition must have `model` and `data`, or else `activations`, but got ['data']."),
        ({"activations": {"source": "a"}}, "but got ['model', 'data', 'activations']."),
        ({"model": None, "data": None, "activations": {"source": "nothing"}}, "activations.source: activation source must be one of "),
        ({"model": None, "data": None, "activations": {"source": "nothing"}}, "but got 'nothing'."),
        ({"data": {**BASE["data"], "dataset": "./a.parquet"}}, "data.dataset: a local path must exist, but './a.parquet' is missing"),
        ({"model": {**BASE["model"], "name": "~/no-such"}}, "model.name: a local path must exist, but '~/no-such' is missing"),
    ],
)
def test_what_bad_input_gets(changes, message):
    assert any(message in line for line in problems(**changes)), problems(**changes)


def test_two_names_of_one_file_are_duplicate_runs(tmp_path, monkeypatch):
    (tmp_path / "a.txt").touch()
    monkeypatch.chdir(tmp_path)
    (line, _) = problems(data={**BASE["data"], "dataset": ["a.txt", "./a.txt"]})
    assert line.startswith("architectures.topk: runs must differ, but got topk-")
    assert line.endswith(" twice. Remove one of the two equal values.")


def test_all_problems_are_told_at_once_and_once():
    lines = problems(
        model={"name": "demo", "hook_pint": "a"},
        data={"dataset": "./gone.parquet", "train_tokens": -1, "eval_tokens": 1000},
        train={"lr": [1e-3, 0], "momentum": 1},
        architectures={"topk": {"k": [8, 100]}, "batchtopk": {"k": 200}, "relu": {}},
        seeds=[0, 1, -2],
    )
    places = [line.split(":")[0] for line in lines]
    assert places == [
        "model",
        "data.dataset",
        "seeds",
        "train",
        "architectures",
        "data.train_tokens",
        "model.hook_point",
        "architectures.topk.k",
        "train.lr",
        "architectures.batchtopk.k",
    ]


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_every_architecture_can_be_swept_by_its_sparsity_parameter(name):
    example = ARCHITECTURES[name].Config.example(8, 64)
    own = {field: value for field, value in example.model_dump(exclude_unset=True).items() if field not in ("architecture", "d_sae")}
    value = own.pop(example.sparsity_parameter)
    found = runs(architectures={name: {**own, example.sparsity_parameter: [value, value * 2]}})
    assert [run.sae.sparsity_value for run in found] == [value, value * 2]


def asked(found):
    return [(run.sae.architecture, run.sae.target_l0, run.sae.sparsity_value) for run in found]


def test_a_target_l0_aims_every_architecture():
    found = runs(target_l0=[8, 16], architectures={"topk": {}, "standard": {}, "jumprelu": {"sparsity_loss": "quadratic"}})
    assert asked(found) == [
        ("topk", 8.0, 8),
        ("topk", 16.0, 16),
        ("standard", 8.0, 22 / 8),
        ("standard", 16.0, 22 / 16),
        ("jumprelu", 8.0, 64 / 8),
        ("jumprelu", 16.0, 64 / 16),
    ]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_any_architecture_takes_a_target_l0(name):
    (run,) = runs(target_l0=8, architectures={name: {}})
    assert run.sae.target_l0 == 8
    assert run.sae.controls_l0 or run.sae.sparsity_value == 8


def test_an_architecture_may_have_a_target_of_its_own():
    found = runs(target_l0=8, architectures={"topk": {}, "standard": {"target_l0": 32, "l1_coefficient": 0.5}})
    assert asked(found) == [("topk", 8.0, 8), ("standard", 32.0, 0.5)]


def test_a_target_l0_and_a_coefficient_do_not_go_together():
    assert problems(target_l0=8) == [
        "architectures.topk.k: `k` must be left out where `target_l0` is given, but got both. Remove one of them."
    ]
    (line,) = problems(architectures={"topk": {"k": 8, "target_l0": 16}})
    assert "`target_l0` must equal `k`" in line and "target_l0=16 and k=8" in line


@pytest.mark.parametrize(
    ("value", "message"), [(0, "greater than 0"), (-3, "greater than 0"), ("many", "number"), ([], "at least one value")]
)
def test_a_target_l0_is_a_number_above_0(value, message):
    lines = problems(target_l0=value, architectures={"standard": {}})
    assert any("target_l0" in line and message in line for line in lines), lines


@pytest.mark.parametrize("name", list(ARCHITECTURES))
@pytest.mark.parametrize("target", [100, 1e300])
def test_a_target_l0_above_the_width_is_refused_for_every_architecture(name, target):
    (line,) = problems(target_l0=[8, target], architectures={name: {}})
    assert line == f"target_l0: `target_l0` must be <= d_sae, but got target_l0={target:g} and d_sae=64. Lower it or raise `d_sae`."


def test_orders_of_the_tokens_are_repeats_of_each_setting():
    found = runs(data_seed=[0, 1], seeds=[2, 3], architectures={"topk": {"k": [8]}})
    assert [(run.data_seed, run.seed) for run in found] == [(0, 2), (0, 3), (1, 2), (1, 3)]
    assert problems(data_seed=[0, 0]) == ["data_seed: an axis must list each value once, but got 0 twice. Remove one."]
    assert problems(data_seed=-1) == ["data_seed: `data_seed` must be greater than or equal to 0, but got data_seed=-1. Raise it."]


def test_a_grid_that_nobody_can_wait_for_is_refused_before_it_is_made():
    axis = [i + 1 for i in range(1_000)]
    start = time.process_time()
    (line,) = problems(train={"lr": axis, "batch_size": axis, "adam_eps": axis})
    assert line == "a sweep must have at most 100,000 runs, but got 2,000,000,000. Shorten its axes, or use several sweeps."
    assert time.process_time() - start < 1


def test_of_very_many_problems_the_first_are_told():
    lines = problems(train={"lr": [-1 - i for i in range(5_000)]})
    assert len(lines) == 101
    assert lines[0] == "train.lr: `lr` must be greater than 0, but got lr=-1. Raise it."
    assert lines[-1] == "... and more than 100 problems in all. Correct these first."


def test_a_number_that_cannot_be_checked_is_a_problem_too():
    section = {"source": "synthetic", "train_tokens": 100_000, "eval_tokens": 1000, "n_features": 2**62}
    (line,) = problems(model=None, data=None, activations=section)
    assert line.startswith(
        "activations.n_features: `n_features` must be less than or equal to 1048576, but got n_features=4611686018427387904"
    )


def test_rungs_at_the_same_step():
    (line,) = problems(early_stopping={"rungs": [0.3, 0.300001]}, architectures={"topk": {"k": 8}})
    assert line == (
        "early_stopping.rungs: rungs must be different steps before the last, but got rungs=[0.3, 0.300001], "
        "which are the steps [14, 14] of 48. Raise or remove some."
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"target_l0": [4, 8], "sae": {"d_sae": 64, "target_l0": 16}, "architectures": {"topk": {}}},
            "sae.target_l0: `target_l0` must be given once for all architectures, but got 16 beside `target_l0: [4, 8]`.",
        ),
        (
            {"train": {"lr_min_factor": 0.05}},
            "train.lr_min_factor: `lr_min_factor` must come with a cosine `lr_schedule`, or it has no effect, but got lr_min_factor=0.05 "
            "and lr_schedule='constant'. Remove it.",
        ),
        ({"train": {"n_restarts": 3, "lr_schedule": "cosine"}}, "but got n_restarts=3 and lr_schedule='cosine'."),
        (
            {"train": {"n_restarts": [1, 2], "lr_schedule": ["cosine", "cosine_restarts"]}},
            "train.n_restarts: `n_restarts` must come with `lr_schedule: cosine_restarts`, or it has no effect, but got n_restarts=[1, 2]",
        ),
        (
            {"architectures": {"topk": {"k": 8, "sparsity_warm_up": 0.1}, "gated": {"l1_coefficient": 1}}},
            "architectures.topk.sparsity_warm_up: `sparsity_warm_up` must come with an architecture with a sparsity coefficient",
        ),
        ({"train": {"sparsity_warm_up": 0.1}}, "but got sparsity_warm_up=0.1 and architecture='topk'."),
        ({"search": {"trials": 2}, "train": {"n_restarts": 5}}, "but got n_restarts=5 and lr_schedule='constant'."),
    ],
)
def test_fields_without_an_effect(changes, message):
    sweep = Sweep(**{**BASE, **changes})
    with pytest.raises(ConfigError) as error:
        sweep.space() if sweep.search else sweep.runs()
    (line,) = str(error.value).splitlines()
    assert message in line


@pytest.mark.parametrize(
    "changes",
    [
        {"train": {"lr": 1e-3}, "architectures": {"topk": {"k": 8, "lr": 2e-3}}},  # overridden everywhere, which does no harm
        {"train": {"lr_min_factor": 0.05, "lr_schedule": ["constant", "cosine"]}},  # the cosine reads it
        {"train": {"lr_min_factor": 0.1}},  # what it would be anyway
        {"train": {"sparsity_warm_up": 0.1}, "architectures": {"topk": {"k": 8}, "gated": {"l1_coefficient": 1}}},
        {"target_l0": 4, "architectures": {"topk": {"target_l0": 8}, "gated": {}}},
        {"target_l0": 4, "sae": {"d_sae": 64, "target_l0": None}, "architectures": {"topk": {}}},
    ],
)
def test_fields_with_an_effect(changes):
    assert runs(**changes)


def test_rungs_lie_after_the_schedule_of_an_architecture():
    architectures = {"topk": {"k": 8, "k_start": 32, "k_anneal": 0.4}}
    (line,) = problems(early_stopping={"rungs": [0.3, 0.6]}, architectures=architectures)
    assert "but got rungs=[0.3, 0.6] where the sparsity of 'topk' settles at 0.4 of the run." in line
    assert runs(early_stopping={"rungs": [0.01, 0.6]}, architectures={"topk": {"k": 8}}, data={**BASE["data"], "train_tokens": 1_000_000})


PAIRS = {"name": "demo", "hook_point": "blocks.2.mlp.hook_in", "hook_out": "blocks.2.hook_mlp_out"}


def starts(**changes):
    found = runs(**changes)
    return {(run.sae.architecture, run.sae.decoder_init, run.sae.b_dec_init) for run in found}


def test_transcoders_start_from_pairs_of_tokens_where_the_definition_does_not_say():
    assert starts() == {("topk", "random", "zeros")}
    assert starts(model=PAIRS) == {("topk", "data", "mean")}
    assert starts(model=PAIRS, sae={"d_sae": 64, "b_dec_init": "zeros"}) == {("topk", "data", "zeros")}
    assert starts(model=PAIRS, architectures={"topk": {"k": 8, "decoder_init": "random"}}) == {("topk", "random", "mean")}


def test_a_skip_connection_is_an_axis_of_every_architecture_that_transcodes():
    names = [name for name, cls in ARCHITECTURES.items() if cls.transcodes]
    found = runs(model=PAIRS, target_l0=8, sae={"d_sae": 64, "skip_connection": [False, True]}, architectures={name: {} for name in names})
    assert [(run.sae.architecture, run.sae.skips) for run in found] == [(name, skips) for name in names for skips in (False, True)]
    assert len({run.run_id for run in found}) == 2 * len(names)
