"""What a definition may name: ready definitions, and what is registered, plugins included."""

import inspect
from collections.abc import Iterator, Mapping

from sae_core import plugins
from sae_core.records import MetricSpec


def listing() -> Iterator[str]:
    """The lines of `sae-sweep list`: each kind, then its names with what they are and the plugin they come from."""
    yield from _section("definitions", {name: (text, "") for name, text in _definitions().items()})
    for kind, registry in _registries().items():
        yield from _section(
            kind, {name: (_first_sentence(entry), ", ".join(plugins.checksums_of([entry]))) for name, entry in registry.items()}
        )
    yield from _section("plugins", {plugin.name: (plugin.location, f"checksum {plugin.checksum[:12]}") for plugin in plugins.loaded()})


def _section(kind: str, rows: Mapping[str, tuple[str, str]]) -> Iterator[str]:
    if rows:
        width = max(map(len, rows))
        yield f"{kind}:"
        yield from (f"  {name:<{width}}  {text}{f' [{origin}]' if origin else ''}" for name, (text, origin) in rows.items())


def _definitions() -> dict[str, str]:
    """Name -> first comment of each ready definition."""
    from sweeps.definition.sweep import ready, text_of

    return {name: text_of(name).partition("\n")[0].removeprefix("# ") for name in ready()}


def _registries() -> dict[str, Mapping[str, object]]:
    from analysis.plots import PLOTS
    from sae_core.config import ARCHITECTURES, NORMALIZATIONS, SOURCES
    from sae_core.metrics import METRICS
    from sweeps.execution.loggers import LOGGERS
    from sweeps.samplers import SAMPLERS

    return {
        "architectures": ARCHITECTURES,
        "sources": SOURCES,
        "normalizations": NORMALIZATIONS,
        "metrics": METRICS,
        "samplers": SAMPLERS,
        "plots": PLOTS,
        "loggers": LOGGERS,
    }


def _first_sentence(entry: object) -> str:
    if isinstance(spec := getattr(entry, "spec", None), MetricSpec):
        return spec.label
    return (inspect.getdoc(entry) or "").partition("\n")[0]
