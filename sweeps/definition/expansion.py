"""A definition's axes -> validated `RunConfig`s, with every problem found on the way and its place in the definition.

Each architecture has its own grid: the common axes with those it overrides. The points of each part (activations, sae,
train) are validated by that part's config class, so that a rule between two of its fields (k <= d_sae) is checked for every
combination; then the parts are combined.
"""

import dataclasses
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice, product
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from sae_core.config.run import (
    ARCHITECTURES,
    NORMALIZATIONS,
    SOURCES,
    ArchitectureConfig,
    RunConfig,
    TrainConfig,
    TranscoderConfig,
)
from sae_core.config.snapshots import snapshot_steps
from sae_core.config.spans import fraction_of_run
from sae_core.errors import ConfigError, UnknownNameError, border, reason_of
from sae_core.plugins import checksums_of
from sae_core.training.continuing import common_steps
from sweeps.definition.grid import Axis, FieldPath, Grid, Numbers, fields_of, n_points, points, read_axis, read_section, replaced
from sweeps.definition.local_data import absolute, located_model
from sweeps.definition.pairing import check_zip, paired_by_source, zipped
from sweeps.definition.problems import Problems, collect, model_in, shown
from sweeps.definition.sections import Definition
from sweeps.definition.starts import absolute_starts, hash_of_start, local_starts

if TYPE_CHECKING:
    from sae_core.activations.source import ActivationSource

C = TypeVar("C", bound=BaseModel)
Parts = list[tuple[Numbers, C]]

MOST_RUNS = 100_000
"""Runs of a sweep: more are refused before any of them is made."""
_INIT_FROM = ("train", "init_from")
_SEED = TypeAdapter(Annotated[int, RunConfig.model_fields["seed"]], config=ConfigDict(strict=True))
_UNREAD: tuple[tuple[FieldPath, FieldPath, Callable[[Any], bool], str], ...] = (
    (("train", "lr_min_factor"), ("train", "lr_schedule"), lambda shape: shape == "constant", "a cosine `lr_schedule`"),
    (("train", "n_restarts"), ("train", "lr_schedule"), lambda shape: shape != "cosine_restarts", "`lr_schedule: cosine_restarts`"),
    *(
        (("sae", field), _INIT_FROM, lambda name: name is not None, "a new SAE, without `init_from`")
        for field in ("decoder_init", "decoder_init_norm", "encoder_init", "b_dec_init")
    ),
    (
        ("train", "sparsity_warm_up"),
        ("sae", "architecture"),
        lambda name: not ARCHITECTURES[name].Config.has_coefficient,
        "an architecture with a sparsity coefficient",
    ),
)
"""A field, another one at some of whose values the first has no effect, those values, and what the first must come with."""
_ALWAYS_RIGHT: dict[FieldPath, Any] = {("sae", "decoder_init_norm"): 1}
"""Values that other rules ask for, with an effect or without: decoder rows that are held at norm 1 start there."""


@dataclass(frozen=True, slots=True)
class Axes:
    """A definition as axes."""

    source: str
    """Name of the source of activations; empty where the definition names none."""
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
        return self.n_repeats * sum(map(n_points, self.architectures.values()))


def expand(definition: Definition) -> list[RunConfig]:
    """Every run of the grid that `definition` is.

    Raises:
        ConfigError: all problems, one per line.
    """
    problems = Problems()
    axes = read_axes(definition, problems)
    for axis in (axis for grid in axes.architectures.values() for axis in grid.values() if axis.range is not None):
        problems.add(axis.place, f"a range must come with `search`, but got {axis.range} in a grid. List values, or add `search`.")
    check_read(axes, problems)
    check_number(axes.n_runs, "", problems)
    runs = runs_of(axes, problems) if axes.n_runs <= MOST_RUNS else []
    check_points(definition, runs, problems)
    problems.raise_any()
    return runs


