"""SAEs that the runs of a definition start from: `init_from`."""

import dataclasses
from pathlib import Path

from sae_core.errors import ConfigError
from sae_core.sae.hub import PREFIX
from sae_core.training.init_from import is_run_id, start_directory, start_of
from sweeps.definition.grid import Axis, read_axis
from sweeps.definition.problems import Problems
from sweeps.definition.sections import Definition

FIELD = "init_from"


def local_starts(definition: Definition) -> list[Axis]:
    """The axes of a definition that name directories, with absolute paths."""
    sections = {"train": definition.train} | {f"architectures.{name}": own or {} for name, own in definition.architectures.items()}
    given = {f"{place}.{FIELD}": section[FIELD] for place, section in sections.items() if FIELD in section}
    return [absolute_starts(read_axis(value, str, place, Problems())) for place, value in given.items()]


def absolute_starts(axis: Axis) -> Axis:
    """The same with absolute paths of directories: workers run in another one."""

    def absolute(name: object) -> object:
        if not isinstance(name, str) or is_run_id(name) or name.startswith(PREFIX):
            return name
        return str(Path(name).expanduser().absolute())

    return dataclasses.replace(axis, values=tuple(absolute(value) for value in axis.values))


def hash_of_start(name: str | None, problems: Problems, place: str) -> str | None:
    """Checksum of the SAE that a run starts from; None where it starts from none, or from a run, whose id stands for its content.

    Args:
        problems: gets why the SAE cannot be read.
        place: in the definition.
    """
    if name is None or is_run_id(name):
        return None
    try:
        return start_of(start_directory(name, None)).content
    except ConfigError as error:
        problems.add(place, str(error))
        return None
