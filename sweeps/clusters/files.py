"""Fills in the files of `sae-sweep cluster`: templates/ holds one per kind, and docs/clusters.md explains them.

Versions, the environment and paths are those of the process that writes a file, so that a cluster is like this machine.
"""

import getpass
import importlib.metadata
import platform
import re
import secrets
import shlex
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

from sae_core.errors import ConfigError, UnknownNameError, border
from sweeps.definition.problems import Problems

Kind = Literal["slurm", "kuberay", "ray-up", "skypilot", "docker"]
_TEMPLATES = Path(__file__).parent / "templates"
_FILES = {
    "slurm": ("slurm.sbatch", "{}.sbatch"),
    "kuberay": ("rayjob.yaml", "{}-rayjob.yaml"),
    "ray-up": ("ray-up.yaml", "{}-ray-up.yaml"),
    "skypilot": ("skypilot.yaml", "{}-skypilot.yaml"),
    "docker": ("Dockerfile", "Dockerfile"),
}
"""Kind -> its template, and the name of the file that is written."""
_SHARED = "/shared"
"""Where volumes are mounted in containers."""
_WORD = re.compile(r"[\w.,:/@+=-]+", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a file is filled in with. None is the default; an option that a kind has no use for is ignored."""

    definition: str | None = None
    """File or ready definition; default: my-sweep.yaml, as `sae-sweep init` writes it."""
    name: str | None = None
    """Of the job; default: that of the sweep."""
    nodes: int | None = None
    """Default: 1."""
    gpus: int | None = None
    """Per node; default: 0."""
    cpus: int | None = None
    """Per node; default: 8."""
    hours: float | None = None
    """Time limit; default: 24."""
    results: str | None = None
    """Directory of all sweeps, on storage that all nodes share."""
    mirror: str | None = None
    """URL that results are copied to."""
    partition: str | None = None
    account: str | None = None
    image: str | None = None
    """Container image with this package; default: sae-sweep:VERSION."""
    hosts: str | None = None
    """Machines of `ray up`, comma-separated, the head first; default: node-1, node-2, ..."""


def write(kind: Kind, options: Options, out: Path | None = None) -> tuple[Path, list[str]]:
    """Write the file of a kind, filled in.

    Args:
        out: where; default: a name made of the kind and the sweep, in the current directory.

    Returns:
        Where, and the options that were given and that this kind has no use for.

    Raises:
        ConfigError: an option cannot be in such a file, the definition is none, or the file exists already.
    """
    if kind not in get_args(Kind):
        raise UnknownNameError.of("kind of cluster", kind, get_args(Kind))
    values = _values(kind, options, _check(kind, options))
    template, name = _FILES[kind]
    file = out or Path(name.format(values["name"]))
    values["file"] = shlex.quote(str(file))
    text, read = _filled_in((_TEMPLATES / template).read_text(encoding="utf-8"), values)
    with border(f"`--out` must be a new file, but got {str(file)!r}", "Choose another."), file.open("x", encoding="utf-8") as stream:
        stream.write(text)
    given = [field.name for field in fields(options) if getattr(options, field.name) is not None]
    in_command = {"definition", "results", "mirror"} if "command" in read else set()
    return file, [option for option in given if option not in read | in_command | {"name"}]


def _check(kind: Kind, options: Options) -> str:
    """Make sure that every value can stand in a script, or tell all problems together. Returns the name of the sweep."""
    from sweeps.definition.sweep import Sweep
    from sweeps.storage.mirror import check_url

    problems, sweep = Problems(), "my-sweep"
    try:
        sweep = Sweep.from_yaml(options.definition).name if options.definition is not None else sweep
    except ConfigError as error:
        problems.add("", str(error))
    try:
        check_url(options.mirror or "")
    except ConfigError as error:
        problems.add("", str(error))
    for name, least in (("nodes", 1), ("gpus", 0), ("cpus", 1), ("hours", 0.1)):
        value = getattr(options, name)
        if value is not None and not least <= value <= 100_000:
            problems.add("", f"`--{name}` must be from {least} to 100,000, but got {value:g}. Correct it.")
    for name in ("name", "partition", "account", "image", "hosts"):
        value = getattr(options, name)
        if value is not None and not _WORD.fullmatch(value):
            problems.add("", f"`--{name}` must be one word of letters, digits and .,:/@+=-_, but got {value!r}. Correct it.")
    for name in ("results", "mirror"):
        value = getattr(options, name)
        if value is not None and not (value and value.isprintable()):
            problems.add("", f"`--{name}` must be printable text, but got {value!r}. Correct it.")
    if kind == "kuberay" and options.results is not None and not options.results.startswith(f"{_SHARED}/"):
        problems.add("", f"`--results` must lie on the volume, which is {_SHARED} in every pod, but got {options.results!r}. Correct it.")
    if options.mirror is not None and not urlsplit(options.mirror).scheme:
        problems.add("", f"`--mirror` must be a URL, e.g. s3://bucket/prefix, but got {options.mirror!r}. Correct it.")
    problems.raise_any()
    return sweep


def _values(kind: Kind, options: Options, sweep: str) -> dict[str, Any]:
    """What a template may hold, by name."""
    definition = options.definition or "my-sweep.yaml"
    name = _name_of_job(options.name or sweep)
    hosts = options.hosts.split(",") if options.hosts else [f"node-{number + 1}" for number in range(options.nodes or 1)]
    nodes, gpus, cpus = options.nodes or 1, options.gpus or 0, options.cpus or 8
    versions = {package: importlib.metadata.version(package).partition("+")[0] for package in ("sae-sweep", "ray", "torch")}
    results = _results_there(kind, options.results, nodes)
    needs_bucket = kind == "skypilot" and nodes == 1 and not options.mirror
    bucket = f"{name}-{secrets.token_hex(4)}" if needs_bucket else ""  # names of buckets are global
    mirror = options.mirror or (f"file:///mirror/{sweep}" if bucket else "")
    arguments = ["sae-sweep", "run", _definition_there(kind, definition), "--results", results]
    if kind != "skypilot" or nodes > 1:
        arguments += ["--address", "auto"]
    if gpus:
        arguments += ["--gpus-per-trial", "1", "--cpus-per-trial", str(max(1, cpus // gpus))]
    if mirror:
        arguments += ["--mirror", mirror]
    extra = "[s3]" if mirror.startswith("s3://") else ""
    return {
        "name": name,
        "nodes": nodes,
        "gpus": gpus,
        "cpus": cpus,
        "hours": options.hours or 24.0,
        "partition": options.partition,
        "account": options.account,
        "image": options.image or f"sae-sweep:{versions['sae-sweep']}",
        "hosts": hosts,
        "user": getpass.getuser(),
        "bin": str(Path(sys.prefix, "bin")),
        "command": shlex.join(arguments),
        "directory": shlex.quote(f"{results}/{sweep}"),
        "workdir": str(Path(definition).expanduser().absolute().parent),
        "bucket": bucket,
        "ray": versions["ray"],
        "python": platform.python_version(),
        "python_tag": "".join(platform.python_version_tuple()[:2]),
        "packages": " ".join(
            shlex.quote(requirement)
            for requirement in (
                f"sae-sweep{extra}=={versions['sae-sweep']}",
                f"ray[default]=={versions['ray']}",  # with what `ray job submit` and SkyPilot's cluster need
                f"torch=={versions['torch']}",
            )
        ),
    }


def _name_of_job(name: str) -> str:
    """A name that Kubernetes takes, too: lower-case letters, digits and hyphens; first a letter; not long."""
    letters = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return (letters if letters[:1].isalpha() else f"sweep-{letters}")[:40].rstrip("-")


def _results_there(kind: Kind, results: str | None, nodes: int) -> str:
    """The directory of all sweeps: on the storage of this machine, which the nodes share, or on theirs."""
    if kind in ("kuberay", "skypilot"):
        on_volume = kind == "kuberay" or nodes > 1
        return results or (f"{_SHARED}/results" if on_volume else "results")
    return str(Path(results or "results").expanduser().absolute())


def _definition_there(kind: Kind, definition: str) -> str:
    """Where the definition lies for the process that reads it; a ready one is known by its name everywhere."""
    from sweeps.definition.sweep import ready

    path = Path(definition).expanduser()
    if definition in ready():
        return definition
    if kind == "kuberay":
        return f"/definition/{path.name}"
    return path.name if kind == "skypilot" else str(path.absolute())


def _filled_in(template: str, values: dict[str, Any]) -> tuple[str, set[str]]:
    """The text, and the names of the values that the template reads."""
    import jinja2
    import jinja2.meta

    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    environment.filters |= {"quote": shlex.quote, "clock": _clock}
    return environment.from_string(template).render(values), jinja2.meta.find_undeclared_variables(environment.parse(template))


def _clock(hours: float) -> str:
    """Hours as Slurm writes them."""
    minutes = round(60 * hours)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:00"
