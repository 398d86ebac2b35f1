from typing import Annotated, Literal

import pytest
from pydantic import Field, ValidationError, model_validator

from sae_core.config.base import Config
from sae_core.errors import ConfigError
from sweeps.definition.problems import Problems, collect, printable, shown, unknown_key


class Inner(Config):
    width: int = 1


class Outer(Config):
    lr: Annotated[float, Field(gt=0, le=1)] = 0.1
    n: int = 1
    shape: Literal["constant", "cosine"] = "constant"
    on: bool = True
    name: str = "a"
    widths: Annotated[tuple[int, ...], Field(min_length=1)] | None = None
    inner: Inner | None = None

    @model_validator(mode="after")
    def _rule(self):
        if self.n > 9:
            raise ConfigError(f"`n` must be <= 9, but got n={self.n}. Lower it.")
        return self


class Needs(Config):
    k: int


def message_of(problems):
    with pytest.raises(ConfigError) as error:
        problems.raise_any()
    return str(error.value)


def found(model, fields):
    problems = Problems()
    with pytest.raises(ValidationError) as error:
        model.model_validate(fields)
    collect(error.value, problems, lambda path: ".".join(("here", *path)), model)
    return message_of(problems)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lr": 0}, "here.lr: `lr` must be greater than 0, but got lr=0. Raise it."),
        ({"lr": 2.0}, "here.lr: `lr` must be less than or equal to 1, but got lr=2.0. Lower it."),
        ({"lr": "x"}, "here.lr: `lr` must be a valid number, but got lr='x'. Give a number."),
        ({"lr": float("nan")}, "here.lr: `lr` must be a finite number, but got lr=nan. Give a number."),
        ({"n": 2.0}, "here.n: `n` must be a valid integer, but got n=2.0. Write 2."),
        ({"n": "2"}, "here.n: `n` must be a valid integer, but got n='2'. Give a whole number."),
        ({"n": 10}, "here.n: `n` must be <= 9, but got n=10. Lower it."),
        ({"on": "yes"}, "here.on: `on` must be a valid boolean, but got on='yes'. Write true or false."),
        ({"name": 3}, "here.name: `name` must be a valid string, but got name=3. Give text; put it in quotes if it looks like a number."),
        ({"shape": "cosin"}, "here.shape: `shape` must be 'constant' or 'cosine', but got shape='cosin'. Did you mean 'cosine'?"),
        ({"shape": 7}, "here.shape: `shape` must be 'constant' or 'cosine', but got shape=7. Choose one of them."),
        ({"widths": 3}, "here.widths: `widths` must be a valid tuple, but got widths=3. Write it in brackets, e.g. [64, 256]."),
        ({"widths": ()}, "here.widths: `widths` must hold: tuple should have at least 1 item"),
        ({"inner": 3}, "here.inner: `inner` must be a valid mapping"),
        (
            {"inner": {"widht": 3}},
            "here.inner: unknown key 'widht'. Did you mean 'width'? Known keys here: ['width'].",
        ),
    ],
)
def test_messages(fields, message):
    assert message in found(Outer, fields)


def test_missing():
    assert found(Needs, {}) == "here.k: `k` must be given, but is missing. Add it."


def test_nothing_of_pydantic_shows():
    text = found(Outer, {"lr": 0, "n": "x", "widths": 3, "inner": 3, "other": 1})
    assert len(text.splitlines()) == 5
    assert not any(word in text.lower() for word in ("pydantic", "input", "http", "instance", "type="))


def test_unknown_key_without_a_near_one():
    assert unknown_key("zzz", ["lr", "k"], "A hint.") == "unknown key 'zzz'. A hint. Known keys here: ['k', 'lr']."


def test_each_problem_is_told_once_and_a_line_each():
    problems = Problems()
    assert not problems
    problems.add("a", "one\ntwo")
    problems.add("a", "one")
    problems.add("", "three")
    assert problems
    assert message_of(problems) == "a: one\na: two\nthree"


def test_long_values_are_shortened():
    assert shown("x" * 200) == "'" + "x" * 79 + "..."


def test_messages_can_be_printed_anywhere():
    assert printable("é ℓ") == "é ℓ"
    assert printable("a\x1b[31m\ud800\x85\u2028") == r"a\x1b[31m\ud800\x85\u2028"
    problems = Problems()
    problems.add("a\udcff", "b\x00")
    assert message_of(problems) == r"a\udcff: b\x00"


def test_a_long_line_loses_its_middle():
    problems = Problems()
    problems.add("train.lr", f"`lr` must be short, but got {'x' * 9_000}. Shorten it.")
    (line,) = message_of(problems).splitlines()
    assert len(line) < 1_600 and line.startswith("train.lr: `lr` must be short, but got xxx") and line.endswith("xxx. Shorten it.")


def test_values_that_have_no_text():
    assert shown(10**9_000).startswith("int (Exceeds the limit")
    deep = []
    for _ in range(100_000):
        deep = [deep]
    assert shown(deep).startswith("list (maximum recursion depth exceeded")


def test_of_many_problems_the_first_hundred_are_told():
    problems = Problems()
    for index in range(101):
        problems.add("", f"{index}")
    assert problems.enough
    assert message_of(problems).splitlines()[99:] == ["99", "... and more than 100 problems in all. Correct these first."]
