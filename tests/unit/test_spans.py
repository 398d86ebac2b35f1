from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from sae_core.config.base import Config
from sae_core.config.spans import Span, fraction_of_run, steps_of


class Phase(Config):
    span: Span = 0.0


def parsed(value: Any) -> float | str:
    return Phase.model_validate({"span": value}).span


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.05, 0.05),
        (1, 1.0),
        ("5%", 0.05),
        ("0.1 %", 0.001),
        ("500 steps", "500 steps"),
        ("1 step", "1 steps"),
        ("1.5k steps", "1500 steps"),
        ("2_000_000 tokens", "2000000 tokens"),
        ("2M tokens", "2000000 tokens"),
        ("0.5G tokens", "500000000 tokens"),
        ("0 steps", 0.0),
    ],
)
def test_a_length_has_one_spelling(value: object, expected: float | str) -> None:
    assert parsed(value) == expected
    assert type(parsed(value)) is type(expected)
    assert parsed(parsed(value)) == expected


@pytest.mark.parametrize(
    "value",
    [
        1.1,
        -0.1,
        500,
        float("nan"),
        True,
        None,
        "500",
        "0.05",
        "2m tokens",
        "1.5 steps",
        "0.0001k steps",
        "1000000001G tokens",
        "9" * 4_000 + "G steps",
        "-5 steps",
        "5 epochs",
        "101%",
        "M tokens",
    ],
)
def test_anything_else_is_refused(value: object) -> None:
    with pytest.raises(ValidationError, match=f"span\n.*a span of the run must be a fraction .* but got {value!r}. Write"):
        parsed(value)


def test_steps() -> None:
    # 200 steps of 64 tokens.
    assert steps_of(0.05, 200, 64) == 10
    assert steps_of("30 steps", 200, 64) == 30
    assert steps_of("640 tokens", 200, 64) == 10
    assert steps_of("650 tokens", 200, 64) == 10  # 10.2 steps
    assert steps_of("31 tokens", 200, 64) == 0  # less than half a step
    assert steps_of("400 steps", 200, 64) == 400


@given(st.floats(0, 1), st.integers(1, 10**7))
def test_a_fraction_is_rounded_to_steps(fraction: float, n_steps: int) -> None:
    assert steps_of(fraction, n_steps, 64) == round(fraction * n_steps)


@given(st.integers(1, 10**7), st.integers(1, 10**5), st.data())
def test_steps_and_whole_batches_of_tokens_are_exact_and_parts_of_a_run_add_up(n_steps: int, batch_size: int, data: st.DataObject) -> None:
    n = data.draw(st.integers(0, n_steps))
    for unit, factor in (("steps", 1), ("tokens", batch_size)):
        assert steps_of(f"{n * factor} {unit}", n_steps, batch_size) == n
        rest = f"{(n_steps - n) * factor} {unit}"
        assert fraction_of_run(f"{n * factor} {unit}", n_steps, batch_size) + fraction_of_run(rest, n_steps, batch_size) == 1
