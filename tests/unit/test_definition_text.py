import time
from itertools import pairwise

import pytest

from sae_core.errors import ConfigError
from sweeps.definition.text import apply_overrides, dump_yaml, load_text


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
    loaded = load_text(text, "test")
    assert loaded == value
    assert type(loaded) is type(value)


@pytest.mark.parametrize("value", ["1e-3", "off", "12", "null", "", 1e-5, 3e20, 7, True, None, "a: b", [1, [2.0, "x"]], {"a": {"b": []}}])
def test_what_is_written_is_read_back(value):
    loaded = load_text(dump_yaml({"key": value}), "test")["key"]
    assert loaded == value
    assert type(loaded) is type(value)


def test_written_without_aliases():
    shared = [1, 2]
    assert load_text(dump_yaml({"a": shared, "b": shared}), "test") == {"a": [1, 2], "b": [1, 2]}
    assert "&" not in dump_yaml({"a": shared, "b": shared})


def test_a_merge_key_may_be_overridden():
    assert load_text("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}", "test")["b"] == {"x": 1, "y": 3}


def test_repeated_key():
    with pytest.raises(ConfigError, match=r"mine\.yaml: line 3: a definition must be valid YAML, but got: 'lr' twice in one section"):
        load_text("train:\n  lr: 1\n  lr: 2\n", "mine.yaml")


def test_not_yaml():
    with pytest.raises(ConfigError, match=r"mine\.yaml: line 2: a definition must be valid YAML, but got: expected ',' or ']'"):
        load_text("k: [8\nlr: 1", "mine.yaml")


def test_overrides():
    definition = {"name": "a", "model": {"name": "demo"}, "wandb": None}
    overrides = ["model.name=/x=y", "train.lr=1e-3", "architectures.topk.k=[8, 16]", "wandb.mode=offline", "name=b"]
    apply_overrides(definition, overrides)
    assert definition == {
        "name": "b",
        "model": {"name": "/x=y"},
        "wandb": {"mode": "offline"},
        "train": {"lr": 0.001},
        "architectures": {"topk": {"k": [8, 16]}},
    }


@pytest.mark.parametrize("override", ["train.lr", "=3", "train.=3", ".lr=3", ""])
def test_malformed_override(override):
    with pytest.raises(ConfigError, match=f"`--set` must be given as key=value, but got '{override}'"):
        apply_overrides({}, [override])


def test_override_through_a_value():
    with pytest.raises(ConfigError, match=r"must name a field of a section, but got 'model\.name\.x' where 'name' is 'demo'"):
        apply_overrides({"model": {"name": "demo"}}, ["model.name.x=1"])


def test_override_with_a_value_that_is_not_yaml():
    with pytest.raises(ConfigError, match=r"--set k=\[8: line 1: a definition must be valid YAML"):
        apply_overrides({}, ["k=[8"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: !!binary aGk=", "a: `a` must be text, a number, true, false, null, a list or a section, but got a=b'hi'. Correct it."),
        ("a: !!set {b}", "a: `a` must be text, a number, true, false, null, a list or a section, but got a={'b'}."),
        ("a: 1\nb: !x 1", "line 2: a definition must be valid YAML, but got: could not determine a constructor for the tag '!x'."),
        (
            "a: !!python/object:os.system {}",
            "line 1: a definition must be valid YAML, but got: could not determine a constructor",
        ),
        ("a: " + "[" * 100_000, "a definition must be valid YAML, but got sections nested too deep. Correct it."),
        (
            "a: " + "[" * 30 + "]" * 30,
            "a definition must hold at most 200,000 values",
        ),
        ("x" * 1_000_001, "a definition must have at most 1,000,000 characters, but got more. Shorten it."),
        (
            "a: &a {<<: *a}",
            "a definition must hold at most 200,000 values",
        ),
        ("a: {<<: [3]}", "a: `<<` must be followed by a section or a list of sections, but got 3."),
        ("{a: 1, a: 2}", "line 1: a definition must be valid YAML, but got: 'a' twice in one section. Correct it."),
        ("a: &a {x: 1}\nb: {<<: *a, x: 2, x: 3}", "line 2: a definition must be valid YAML, but got: 'x' twice in one section."),
        ("a: &a {x: 1}\nb: {<<: *a, <<: *a}", "line 2: a definition must be valid YAML, but got: '<<' twice in one section."),
        ("a: 1" + "0" * 5_000, "a definition must be valid YAML, but got: ValueError: Exceeds the limit (4300 digits)"),
        ("a: 1\n---\nb: 1", "line 2: a definition must be valid YAML, but got: but found another document."),
        ("a: \x00", "a definition must be valid YAML, but got: ReaderError: unacceptable character #x0000"),
        ("? [1]\n: 2", "line 1: a definition must be valid YAML, but got: found unhashable key."),
    ],
)
@pytest.mark.slow
def test_what_no_definition_needs(text, message):
    with pytest.raises(ConfigError) as error:
        load_text(text, "mine.yaml")
    assert str(error.value).startswith(f"mine.yaml: {message}")
    assert str(error.value).isprintable()