def read_axes(definition: Definition, problems: Problems) -> Axes:
    """The axes of every architecture: the common ones with those it overrides."""
    if not definition.architectures:
        problems.add("architectures", "a sweep must have at least one architecture, but got {}. Add e.g. `topk: {k: [8, 16, 32]}`.")
    if definition.target_l0 is not None and (common_target := definition.sae.get("target_l0")) is not None:
        rule = f"but got {shown(common_target)} beside `target_l0: {shown(definition.target_l0)}`"
        problems.add("sae.target_l0", f"`target_l0` must be given once for all architectures, {rule}. Remove one of them.")
    source, common = _activation_axes(definition, problems)
    data_seeds = _seeds(definition.data_seed, "data_seed", problems)
    seeds = _seeds(definition.seeds, "seeds", problems)
    grids = {}
    for name, own in definition.architectures.items():
        if name in ARCHITECTURES:
            own_axes = _architecture_axes(definition, name, own or {}, problems)
            starts = own_axes[_INIT_FROM].values if _INIT_FROM in own_axes else (None,)
            start = _transcoder_start(name) if _is_of_pairs(source, common) and None in starts else {}
            grids[name] = common | start | own_axes
        else:
            problems.add("architectures", str(UnknownNameError.of("architecture", name, ARCHITECTURES)))
    check_zip(definition, [common, *grids.values()], problems)
    grids = {name: zipped(definition.zip, grid, problems) for name, grid in grids.items()}
    return Axes(source, zipped(definition.zip, common, problems), grids, seeds, data_seeds)


def runs_of(axes: Axes, problems: Problems, most: int | None = None) -> list[RunConfig]:
    """Every run of the grids, validated.

    Args:
        most: runs an architecture is cut off at, and points of a part of it.
    """
    if not axes.source:
        return []
    source = SOURCES[axes.source]
    sources = _configs(axes.activations, "activations", source.Config, problems, "", most)
    runs: dict[str, RunConfig] = {}
    for name, grid in axes.architectures.items():
        saes = _configs(grid, "sae", ARCHITECTURES[name].Config, problems, name, most)
        trains = _configs(grid, "train", TrainConfig, problems, name, most)
        place_of = _place_of(grid, "", name)
        for activations, data_seed, sae, train, seed in islice(_together(sources, axes.data_seeds, saes, trains, axes.seeds), most):
            if problems.enough:
                break
            plugins = checksums_of([source, ARCHITECTURES[name], NORMALIZATIONS[train.normalize_activations]])
            fields = {"activations": activations, "sae": sae, "train": train, "seed": seed, "data_seed": data_seed, "plugins": plugins}
            fields["init_hash"] = hash_of_start(train.init_from, problems, place_of(_INIT_FROM))
            for run in _validated(RunConfig, fields, problems, place_of):
                if (run_id := run.run_id) in runs:
                    rule = f"runs must differ, but got {run_id} twice. Remove one of the two equal values."
                    problems.add(f"architectures.{name}", rule)
                runs[run_id] = run
    return list(runs.values())


def check_number(n_runs: int, place: str, problems: Problems) -> None:
    """A number of runs that nobody can wait for is a mistake."""
    if n_runs > MOST_RUNS:
        problems.add(place, f"a sweep must have at most {MOST_RUNS:,} runs, but got {n_runs:,}. Shorten its axes, or use several sweeps.")


def check_read(axes: Axes, problems: Problems) -> None:
    """Note fields without an effect: whoever gives one expects one. A fixed field must have it on one run, an axis on all."""
    for field, other, is_unread, needs in _UNREAD:
        default = (TrainConfig if field[0] == "train" else ArchitectureConfig).model_fields[field[-1]].default
        places: dict[str, tuple[Axis, list[tuple[Any, Any]]]] = {}
        for grid in axes.architectures.values():
            if (axis := grid.get(field)) is not None:
                second = grid[other] if other in grid else Axis("", (TrainConfig.model_fields[other[-1]].default,))
                are_paired = (axis.follows or field) == (second.follows or other)
                pairs = zip(axis.values, second.values, strict=True) if are_paired else product(axis.values, second.values)
                places.setdefault(axis.place, (axis, []))[1].extend(pairs)
        for place, (axis, both) in places.items():
            unread = [value for own, value in both if is_unread(value) and own not in (default, _ALWAYS_RIGHT.get(field))]
            if unread and (axis.varies or len(unread) == len(both)):
                given = f"{field[-1]}={shown(list(axis.values) if axis.varies else axis.values[0])} and {other[-1]}={shown(unread[0])}"
                problems.add(place, f"`{field[-1]}` must come with {needs}, or it has no effect, but got {given}. Remove it.")


