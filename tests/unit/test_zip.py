"""Paired axes: `zip` in a definition."""

import json
import tomllib
from itertools import product

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_core.errors import ConfigError
from sweeps.definition.sweep import Sweep

BASE = {
    "name": "paired",
    "activations": {"source": "synthetic", "d_in": [16, 24], "n_features": 32, "train_tokens": 10_000, "eval_tokens": 1_000},
    "sae": {"d_sae": [32, 48, 64]},
    "train": {"lr": [4e-3, 2e-3, 1e-3], "batch_size": 256},
    "architectures": {"topk": {"k": [2, 4]}, "standard": {"l1_coefficient": 0.3}},
    "seeds": [0, 1],
}


def runs(**changes):
    return Sweep(**{**BASE, **changes}).runs()


def problems(**changes):
    with pytest.raises(ConfigError) as error:
        runs(**changes)
    return str(error.value).splitlines()


def test_values_come_together_across_sections():
    found = runs(zip=[["sae.d_sae", "train.lr"]])
    assert {(run.sae.d_sae, run.train.lr) for run in found} == {(32, 4e-3), (48, 2e-3), (64, 1e-3)}
    assert len(found) == 2 * 3 * (2 + 1) * 2
    everything = [run.run_id for run in runs()]
    assert [run.run_id for run in found] == [run_id for run_id in everything if run_id in {run.run_id for run in found}]


def test_activations_are_paired_too():
    found = runs(zip=[["activations.d_in", "architectures.topk.k"]])
    topk = {(run.activations.d_in, run.sae.k) for run in found if run.sae.architecture == "topk"}
    assert topk == {(16, 2), (24, 4)}
    assert len(found) == 2 * 3 * 3 * 2 + 2 * 3 * 3 * 2


def test_an_architecture_with_its_own_field_has_its_own_pairs():
    own = {"topk": {"k": 4, "lr": [9e-3, 8e-3, 7e-3]}, "standard": {"lr": 5e-3}}
    found = runs(architectures=own, zip=[["sae.d_sae", "train.lr", "architectures.topk.lr"]], seeds=[0])
    pairs = {(run.sae.architecture, run.sae.d_sae, run.train.lr) for run in found}
    assert pairs == {("topk", 32, 9e-3), ("topk", 48, 8e-3), ("topk", 64, 7e-3), *(("standard", d_sae, 5e-3) for d_sae in (32, 48, 64))}


def test_a_value_may_repeat_where_it_is_paired():
    found = runs(sae={"d_sae": [32, 32, 64]}, zip=[["sae.d_sae", "train.lr"]], target_l0=4, architectures={"topk": {}}, seeds=[0])
    assert {(run.sae.d_sae, run.train.lr) for run in found} == {(32, 4e-3), (32, 2e-3), (64, 1e-3)}
    again = problems(sae={"d_sae": [32, 32, 64]}, train={"lr": [1e-3, 1e-3, 2e-3]}, zip=[["sae.d_sae", "train.lr"]])
    assert any("runs must differ, but got topk-" in line for line in again)


def test_hook_points_of_transcoders_stay_paired_with_each_other():
    layers = [1, 2]
    model = {
        "name": "demo",
        "hook_in": [f"blocks.{layer}.mlp.hook_in" for layer in layers],
        "hook_out": [f"blocks.{layer}.hook_mlp_out" for layer in layers],
    }
    data = {"dataset": "demo", "train_tokens": 100_000, "eval_tokens": 1_000}
    for place in ("model.hook_in", "model.hook_out"):
        found = runs(activations=None, model=model, data=data, sae={"d_sae": [32, 64]}, zip=[[place, "sae.d_sae"]], seeds=[0])
        together = {(run.activations.model.hook_point, run.activations.model.hook_out, run.sae.d_sae) for run in found}
        assert together == set(zip(model["hook_in"], model["hook_out"], [32, 64], strict=True))
    rates = {"lr": [1e-3, 2e-3]}
    found = runs(activations=None, model=model, data=data, sae={"d_sae": 32}, train=rates, zip=[["train.lr", "model.hook_out"]], seeds=[0])
    assert {(run.activations.model.hook_out, run.train.lr) for run in found} == set(zip(model["hook_out"], rates["lr"], strict=True))


def test_a_field_that_only_some_pairs_read():
    train = {"lr_schedule": ["constant", "cosine"], "lr_min_factor": [0.1, 0.3]}
    found = runs(train=train, zip=[["train.lr_schedule", "train.lr_min_factor"]])
    assert {(run.train.lr_schedule, run.train.lr_min_factor) for run in found} == {("constant", 0.1), ("cosine", 0.3)}
    train["lr_min_factor"] = [0.2, 0.3]
    (line,) = problems(train=train, zip=[["train.lr_schedule", "train.lr_min_factor"]])
    assert "`lr_min_factor` must come with a cosine `lr_schedule`" in line


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (
            [["sae.d_sae", "train.lrr"]],
            "zip: unknown key 'train.lrr'. Did you mean 'train.lr'? `zip` names fields that the definition gives",
        ),
        ([["sae.d_sae", "seeds"]], "zip: unknown key 'seeds'."),
        ([["sae.d_sae"]], "zip: at least two fields must be paired, but got ['sae.d_sae']. Add one, or remove the list."),
        ([[]], "zip: at least two fields must be paired, but got []."),
        ([["sae.d_sae", "sae.d_sae"]], "zip: a field must be paired once, but got 'sae.d_sae' 2 times."),
        ([["sae.d_sae", "train.lr"], ["train.lr", "activations.d_in"]], "zip: a field must be paired once, but got 'train.lr' 2 times."),
        (
            [["sae.d_sae", "activations.d_in"]],
            "zip: paired fields must have as many values as each other, but got 2 of activations.d_in, 3 of sae.d_sae. Add or remove some.",
        ),
        ([["sae.d_sae", "train.batch_size"]], "but got 3 of sae.d_sae, 1 of train.batch_size."),
        (["sae.d_sae"], "zip: `zip` must be a valid list, but got zip='sae.d_sae'."),
        ("sae.d_sae", "zip: `zip` must be a valid list, but got zip='sae.d_sae'."),
    ],
)
def test_what_is_refused(pairs, message):
    assert any(message in line for line in problems(zip=pairs))


