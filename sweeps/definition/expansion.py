"""A sweep's axes -> validated `RunConfig`s, with every problem found on the way and its place in the definition.

Each architecture has its own grid: the common axes with those it overrides. The points of each part (activations, sae,
train) are validated by that part's config class, so that a rule between two of its fields (k <= d_sae) is checked for every
combination; then the parts are combined.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice, product
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from sae_core.architectures.topk_family import TopKFamilyConfig
from sae_core.config.run import ARCHITECTURES, SOURCES, ActivationsConfig, ArchitectureConfig, RunConfig, TrainConfig
from sae_core.config.spans import fraction_of_run
from sae_core.errors import ConfigError, UnknownNameError, border, reason_of
from sweeps.definition.grid import Axis, FieldPath, Grid, points, read_axis, read_section
from sweeps.definition.local_data import absolute
from sweeps.definition.problems import Problems, collect, model_in, shown, unknown_key
from sweeps.definition.sections import Definition
from sweeps.definition.unread import check_read

C = TypeVar("C", bound=BaseModel)

MOST_RUNS = 100_000
"""Runs of a sweep: more are refused before any of them is made."""
_SEED = TypeAdapter(Annotated[int, RunConfig.model_fields["seed"]], config=ConfigDict(strict=True))
_TOKENS = ("train_tokens", "eval_tokens")
"""Fields of the activations as a whole, given under `data` where there is such a section."""
_LOCAL_PATHS: tuple[FieldPath, ...] = (("activations", "model", "name"), ("activations", "data", "dataset"))


@dataclass(frozen=True, slots=True)
class Axes:
    """A definition as axes."""

    activations: Grid
    """Axes of the activations; the architectures' grids have them too."""
    architectures: dict[str, Grid]
    seeds: tuple[int, ...]
    data_seeds: tuple[int, ...]

    @property
    def n_repeats(self) -> int:
        """Runs that each setting is made of: one per seed and order of the tokens."""
        return len(self.seeds) * len(self.data_seeds)

    @property
    def n_runs(self) -> int:
        """Runs of the grids together."""
        return self.n_repeats * sum(math.prod(len(axis.values) for axis in grid.values()) for grid in self.architectures.values())


def read_axes(sweep: Definition, problems: Problems) -> Axes:
    """The axes of every architecture: the common ones with those it overrides."""
    if not sweep.architectures:
        problems.add("architectures", "a sweep must have at least one architecture, but got {}. Add e.g. `topk: {k: [8, 16, 32]}`.")
    common = _activation_axes(sweep, problems)
    data_seeds = _seeds(sweep.data_seed, "data_seed", problems)
    seeds = _seeds(sweep.seeds, "seeds", problems)
    grids = {}
    for name, own in sweep.architectures.items():
        if name in ARCHITECTURES:
            grids[name] = common | _architecture_axes(sweep, name, own or {}, problems)
        else:
            problems.add("architectures", str(UnknownNameError.of("architecture", name, ARCHITECTURES)))
    return Axes(common, grids, seeds, data_seeds)


def runs_of(axes: Axes, problems: Problems, most: int | None = None) -> list[RunConfig]:
    """Every run of the grids, validated.

    Args:
        most: runs an architecture is cut off at, and points of a part of it.
    """
    sources = _activation_configs(axes.activations, problems, most)
    runs: dict[str, RunConfig] = {}
    for name, grid in axes.architectures.items():
        saes = _sae_configs(grid, ARCHITECTURES[name].Config, problems, name, most)
        trains = _configs(grid, "train", TrainConfig, problems, name, most)
        place_of = _place_of(grid, name, "")
        for activations, data_seed, sae, train, seed in islice(product(sources, axes.data_seeds, saes, trains, axes.seeds), most):
            fields = {"activations": activations, "sae": sae, "train": train, "seed": seed, "data_seed": data_seed}
            if problems.enough:
                break
            for run in _validated(RunConfig, fields, problems, place_of):
                if (run_id := run.run_id) in runs:
                    rule = f"runs must differ, but got {run_id} twice. Remove one of the values that mean the same."
                    problems.add(f"architectures.{name}", rule)
                runs[run_id] = run
    return list(runs.values())


def expand(sweep: Definition) -> list[RunConfig]:
    """Every run of the grid that `sweep` is.

    Raises:
        ConfigError: all problems, one a line.
    """
    problems = Problems()
    axes = read_axes(sweep, problems)
    for axis in (axis for grid in axes.architectures.values() for axis in grid.values() if axis.range is not None):
        problems.add(axis.place, f"a range must come with `search`, but got {axis.range} in a grid. List values, or add `search`.")
    check_read(sweep, axes.architectures, problems)
    check_number(axes.n_runs, "", problems)
    runs = runs_of(axes, problems) if axes.n_runs <= MOST_RUNS else []
    check_rungs(sweep, runs, problems)
    if problems:
        raise problems.error()
    return runs


