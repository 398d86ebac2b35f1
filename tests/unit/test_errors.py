import pytest

from sae_core.errors import ConfigError, UnknownNameError, border, reason_of


def test_an_unknown_name_gets_the_nearest_known_one_and_the_remedy() -> None:
    error = UnknownNameError.of("architecture", "topkk", ["standard", "topk"], "To add one, write a file.")
    assert str(error) == (
        "architecture must be one of ['standard', 'topk'], but got 'topkk'. Did you mean 'topk'? To add one, write a file."
    )
    assert isinstance(error, ConfigError) and isinstance(error, ValueError)


def test_nothing_is_suggested_where_nothing_is_near() -> None:
    assert str(UnknownNameError.of("metric", "zzz", ["l0"])) == "metric must be one of ['l0'], but got 'zzz'."


def test_long_lists_are_cut() -> None:
    message = str(UnknownNameError.of("hook", "x", [f"block{i:02}" for i in range(40)]))
    assert "'block29', '... and 10 more']" in message and "block30" not in message


class Panic(BaseException):
    """As a library written in Rust ends: not an Exception."""


@pytest.mark.parametrize(
    ("raised", "reason"),
    [
        (KeyError("weight"), "KeyError: 'weight'"),
        (OSError("no space\nmore"), "no space"),
        (AssertionError(), "AssertionError"),
        (Panic("index out of range."), "Panic: index out of range"),
    ],
)
def test_whatever_is_raised_at_a_border_is_one_message(raised: BaseException, reason: str) -> None:
    with pytest.raises(ConfigError) as caught, border("`model.name` must be readable, but got 'x'", "Correct it."):
        raise raised
    assert str(caught.value) == f"`model.name` must be readable, but got 'x': {reason}. Correct it."
    assert caught.value.__cause__ is raised


@pytest.mark.parametrize("raised", [UnknownNameError("k"), KeyboardInterrupt(), SystemExit(3)])
def test_a_message_of_ours_and_an_interrupt_pass_a_border(raised: BaseException) -> None:
    with pytest.raises(type(raised)) as caught, border("x", "y"):
        raise raised
    assert caught.value is raised


def test_a_reason_is_short() -> None:
    assert len(reason_of(ValueError("x" * 10_000))) < 400