def searching(**changes):
    changes = {"search": {"trials": 4}, "activations": {**BASE["activations"], "d_in": 16}, "architectures": {"topk": {"k": 4}}} | changes
    return Sweep(**{**BASE, **changes})


def test_a_search_takes_a_pair_as_one_choice():
    space = searching(zip=[["sae.d_sae", "train.lr"]]).space()
    assert list(space.parameters("topk")) == ["sae.d_sae"]
    assert [(run.sae.d_sae, run.train.lr, run.seed) for run in space.runs({"sae.d_sae": 48})] == [(48, 2e-3, 0), (48, 2e-3, 1)]
    assert space.identity(["l0"]) != searching(train={"lr": [1e-3, 2e-3, 4e-3]}, zip=[["sae.d_sae", "train.lr"]]).space().identity(["l0"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"train": {"lr": {"low": 1e-3, "high": 1e-2}}, "zip": [["sae.d_sae", "train.lr"]]},
            "train.lr: paired fields must be lists, but got low=0.001 high=0.01 log=False step=None in `zip`.",
        ),
        (
            {"sae": {"d_sae": [32, 32, 64]}, "zip": [["sae.d_sae", "train.lr"]]},
            "sae.d_sae: a search must have each value once in the first field of a list in `zip`, but got [32, 32, 64].",
        ),
    ],
)
def test_what_a_search_refuses(changes, message):
    with pytest.raises(ConfigError) as error:
        searching(**changes).space()
    assert message in str(error.value)


def test_the_same_runs_from_yaml_toml_json_python_and_settings(tmp_path):
    pairs = [["sae.d_sae", "train.lr"]]
    ids = [run.run_id for run in runs(zip=pairs)]
    (tmp_path / "a.yaml").write_text(yaml.safe_dump({**BASE, "zip": pairs}, sort_keys=False))
    (tmp_path / "a.json").write_text(json.dumps({**BASE, "zip": pairs}))
    (tmp_path / "a.toml").write_text(
        """
        name = "paired"
        zip = [["sae.d_sae", "train.lr"]]
        seeds = [0, 1]
        activations = {source = "synthetic", d_in = [16, 24], n_features = 32, train_tokens = 1e4, eval_tokens = 1_000}
        train = {lr = [4e-3, 2e-3, 1e-3], batch_size = 256}
        [sae]
        d_sae = [32, 48, 64]
        [architectures]
        topk.k = [2, 4]
        standard.l1_coefficient = 0.3
        """
    )
    assert tomllib.loads((tmp_path / "a.toml").read_text())["zip"] == pairs
    for ending in ("yaml", "json", "toml"):
        assert [run.run_id for run in Sweep.from_yaml(tmp_path / f"a.{ending}").runs()] == ids
    assert [run.run_id for run in Sweep.from_dict(BASE, ["zip=[[sae.d_sae, train.lr]]"]).runs()] == ids
    written = tmp_path / "written.yaml"
    written.write_text(Sweep.from_dict(BASE, ["zip=[[sae.d_sae, train.lr]]"]).to_yaml())
    assert [run.run_id for run in Sweep.from_yaml(written).runs()] == ids


@pytest.mark.slow
@settings(deadline=None, max_examples=30)
@given(st.data())
def test_runs_are_the_product_of_pairs_and_other_axes(data):
    """Beside an oracle: all combinations of the rows that each list in `zip` is."""
    length = data.draw(st.integers(1, 3))
    axes = {
        "activations.d_in": [12, 16, 24],
        "sae.d_sae": [32, 48, 64],
        "train.lr": [1e-3, 2e-3, 3e-3],
        "train.adam_beta1": [0.5, 0.7, 0.9],
        "architectures.topk.k": [2, 3, 4],
    }
    axes = {place: values[:length] for place, values in axes.items()}
    members = data.draw(st.lists(st.sampled_from(list(axes)), min_size=2, unique=True))
    cut = data.draw(st.integers(0, len(members)))
    groups = [group for group in (members[:cut], members[cut:]) if len(group) > 1]
    definition = {**BASE, "activations": {**BASE["activations"]}, "sae": {}, "train": {"batch_size": 256}, "architectures": {"topk": {}}}
    for place, values in axes.items():
        *sections, field = place.split(".")
        node = definition
        for section in sections:
            node = node[section]
        node[field] = values
    alone = [[place] for place in axes if not any(place in group for group in groups)]
    expected = {
        tuple(axes[place][numbers[index]] for index, group in enumerate([*groups, *alone]) for place in group)
        for numbers in product(range(length), repeat=len(groups) + len(alone))
    }
    order = [place for group in [*groups, *alone] for place in group]
    value_of = {
        "activations.d_in": lambda run: run.activations.d_in,
        "sae.d_sae": lambda run: run.sae.d_sae,
        "train.lr": lambda run: run.train.lr,
        "train.adam_beta1": lambda run: run.train.adam_beta1,
        "architectures.topk.k": lambda run: run.sae.k,
    }
    found = Sweep(**{**definition, "zip": groups, "seeds": [0]}).runs()
    assert {tuple(value_of[place](run) for place in order) for run in found} == expected
    assert len(found) == len(expected)