def check_number(n_runs: int, place: str, problems: Problems) -> None:
    """A number of runs that nobody can wait for is a mistake."""
    if n_runs > MOST_RUNS:
        problems.add(place, f"a sweep must have at most {MOST_RUNS:,} runs, but got {n_runs:,}. Shorten its axes, or use several sweeps.")


def check_rungs(sweep: Definition, runs: Iterable[RunConfig], problems: Problems) -> None:
    """Early stopping may compare runs only once their sparsity is no longer on its way to what was asked."""
    if sweep.early_stopping is None:
        return
    rungs = sweep.early_stopping.rungs
    for run in runs:
        steps = [max(1, round(rung * run.n_steps)) for rung in rungs]
        if len(set(steps)) < len(steps) or steps[-1] >= run.n_steps:
            rule = f"but got rungs={rungs}, which are the steps {shown(steps)} of {run.n_steps}"
            problems.add("early_stopping.rungs", f"rungs must be different steps before the last, {rule}. Raise or remove some.")
        settled = fraction_of_run(run.train.sparsity_warm_up, run.n_steps, run.train.batch_size)
        if isinstance(run.sae, TopKFamilyConfig) and run.sae.k_start is not None:
            settled = max(settled, run.sae.k_cold_start + run.sae.k_anneal)
        if settled >= rungs[0]:
            problems.add(
                "early_stopping.rungs",
                f"rungs must lie after the sparsity warm-up, but got rungs={rungs} "
                f"where the sparsity of {run.sae.architecture!r} settles at {settled:g} of the run. Raise them, or shorten the warm-up.",
            )


def _activation_axes(sweep: Definition, problems: Problems) -> Grid:
    """Axes of `model` and `data`, or of `activations`."""
    given = [name for name in ("model", "data", "activations") if getattr(sweep, name) is not None]
    if given not in (["model", "data"], ["activations"]):
        rule = f"a definition must have `model` and `data`, or else `activations`, but got {given}. Add what is missing, remove the rest."
        problems.add("", rule)
        return {}
    if sweep.activations is not None:
        grid = _source_axes(sweep.activations, problems)
    else:
        grid = _language_model_axes(sweep.model or {}, sweep.data or {}, problems)
    for path in _LOCAL_PATHS:
        if path in grid:
            grid[path] = _with_absolute_paths(grid[path], problems)
    return grid


def _source_axes(section: Mapping[str, Any], problems: Problems) -> Grid:
    name = section.get("source")
    if not isinstance(name, str) or name not in SOURCES:
        problems.add("activations.source", str(UnknownNameError.of("activation source", str(name), SOURCES)))
        return {}
    return read_section(section, SOURCES[name].Config, path=("activations",), place="activations", problems=problems)


def _language_model_axes(model: Mapping[str, Any], data: Mapping[str, Any], problems: Problems) -> Grid:
    config = SOURCES["language_model"].Config
    model_config, data_config = (model_in(config.model_fields[name].annotation) for name in ("model", "data"))
    assert model_config is not None and data_config is not None
    tokens = {key: data[key] for key in _TOKENS if key in data}
    text = {key: value for key, value in data.items() if key not in tokens}
    return (
        {("activations", "source"): Axis("model", ("language_model",))}
        | read_section(model, model_config, path=("activations", "model"), place="model", problems=problems)
        | read_section(
            text, data_config, path=("activations", "data"), place="data", problems=problems, known=[*data_config.model_fields, *_TOKENS]
        )
        | read_section(tokens, config, path=("activations",), place="data", problems=problems)
    )


def _with_absolute_paths(axis: Axis, problems: Problems) -> Axis:
    values = []
    for value in axis.values:
        try:
            with border(f"a path must be readable, but got {shown(value)}", "Correct it."):
                values.append(absolute(value) if isinstance(value, str) else value)
        except ConfigError as error:
            problems.add(axis.place, str(error))
            values.append(value)
    return dataclasses.replace(axis, values=tuple(values))