SAME = {
    ".yaml": "name: a\ntrain: {lr: [1e-3, 2], batch_size: 1e3}\nsae: {d_sae: 1_024}\n",
    ".toml": 'name = "a"\n[train]\nlr = [1e-3, 2]\nbatch_size = 1e3\n[sae]\nd_sae = 1_024\n',
    ".json": '{\n\t"name": "a", "train": {"lr": [1e-3, 2], "batch_size": 1e3},\n\t"sae": {"d_sae": 1024}}\n',
}


@pytest.mark.parametrize("ending", SAME)
def test_the_same_definition_in_every_language(ending):
    content = load_text(SAME[ending], f"mine{ending}", ending)
    assert content == {"name": "a", "train": {"lr": [0.001, 2], "batch_size": 1000}, "sae": {"d_sae": 1024}}
    assert [type(number) for number in (*content["train"]["lr"], content["train"]["batch_size"])] == [float, int, int]


@pytest.mark.parametrize(
    ("text", "ending", "message"),
    [
        ("name: a", ".toml", "a definition must be valid TOML, but got: TOMLDecodeError: "),
        ("a = 1\na = 2", ".toml", "a definition must be valid TOML, but got: TOMLDecodeError: Cannot overwrite a value"),
        ("a = 2024-01-01", ".toml", "a: `a` must be text, a number, true, false, null, a list or a section, but got a=datetime.date("),
        ("name: a", ".json", "a definition must be valid JSON, but got: JSONDecodeError: Expecting value: line 1 column 1"),
        ('{"train": {"lr": 1, "lr": 2}}', ".json", "a definition must be valid JSON, but got: 'lr' twice in one section. Correct it."),
        ('{"lr": NaN}', ".json", "a definition must be valid JSON, but got: NaN, which is no number. Correct it."),
        ('{"lr": -Infinity}', ".json", "a definition must be valid JSON, but got: -Infinity, which is no number. Correct it."),
        ("[" * 100_000, ".json", "a definition must be valid JSON, but got sections nested too deep. Correct it."),
        ("[" * 30 + "]" * 30, ".json", "a definition must hold at most 200,000 values"),
        ("1" + "0" * 5_000, ".json", "a definition must be valid JSON, but got: ValueError: Exceeds the limit (4300 digits)"),
    ],
)
def test_what_no_toml_and_json_can_hold(text, ending, message):
    with pytest.raises(ConfigError) as error:
        load_text(text, f"mine{ending}", ending)
    assert str(error.value).startswith(f"mine{ending}: {message}")
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("value", ["text.json", "text.toml"])
def test_a_setting_is_yaml_whatever_it_ends_with(value):
    content = {}
    apply_overrides(content, [f"data.dataset={value}"])
    assert content == {"data": {"dataset": value}}


@pytest.mark.slow
def test_merges_of_merges_are_bounded():
    lines = ["a: &a {x: 1}"] + [f"{key}: &{key} {{<<: [{', '.join([f'*{before}'] * 9)}]}}" for before, key in pairwise("abcdefghijk")]
    start = time.process_time()
    assert load_text("\n".join(lines[:4]), "test")["d"] == {"x": 1}
    with pytest.raises(ConfigError, match="at most 200,000 values"):
        load_text("\n".join(lines), "test")
    assert time.process_time() - start < 2


def test_earlier_merges_and_own_keys_win():
    content = load_text("a: &a {x: 1, y: 1}\nb: &b {x: 2, z: 2}\nc: {z: 3, <<: [*a, *b]}", "test")
    assert content["c"] == {"x": 1, "y": 1, "z": 3}


def test_what_is_read_is_named_in_one_short_line():
    with pytest.raises(ConfigError) as error:
        apply_overrides({}, ["a\nb=[" + "x" * 5_000])
    assert str(error.value).startswith(r"--set a\nb=[xxx")
    assert len(str(error.value)) < 400 and str(error.value).isprintable()