def check_points(definition: Definition, runs: Sequence[RunConfig], problems: Problems) -> None:
    """Runs of several seeds differ; snapshots are taken before the end of a run; states are kept where a run can continue from one; early
    stopping may compare runs only once their sparsity is that asked for."""
    seeds, alike = sorted({run.seed for run in runs}), [run for run in runs if run.train.init_from and not run.train.resample_every_steps]
    if len(seeds) > 1 and alike:
        rule = "there must be one seed where a run starts from an SAE, since nothing in it depends on the seed then"
        remedy = f"Give one seed; to repeat a run, give several orders of the tokens: `data_seed: {shown(seeds)}`."
        problems.add("seeds", f"{rule}, but got {shown(seeds)} and init_from={shown(alike[0].train.init_from)}. {remedy}")
    if definition.keep_states and runs and not any(common_steps(run) for run in runs):
        rule = "`keep_states` must come with runs whose first steps do not depend on their length"
        given = f"lr_schedule={runs[0].train.lr_schedule!r} for {runs[0].sae.architecture!r}"
        problems.add("keep_states", f"{rule}, but got {given}. Set `train.lr_schedule: constant`, or leave `keep_states` out.")
    for run in runs if definition.snapshots else ():
        last = snapshot_steps(definition.snapshots, run.n_steps, run.train.batch_size)[-1:]
        if last and last[0] >= run.n_steps:
            rule = f"but got snapshots={shown(definition.snapshots)}, the last of them at step {last[0]} of {run.n_steps}"
            problems.add("snapshots", f"snapshots must be taken before the last step, {rule}. Remove those that are too late.")
    if definition.early_stopping is None:
        return
    rungs, place = definition.early_stopping.rungs, "early_stopping.rungs"
    for run in runs:
        steps = [max(1, round(rung * run.n_steps)) for rung in rungs]
        if len(set(steps)) < len(steps) or steps[-1] >= run.n_steps:
            rule = f"but got rungs={rungs}, which are the steps {shown(steps)} of {run.n_steps}"
            problems.add(place, f"rungs must be different steps before the last, {rule}. Raise or remove some.")
        warm_up = fraction_of_run(run.train.sparsity_warm_up, run.n_steps, run.train.batch_size) if run.sae.has_coefficient else 0.0
        if (settled := max(warm_up, run.sae.schedule_end)) >= rungs[0]:
            rule = f"but got rungs={rungs} where the sparsity of {run.sae.architecture!r} settles at {settled:g} of the run"
            problems.add(place, f"rungs must be after the sparsity warm-up, {rule}. Raise them, or shorten the warm-up.")


def local_paths(definition: Definition) -> dict[str, Any]:
    """Place in the definition -> the absolute path there, or a list of them."""
    name, grid = _activation_axes(definition, Problems())
    fields = SOURCES[name].path_fields if name else ()
    axes = [grid["activations", *field] for field in fields if ("activations", *field) in grid]
    axes += local_starts(definition)
    return {axis.place: axis.values[0] if len(axis.values) == 1 else list(axis.values) for axis in axes}


