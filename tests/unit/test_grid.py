from sae_core.config.base import Config
from sae_core.errors import ConfigError
from sweeps.definition.grid import Axis, fields_of, points, read_section
from sweeps.definition.problems import Problems


class Inner(Config):
    dtype: str = "float32"
    layers: list[int] | None = None


class Section(Config):
    k: int = 8
    widths: tuple[int, ...] | None = None
    inner: Inner = Inner()


def axes(section):
    problems = Problems()
    grid = read_section(section, fields_of(Section, ("sae",)), "architectures.m", problems)
    try:
        problems.raise_any()
    except ConfigError as error:
        return grid, str(error)
    return grid, ""


def test_a_value_is_one_point_and_a_list_an_axis():
    grid, problems = axes({"k": [8, 16], "inner": {"dtype": "bfloat16"}})
    assert problems == ""
    assert grid == {
        ("sae", "k"): Axis("architectures.m.k", (8, 16)),
        ("sae", "inner", "dtype"): Axis("architectures.m.inner.dtype", ("bfloat16",)),
    }


def test_a_flat_list_is_the_value_of_a_sequence_field():
    assert axes({"widths": [64, 256]})[0][("sae", "widths")].values == ((64, 256),)
    assert axes({"inner": {"layers": [1, 2]}})[0][("sae", "inner", "layers")].values == ([1, 2],)


def test_a_list_of_lists_is_an_axis_of_a_sequence_field():
    assert axes({"widths": [[64, 256], None, [128]]})[0][("sae", "widths")].values == ((64, 256), None, (128,))


def test_points_are_the_product_nested_as_the_config_class_wants():
    grid, _ = axes({"k": [8, 16], "inner": {"dtype": ["a", "b"]}})
    assert [point for _, point in points(grid, "sae")] == [
        {"k": 8, "inner": {"dtype": "a"}},
        {"k": 8, "inner": {"dtype": "b"}},
        {"k": 16, "inner": {"dtype": "a"}},
        {"k": 16, "inner": {"dtype": "b"}},
    ]
    assert list(points(grid, "train")) == [({}, {})]


def test_an_empty_axis():
    grid, problems = axes({"k": []})
    assert problems == ("architectures.m.k: an axis must list at least one value, but got k=[]. Add one or leave the field out.")
    assert list(points(grid, "sae")) == []


def test_a_value_listed_twice():
    _, problems = axes({"k": [8, 16, 8]})
    assert problems == "architectures.m.k: an axis must list each value once, but got 8 twice. Remove one."
    _, problems = axes({"widths": [[64], [64]]})
    assert "but got [64] twice" in problems


def test_an_unknown_key():
    _, problems = axes({"kk": 8, "inner": {"dtyp": "a"}})
    assert problems.splitlines() == [
        "architectures.m: unknown key 'kk'. Did you mean 'k'? Known keys here: ['inner', 'k', 'widths'].",
        "architectures.m.inner: unknown key 'dtyp'. Did you mean 'dtype'? Known keys here: ['dtype', 'layers'].",
    ]
