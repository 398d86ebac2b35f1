import time
from itertools import pairwise

import pytest

from sae_core.errors import ConfigError
from sweeps.definition.yaml_text import dump_yaml, load_yaml, with_overrides


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),  # a string in YAML 1.1
        ("3.5E-4", 0.00035),
        (".5", 0.5),
        ("-2.", -2.0),
        ("1_000_000", 1_000_000),
        ("1e6", 1_000_000),
        ("2.5e6", 2_500_000),
        ("off", "off"),  # False in YAML 1.1
        ("true", True),
        ("null", None),
        ("", None),
        ("2024-01-01", "2024-01-01"),  # a date in YAML 1.1
        ("1:30", "1:30"),  # 90 in YAML 1.1
        ("[8, 1e-3]", [8, 0.001]),
        ("'1e-3'", "1e-3"),
    ],
)
def test_scalars(text, value):
    loaded = load_yaml(text, "test")
    assert loaded == value
    assert type(loaded) is type(value)


@pytest.mark.parametrize("value", ["1e-3", "off", "12", "null", "", 1e-5, 3e20, 7, True, None, "a: b", [1, [2.0, "x"]], {"a": {"b": []}}])
def test_what_is_written_is_read_back(value):
    loaded = load_yaml(dump_yaml({"key": value}), "test")["key"]
    assert loaded == value
    assert type(loaded) is type(value)


def test_written_without_aliases():
    shared = [1, 2]
    assert load_yaml(dump_yaml({"a": shared, "b": shared}), "test") == {"a": [1, 2], "b": [1, 2]}
    assert "&" not in dump_yaml({"a": shared, "b": shared})


def test_a_merge_key_may_be_overridden():
    assert load_yaml("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}", "test")["b"] == {"x": 1, "y": 3}


def test_repeated_key():
    with pytest.raises(ConfigError, match=r"mine\.yaml: line 3: a key must be given once, but got 'lr' twice"):
        load_yaml("train:\n  lr: 1\n  lr: 2\n", "mine.yaml")


def test_not_yaml():
    with pytest.raises(ConfigError, match=r"mine\.yaml: line 2: a definition must be valid YAML, but got: expected ',' or ']'"):
        load_yaml("k: [8\nlr: 1", "mine.yaml")


def test_overrides():
    definition = {"name": "a", "model": {"name": "demo"}, "wandb": None}
    overrides = ["model.name=/x=y", "train.lr=1e-3", "architectures.topk.k=[8, 16]", "wandb.mode=offline", "name=b"]
    changed = with_overrides(definition, overrides)
    assert changed == {
        "name": "b",
        "model": {"name": "/x=y"},
        "wandb": {"mode": "offline"},
        "train": {"lr": 0.001},
        "architectures": {"topk": {"k": [8, 16]}},
    }
    assert definition == {"name": "a", "model": {"name": "demo"}, "wandb": None}


@pytest.mark.parametrize("override", ["train.lr", "=3", "train.=3", ".lr=3", ""])
def test_malformed_override(override):
    with pytest.raises(ConfigError, match=f"`--set` must be given as key=value, but got '{override}'"):
        with_overrides({}, [override])


def test_override_through_a_value():
    with pytest.raises(ConfigError, match=r"must name a field of a section, but got 'model\.name\.x' where `model\.name` is 'demo'"):
        with_overrides({"model": {"name": "demo"}}, ["model.name.x=1"])


def test_override_with_a_value_that_is_not_yaml():
    with pytest.raises(ConfigError, match=r"--set k=\[8: line 1: a definition must be valid YAML"):
        with_overrides({}, ["k=[8"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: !!binary aGk=", "line 1: values must be written without tags, but got the tag '!!binary'. Remove it."),
        ("a: 1\nb: !x 1", "line 2: values must be written without tags, but got the tag '!x'."),
        ("a: !!python/object:os.system {}", "line 1: values must be written without tags, but got the tag '!!python/object:os.system'."),
        ("a: " + "[" * 100_000, "line 1: sections and lists must be at most 20 deep, but got more. Write it flat."),
        ("x" * 1_000_001, "a definition must have at most 1,000,000 characters, but got 1,000,001. Shorten it."),
        ("a: &a {<<: *a}", "line 1: `<<` must not merge a section into itself, nor more than 20 times over. Write it out."),
        ("a: {<<: [3]}", "line 1: `<<` must be given a section or a list of sections, but got '3'."),
        ("{a: 1, a: 2}", "line 1: a key must be given once, but got 'a' twice."),
        ("a: &a {x: 1}\nb: {<<: *a, x: 2, x: 3}", "line 2: a key must be given once, but got 'x' twice."),
        ("a: &a {x: 1}\nb: {<<: *a, <<: *a}", "line 2: a key must be given once, but got '<<' twice."),
        ("a: 1" + "0" * 5_000, "line 1: a number must be at most 2^63 - 1 in size, but got '1000"),
        ("a: 1\n---\nb: 1", "line 2: a definition must be valid YAML, but got: but found another document."),
        ("a: \x00", "a definition must be valid YAML, but got: ReaderError: unacceptable character #x0000"),
        ("? [1]\n: 2", "line 1: a definition must be valid YAML, but got: found unhashable key."),
    ],
)
def test_what_no_definition_needs(text, message):
    with pytest.raises(ConfigError) as error:
        load_yaml(text, "mine.yaml")
    assert str(error.value).startswith(f"mine.yaml: {message}")
    assert str(error.value).isprintable()


def test_a_text_of_too_many_values(monkeypatch):
    monkeypatch.setattr("sweeps.definition.yaml_text.MOST_VALUES", 5)
    assert load_yaml("a: [1, 2]", "test") == {"a": [1, 2]}  # the mapping, its key, the list and its items
    with pytest.raises(ConfigError, match=r"test: line 2: a definition must hold at most 5 values, but got more\. Shorten it\."):
        load_yaml("a: [1,\n2, 3]", "test")


def test_merges_of_merges_do_not_multiply():
    lines = ["a: &a {x: 1}"] + [
        f"{key}: &{key} {{<<: [{', '.join([f'*{before}'] * 9)}], {key}: 1}}" for before, key in pairwise("abcdefghijk")
    ]
    start = time.process_time()
    content = load_yaml("\n".join(lines), "test")
    assert content["k"] == dict.fromkeys("xbcdefghijk", 1)
    assert time.process_time() - start < 1


def test_earlier_merges_and_own_keys_win():
    content = load_yaml("a: &a {x: 1, y: 1}\nb: &b {x: 2, z: 2}\nc: {z: 3, <<: [*a, *b]}", "test")
    assert content["c"] == {"x": 1, "y": 1, "z": 3}


def test_what_is_read_is_named_in_one_short_line():
    with pytest.raises(ConfigError) as error:
        with_overrides({}, ["a\nb=[" + "x" * 5_000])
    assert str(error.value).startswith(r"--set a\nb=[xxx")
    assert len(str(error.value)) < 400 and str(error.value).isprintable()
