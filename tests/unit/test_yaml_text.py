import pytest

from sae_core.errors import ConfigError
from sweeps.yaml_text import dump_yaml, load_yaml, with_overrides


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