def _activation_axes(definition: Definition, problems: Problems) -> tuple[str, Grid]:
    """Name of the source, empty if there is none, and its axes."""
    given = tuple(name for name in ("model", "data", "activations") if getattr(definition, name) is not None)
    is_short = given != ("activations",)
    if not is_short:
        name = str((definition.activations or {}).get("source"))
        if name not in SOURCES:
            problems.add("activations.source", str(UnknownNameError.of("activation source", name, SOURCES)))
            return "", {}
    elif not (name := next((name for name in SOURCES if given and SOURCES[name].sections == given), "")):
        rule = f"a definition must have `model` and `data`, or else `activations`, but got {list(given)}"
        problems.add("", f"{rule}. Add what is missing, remove the rest.")
        return "", {}
    source, paired = SOURCES[name], set(chain(*definition.zip))
    fields = fields_of(source.Config, ("activations",))
    if is_short:
        grid: Grid = {("activations", "source"): Axis(source.sections[0], (name,))}
        own = {section: fields.pop(section) for section in source.sections}
        del fields["source"]
        for section, (path, annotation) in own.items():
            # Fields outside of the source's sections (the token counts) are given in the last one.
            outside, model = fields if section == source.sections[-1] else {}, model_in(annotation)
            assert model is not None, f"{source=} {section=}"
            grid |= read_section(getattr(definition, section), fields_of(model, path) | outside, section, problems, paired=paired)
    else:
        grid = read_section(definition.activations or {}, fields, "activations", problems, paired=paired)
    for field in source.path_fields:
        if (axis := grid.get(("activations", *field))) is not None:
            values = tuple(_absolute(value, axis.place, problems) for value in axis.values)
            grid["activations", *field] = dataclasses.replace(axis, values=values)
    return name, paired_by_source(source, grid | _expanded(source, grid, problems), problems)


def _expanded(source: "type[ActivationSource]", grid: Grid, problems: Problems) -> Grid:
    """The axes whose values stand for others, as a pattern of hook points does, with those in their place."""
    axes = {path[1:]: [located_model(value) for value in axis.values] for path, axis in grid.items()}
    try:
        found = {("activations", *field): tuple(values) for field, values in source.expanded(axes).items()}
    except ConfigError as error:
        problems.add("model", str(error))
        return {}
    return {path: dataclasses.replace(grid[path], values=values) for path, values in found.items()}


def _absolute(value: Any, place: str, problems: Problems) -> Any:
    try:
        with border(f"a path must be readable, but got {shown(value)}", "Correct it."):
            return absolute(value) if isinstance(value, str) else value
    except ConfigError as error:
        problems.add(place, str(error))
        return value


def _architecture_axes(definition: Definition, name: str, own: Mapping[str, Any], problems: Problems) -> Grid:
    """Axes of `sae` and `train` for one architecture, with what it overrides."""
    config, place, paired = ARCHITECTURES[name].Config, f"architectures.{name}", set(chain(*definition.zip))
    train, sae = fields_of(TrainConfig, ("train",)), fields_of(config, ("sae",))
    del sae["architecture"]
    hint = f"The sparsity of {name!r} is set by `{config.sparsity_parameter}`."
    grid: Grid = {("sae", "architecture"): Axis(place, (name,))}
    grid |= read_section(definition.sae, sae, "sae", problems, f"A common field must belong to every architecture. {hint}", paired)
    grid |= read_section(definition.train, train, "train", problems, paired=paired)
    path, annotation = sae["target_l0"]
    is_aimed = definition.target_l0 is not None and path[-1] not in own
    if is_aimed:
        grid[path] = read_axis(definition.target_l0, annotation, "target_l0", problems, paired)
    grid = replaced(grid, read_section(own, train | sae, place, problems, hint, paired))
    if _INIT_FROM in grid:
        grid[_INIT_FROM] = absolute_starts(grid[_INIT_FROM])
    parameter = grid.pop(("sae", config.sparsity_parameter), None) if is_aimed else None
    if parameter is not None and parameter.values != (None,):
        rule = f"`{config.sparsity_parameter}` must be left out where `target_l0` is given, but got both"
        problems.add(parameter.place, f"{rule}. Remove one of them.")
    return grid


def _is_of_pairs(source: str, activations: Grid) -> bool:
    field = SOURCES[source].target_field if source else ()
    axis = activations.get(("activations", *field)) if field else None
    return axis is not None and any(value is not None for value in axis.values)


