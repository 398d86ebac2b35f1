"""What a definition may name: ready definitions, and what is registered, plugins included."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from sae_core import plugins
from sae_core.records import MetricSpec


@dataclass(frozen=True, slots=True)
class Name:
    """A name that a definition may use."""

    kind: str
    """Section of the list, e.g. "architectures"."""
    name: str
    text: str
    """What it is."""
    origin: str
    """Plugin it comes from; of a plugin, its checksum; else empty."""


def listing() -> list[Name]:
    """Each kind, then its names with what they are and the plugin they come from."""
    found = [Name("definitions", name, text, "") for name, text in _definitions().items()]
    for kind, registry in _registries().items():
        found += [Name(kind, name, _first_sentence(entry), ", ".join(plugins.checksums_of([entry]))) for name, entry in registry.items()]
    return found + [Name("plugins", plugin.name, plugin.location, f"checksum {plugin.checksum[:12]}") for plugin in plugins.loaded()]


def lines(names: Sequence[Name]) -> list[str]:
    """The lines of `sae-sweep list`."""
    found = []
    for kind, group in groupby(names, lambda name: name.kind):
        section = list(group)
        width = max(len(name.name) for name in section)
        found += [f"{kind}:", *(f"  {name.name:<{width}}  {name.text}{f' [{name.origin}]' if name.origin else ''}" for name in section)]
    return found


def _definitions() -> dict[str, str]:
    """Name -> first comment of each ready definition."""
    from sweeps.definition.sweep import ready, text_of

    return {name: text_of(name).partition("\n")[0].removeprefix("# ") for name in ready()}


def _registries() -> dict[str, Mapping[str, object]]:
    from analysis.plots import PLOTS
    from sae_core.config import ARCHITECTURES, NORMALIZATIONS, SOURCES
    from sae_core.metrics import METRICS
    from sae_core.metrics.evaluators import EVALUATORS
    from sweeps.execution.loggers import LOGGERS
    from sweeps.samplers import SAMPLERS

    return {
        "architectures": ARCHITECTURES,
        "sources": SOURCES,
        "normalizations": NORMALIZATIONS,
        "metrics": METRICS,
        "evaluators": EVALUATORS,
        "samplers": SAMPLERS,
        "plots": PLOTS,
        "loggers": LOGGERS,
    }


def _first_sentence(entry: object) -> str:
    if isinstance(spec := getattr(entry, "spec", None), MetricSpec):
        return spec.label
    return (inspect.getdoc(entry) or "").partition("\n")[0]
