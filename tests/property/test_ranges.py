"""Ranges of a search: what Optuna proposes, what turns ask for and what a definition may fix are the same numbers, between the ends."""

import math

import optuna
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from sweeps.definition.grid import Axis, Range
from sweeps.definition.space import GOLDEN_RATIO, _contains

optuna.logging.set_verbosity(optuna.logging.WARNING)

WHOLE = st.integers(-(10**6), 10**6)
DECIMAL = st.floats(-1e6, 1e6).map(lambda number: round(number, 4))


@st.composite
def ranges(draw):
    numbers = draw(st.sampled_from([WHOLE, DECIMAL]))
    log = draw(st.booleans())
    low, high = sorted(draw(st.tuples(numbers, numbers).map(lambda pair: (abs(pair[0]), abs(pair[1])) if log else pair)))
    width = high - low
    step = None if log else draw(st.none() | numbers.map(lambda step: round(abs(step) % width, 4) if width else None))
    try:
        return Range(low=low, high=high, log=log, step=step)
    except ValidationError:
        assume(False)


def proposed(one):
    """What Optuna draws."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    trials = [study.ask() for _ in range(5)]
    if one.whole:
        return [trial.suggest_int("x", int(one.low), int(one.last), log=one.log, step=int(one.step or 1)) for trial in trials]
    return [trial.suggest_float("x", one.low, one.last, log=one.log, step=one.step) for trial in trials]


@pytest.mark.slow
@pytest.mark.filterwarnings("error")
@settings(max_examples=200)
@given(ranges())
def test_every_number_lies_between_the_ends_and_on_a_step(one):
    assert one.low <= one.last <= one.high
    if one.step is None:
        assert one.last == one.high
    else:
        assert one.high - one.last < one.step * (1 + 1e-9)
    axis = Axis("x", (), one, one.whole)
    levels = [one.at(turn * GOLDEN_RATIO % 1, whole=one.whole) for turn in range(5)]
    for number in (*proposed(one), *levels, one.low, one.last):
        assert one.low <= number <= one.high
        assert _contains(axis, number), number
        assert (math.isfinite(number) and isinstance(number, int)) or not one.whole
