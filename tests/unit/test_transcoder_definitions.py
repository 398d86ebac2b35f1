"""Where transcoders read and write, as definitions give it: two names of the hook point, pairs of lists and patterns."""

import pytest
from test_expansion import BASE, problems, runs

from sweeps.definition.sweep import Sweep

IN, OUT = ["blocks.1.mlp.hook_in", "blocks.2.mlp.hook_in"], ["blocks.1.hook_mlp_out", "blocks.2.hook_mlp_out"]


def hooks(found):
    return list(dict.fromkeys((run.activations.model.hook_point, run.activations.model.hook_out) for run in found))


@pytest.mark.parametrize("name", ["hook_point", "hook_in"])
def test_where_transcoders_read_and_write_is_paired_and_not_multiplied(name):
    found = runs(model={"name": "demo", name: IN, "hook_out": OUT})
    assert hooks(found) == list(zip(IN, OUT, strict=True)) and len(found) == 4
    assert f"{name}: [" in Sweep(**{**BASE, "model": {"name": "demo", name: IN, "hook_out": OUT}}).to_yaml()


def test_patterns_of_both_hook_points_are_paired_layer_by_layer():
    found = runs(model={"name": "demo", "hook_in": "blocks.*.mlp.hook_in", "hook_out": "blocks.*.hook_mlp_out"})
    assert hooks(found) == [(f"blocks.{layer}.mlp.hook_in", f"blocks.{layer}.hook_mlp_out") for layer in range(4)]


def test_saes_have_no_hook_out_in_their_config():
    assert all("hook_out" not in run.model_dump_json() for run in runs())


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            {"hook_in": IN, "hook_out": OUT[:1]},
            "model.hook_out: `hook_out` must have as many values as `hook_in`, since they are paired, but got",
        ),
        ({"hook_in": IN[0]}, "model.hook_in: `hook_in` must come with `hook_out`, but got none."),
        (
            {"hook_point": IN[0], "hook_in": IN[0], "hook_out": OUT[0]},
            "model.hook_in: a field must be given once, but got `hook_point` and `hook_in`",
        ),
        ({"hook_in": OUT[0], "hook_out": OUT[0]}, "model: `hook_out` must be another hook point than the one that is read"),
        (
            {"hook_in": IN[0], "hook_out": "blocks.*.hook_nothing"},
            "model: `model.hook_out` must be a hook point of the model, or a pattern that matches some",
        ),
    ],
)
def test_what_bad_hook_points_of_transcoders_get(model, message):
    assert any(message in line for line in problems(model={"name": "demo", **model}))


def test_an_override_may_use_the_other_name_of_the_hook_point():
    overrides = [f"model.hook_in={IN[0]}", f"model.hook_out={OUT[0]}"]
    sweep = Sweep.from_dict(BASE, overrides)
    assert hooks(sweep.runs()) == [(IN[0], OUT[0])]
    assert repr(sweep) == f"Sweep('small', 2 runs, demo at {IN[0]} to {OUT[0]})"
    again = Sweep.from_dict(Sweep.from_dict(BASE, overrides).model_dump(exclude_unset=True), [f"model.hook_point={IN[1]}"])
    assert hooks(again.runs()) == [(IN[1], OUT[0])]
