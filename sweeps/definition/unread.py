"""Fields that a definition gives and nothing reads: a mistake, because whoever wrote them expects an effect.

A fixed field is refused where no run reads it, and an axis where some run does not: its runs would differ in name only. A fixed field
at its default says what is so anyway, and stays silent.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_core.config.run import ARCHITECTURES, SOURCES, TrainConfig
from sweeps.definition.grid import Axis, FieldPath, Grid
from sweeps.definition.local_data import DEMO
from sweeps.definition.problems import Problems, model_in, shown
from sweeps.definition.sections import Definition


@dataclass(frozen=True, slots=True)
class _Rule:
    """A field has no effect at some values of another one."""

    field: FieldPath
    other: FieldPath
    is_unread_at: Callable[[Any], bool]
    needs: str
    """What the field must come with, for the message."""


def _has_no_coefficient(architecture: Any) -> bool:
    return architecture in ARCHITECTURES and not ARCHITECTURES[architecture].Config.has_coefficient


def _is_one_file(dataset: Any) -> bool:
    with suppress(OSError):  # a name too long for a file; it is refused elsewhere
        return isinstance(dataset, str) and (dataset == DEMO or Path(dataset).is_file())
    return False


_DATA = ("activations", "data")
_RULES = (
    _Rule(("train", "lr_min_factor"), ("train", "lr_schedule"), lambda shape: shape == "constant", "a cosine `lr_schedule`"),
    _Rule(("train", "n_restarts"), ("train", "lr_schedule"), lambda shape: shape != "cosine_restarts", "`lr_schedule: cosine_restarts`"),
    _Rule((*_DATA, "text_column"), (*_DATA, "tokens_column"), lambda column: column is not None, "text, and not with `tokens_column`"),
    _Rule((*_DATA, "subset"), (*_DATA, "dataset"), _is_one_file, "a dataset that has subsets"),
)
_WARM_UP = _Rule(("train", "sparsity_warm_up"), ("sae", "architecture"), _has_no_coefficient, "an architecture with a sparsity coefficient")


def check_read(sweep: Definition, grids: Mapping[str, Grid], problems: Problems) -> None:
    """Note the fields that nothing reads."""
    _check_overridden(sweep, problems)
    # Early stopping waits for the sparsity warm-up, whatever the architecture.
    for rule in (*_RULES, *([] if sweep.early_stopping else [_WARM_UP])):
        for place, given in _given(rule, grids):
            axis = given[0][0]
            unread = [value for _, others in given for value in others if rule.is_unread_at(value)]
            read = sum(len(others) for _, others in given) - len(unread)
            if unread and (axis.is_searched or (not read and axis.values[:1] != (_default(rule.field),))):
                name, other = rule.field[-1], rule.other[-1]
                values = shown(axis.values[0] if len(axis.values) == 1 else list(axis.values))
                problems.add(
                    place,
                    f"`{name}` must come with {rule.needs}, or nothing reads it, but got {name}={values} and {other}={shown(unread[0])}. "
                    f"Remove it, or change `{other}`.",
                )


def _given(rule: _Rule, grids: Mapping[str, Grid]) -> Iterator[tuple[str, list[tuple[Axis, tuple[Any, ...]]]]]:
    """Each place at which the rule's field is given, and there, per architecture, its axis and the values of the other field."""
    places: dict[str, list[tuple[Axis, tuple[Any, ...]]]] = {}
    for grid in grids.values():
        if (axis := grid.get(rule.field)) is not None:
            other = grid.get(rule.other)
            places.setdefault(axis.place, []).append((axis, other.values if other else (_default(rule.other),)))
    yield from places.items()


def _default(path: FieldPath) -> Any:
    part, *names = path
    model: Any = TrainConfig if part == "train" else SOURCES["language_model"].Config
    for name in names[:-1]:
        model = model_in(model.model_fields[name].annotation)
    return model.model_fields[names[-1]].default


def _check_overridden(sweep: Definition, problems: Problems) -> None:
    """A common field must be that of some architecture."""
    own = [section or {} for section in sweep.architectures.values()]
    if not own:
        return
    target = {"target_l0": sweep.target_l0} if sweep.target_l0 is not None else {}
    if target and sweep.sae.get("target_l0") is not None:
        rule = f"but got {shown(sweep.sae['target_l0'])} beside `target_l0: {shown(sweep.target_l0)}`"
        problems.add("sae.target_l0", f"`target_l0` must be given once for all architectures, {rule}. Remove one of them.")
    for section, fields in (("sae", sweep.sae), ("train", sweep.train), ("", target)):
        for name in fields:
            if all(name in other for other in own):
                place = f"{section}.{name}" if section else name
                rule = f"`{name}` must be that of some architecture, but got {name}={shown(fields[name])} and every one gives its own"
                problems.add(place, f"{rule}. Remove it here, or there.")