def _transcoder_start(name: str) -> Grid:
    """Initial values of transcoders, where the definition does not say."""
    config, place = ARCHITECTURES[name].Config, f"architectures.{name}"
    start = config.transcoder_start if issubclass(config, TranscoderConfig) else {}
    return {("sae", field): Axis(place, (value,)) for field, value in start.items()}


def _together(
    sources: Parts[Any], data_seeds: Iterable[int], saes: Parts[Any], trains: Parts[Any], seeds: Iterable[int]
) -> Iterator[tuple[Any, int, Any, Any, int]]:
    """Every combination of the parts of runs, seeds fastest, but for those that would take different values of paired axes."""
    for numbers, source in sources:
        its_saes = [(numbers | more, sae) for more, sae in saes if _agree(numbers, more)]
        for data_seed in data_seeds:
            for both, sae in its_saes:
                for more, train in trains:
                    if _agree(both, more):
                        yield from ((source, data_seed, sae, train, seed) for seed in seeds)


def _agree(numbers: Numbers, others: Numbers) -> bool:
    return all(numbers[path] == number for path, number in others.items() if path in numbers)


def _configs(grid: Grid, part: str, config: type[C], problems: Problems, architecture: str, most: int | None) -> Parts[C]:
    """The valid configs among the points of the grid under `part`, with the numbers of their points."""
    place_of = _place_of(grid, part, architecture)
    valid: Parts[C] = []
    for numbers, point in islice(points(grid, part), most):
        if problems.enough:
            break
        if issubclass(config, ArchitectureConfig):
            point = _aimed(config, point)
        valid += ((numbers, made) for made in _validated(config, point, problems, place_of))
    return valid


def _aimed(config: type[ArchitectureConfig], point: dict[str, Any]) -> dict[str, Any]:
    """A point with its sparsity parameter, where a target L0 decides that or where its search starts."""
    target, width = point.get("target_l0"), point.get("d_sae")
    if not isinstance(target, int | float) or config.sparsity_parameter in point:
        return point
    # A target that is no L0, or above the width, is refused as such, and not as the k that it stands for.
    largest = width if isinstance(width, int) and width > 0 else sys.float_info.max
    aim = min(target, largest) if target > 0 else 1
    return config.aimed_at(float(aim), point) | point


def _validated(config: type[C], fields: Mapping[str, Any], problems: Problems, place_of: Callable[[FieldPath], str]) -> Iterator[C]:
    """The config, or nothing if it breaks a rule, which goes to `problems`."""
    try:
        yield config.model_validate(fields)
    except ValidationError as error:
        collect(error, problems, place_of, config)
    except Exception as error:  # what a check of a number that is far off raises: an overflow, no memory
        problems.add(place_of(()), f"values must be of a type that can be validated, but got {shown(dict(fields))}: {reason_of(error)}.")


def _seeds(value: Any, place: str, problems: Problems) -> tuple[int, ...]:
    """The valid ones."""
    valid = []
    for seed in read_axis(value, int, place, problems).values:
        try:
            valid.append(_SEED.validate_python(seed))
        except ValidationError as error:
            collect(error, problems, lambda _: place, RunConfig)
    return tuple(valid)


def _place_of(grid: Grid, part: str, architecture: str) -> Callable[[FieldPath], str]:
    """A function from a field's path in `part` ("" for the run as a whole) to its place in the definition."""

    def place(path: FieldPath) -> str:
        target = (part, *path) if part else path
        for length in range(len(target), 0, -1):
            if target[:length] in grid:
                return grid[target[:length]].place
        # A rule of the whole run names its field alone.
        same_name = [axis.place for known, axis in grid.items() if path and known[-1] == path[0]]
        if same_name:
            return same_name[0]
        # Where to give a field that the definition leaves out.
        sections: tuple[str, ...] = (part or "sae",)
        if sections == ("sae",) and (not path or path[0] not in ArchitectureConfig.model_fields):
            sections = ("architectures", architecture)
        elif part == "activations" and grid["activations", "source"].place != "activations.source":
            own = SOURCES[grid["activations", "source"].values[0]].sections
            sections = () if path and path[0] in own else own[-1:]
        return ".".join((*sections, *path))

    return place