def _architecture_axes(sweep: Definition, name: str, own: Mapping[str, Any], problems: Problems) -> Grid:
    """Axes of `sae` and `train` for one architecture, with what it overrides."""
    config, place = ARCHITECTURES[name].Config, f"architectures.{name}"
    fields = [field for field in config.model_fields if field != "architecture"]
    hint = f"The sparsity of {name!r} is set by `{config.sparsity_parameter}`."
    for key in sorted(sweep.sae.keys() - set(fields)):
        problems.add("sae", unknown_key(key, fields, f"A common field must belong to every architecture. {hint}"))
    for key in sorted(own.keys() - set(fields) - set(TrainConfig.model_fields)):
        problems.add(place, unknown_key(key, [*fields, *TrainConfig.model_fields], hint))
    common = {key: value for key, value in sweep.sae.items() if key in fields}
    own_sae = {key: value for key, value in own.items() if key in fields}
    target: Grid = {}
    if sweep.target_l0 is not None and "target_l0" not in own_sae:
        for where, given in (("sae", common), (place, own_sae)):
            if given.pop(config.sparsity_parameter, None) is not None:
                rule = f"`{config.sparsity_parameter}` must be left out where `target_l0` is given, but got both. Remove one of them."
                problems.add(where, rule)
        target_type = config.model_fields["target_l0"].annotation
        target = {("sae", "target_l0"): read_axis(sweep.target_l0, target_type, place="target_l0", problems=problems)}
    own_train = {key: value for key, value in own.items() if key in TrainConfig.model_fields and key not in fields}
    return (
        {("sae", "architecture"): Axis(place, (name,))}
        | read_section(common, config, path=("sae",), place="sae", problems=problems)
        | read_section(sweep.train, TrainConfig, path=("train",), place="train", problems=problems)
        | target
        | read_section(own_sae, config, path=("sae",), place=place, problems=problems)
        | read_section(own_train, TrainConfig, path=("train",), place=place, problems=problems)
    )


def _activation_configs(grid: Grid, problems: Problems, most: int | None) -> list[ActivationsConfig]:
    source = grid.get(("activations", "source"))
    return [] if source is None else _configs(grid, "activations", SOURCES[source.values[0]].Config, problems, most=most)


def _configs(grid: Grid, part: str, config: type[C], problems: Problems, architecture: str = "", most: int | None = None) -> list[C]:
    """The valid configs among the points of the grid under `part`."""
    place_of = _place_of(grid, architecture, part)
    return [
        valid
        for point in islice(points(grid, part), most)
        if not problems.enough
        for valid in _validated(config, point, problems, place_of)
    ]


def _sae_configs(grid: Grid, config: type[ArchitectureConfig], problems: Problems, name: str, most: int | None) -> list[ArchitectureConfig]:
    """As `_configs`; a target L0 without a sparsity parameter decides it, or where its search starts."""
    place_of = _place_of(grid, name, "sae")
    valid: list[ArchitectureConfig] = []
    for point in islice(points(grid, "sae"), most):
        if problems.enough:
            break
        target, width = point.get("target_l0"), point.get("d_sae")
        if isinstance(target, int | float) and target > 0 and config.sparsity_parameter not in point:
            # A target above the width is refused as such, and not as the k that it stands for.
            largest = width if isinstance(width, int) and width > 0 else target
            point = config.aimed_at(float(min(target, largest)), point) | point
        valid += _validated(config, point, problems, place_of)
    return valid


def _validated(config: type[C], fields: Mapping[str, Any], problems: Problems, place_of: Callable[[FieldPath], str]) -> list[C]:
    """The config in a list; an empty list if it breaks a rule, which goes to `problems`."""
    try:
        return [config.model_validate(fields)]
    except ValidationError as error:
        collect(error, config, problems, place_of)
    except Exception as error:  # what a check of a number that is far off raises: an overflow, no memory
        problems.add(place_of(()), f"values must be such that they can be checked, but got {shown(dict(fields))}: {reason_of(error)}.")
    return []


def _seeds(value: Any, place: str, problems: Problems) -> tuple[int, ...]:
    """The valid ones."""
    axis, valid = read_axis(value, int, place=place, problems=problems), []
    for seed in axis.values:
        try:
            valid.append(_SEED.validate_python(seed))
        except ValidationError as error:
            collect(error, RunConfig, problems, lambda _: place)
    return tuple(valid)


def _place_of(grid: Grid, architecture: str, part: str) -> Callable[[FieldPath], str]:
    """A function from a field's path in `part` ("" for the run as a whole) to its place in the definition."""

    def place(path: FieldPath) -> str:
        target = (part, *path) if part else path
        for length in range(len(target), 0, -1):
            if target[:length] in grid:
                return grid[target[:length]].place
        # A rule of the whole run names its field alone.
        same_name = [axis.place for known, axis in grid.items() if path and known[-1] == path[0]]
        return same_name[0] if same_name else _default_place(grid, architecture, part, path)

    return place


def _default_place(grid: Grid, architecture: str, part: str, path: FieldPath) -> str:
    """Where to give a field that the definition leaves out."""
    if part == "train":
        return ".".join(("train", *path))
    if part == "activations":
        root = () if grid[("activations", "source")].place == "model" else ("activations",)
        return ".".join((*root, *(("data", *path) if not root and path[:1] in [(name,) for name in _TOKENS] else path)))
    if path and path[0] in ArchitectureConfig.model_fields:
        return f"sae.{path[0]}"
    return ".".join(("architectures", architecture, *path))
