import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeps.definition.sweep import Sweep
from sweeps.definition.text import dump_yaml, load_text

NAMES = st.text("abcdefghijklmnopqrstuvwxyz_", min_size=1, max_size=8)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63) + 1, 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text("aeé 019.-+_:#'\"[]{}&*!%@<~", max_size=12)
)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3), max_leaves=8)


def axis(values, max_size=3):
    return st.lists(values, min_size=1, max_size=max_size, unique=True)


@st.composite
def definitions(draw):
    """A valid definition, and the number of runs it stands for."""
    lrs = draw(axis(st.floats(1e-6, 1e-1)))
    seeds = draw(axis(st.integers(0, 2**31)))
    widths = draw(axis(st.integers(32, 4096), max_size=2))
    ks = draw(axis(st.integers(1, 32)))
    coefficients = draw(axis(st.floats(1e-4, 1e2)))
    own_lr = draw(st.none() | st.floats(1e-6, 1e-1))
    standard = {"l1_coefficient": coefficients} | ({"lr": own_lr} if own_lr is not None else {})
    definition = {
        "name": draw(st.sampled_from(["a", "sweep-1", "x.y"])),
        "activations": {"source": "synthetic", "train_tokens": 100_000, "eval_tokens": draw(st.integers(1, 10_000))},
        "sae": {"d_sae": widths},
        "train": {"lr": lrs, "batch_size": draw(st.sampled_from([256, 2048]))},
        "architectures": {"topk": {"k": ks}, "standard": standard},
        "seeds": seeds,
    }
    per_architecture = len(widths) * len(seeds)
    return definition, per_architecture * (len(lrs) * len(ks) + (len(lrs) if own_lr is None else 1) * len(coefficients))


@pytest.mark.slow
@settings(deadline=None, max_examples=50)
@given(definitions())
def test_runs_are_the_product_all_different_and_survive_yaml(drawn):
    definition, n_runs = drawn
    sweep = Sweep(**definition)
    ids = [run.run_id for run in sweep.runs()]
    assert len(ids) == len(set(ids)) == n_runs
    assert [run.run_id for run in Sweep.from_dict(load_text(sweep.to_yaml(), "test")).runs()] == ids


@settings(deadline=None, max_examples=30)
@given(definitions(), st.randoms())
@pytest.mark.slow
def test_the_order_of_axes_and_values_changes_no_run(drawn, random):
    definition, _ = drawn
    shuffled = {**definition, "seeds": random.sample(definition["seeds"], len(definition["seeds"]))}
    shuffled["architectures"] = dict(reversed(definition["architectures"].items()))
    shuffled["train"] = dict(reversed(definition["train"].items()))
    assert {run.run_id for run in Sweep(**shuffled).runs()} == {run.run_id for run in Sweep(**definition).runs()}


@given(st.dictionaries(NAMES, VALUES, max_size=4))
def test_yaml_round_trip(content):
    assert load_text(dump_yaml(content), "test") == content


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_floats_keep_their_value(value):
    loaded = load_text(repr(value), "test")
    assert math.isclose(loaded, value, rel_tol=0, abs_tol=0)
    assert not isinstance(loaded, str)
