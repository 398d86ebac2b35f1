"""Published SAEs to evaluate: which of a definition's activations each is for. Everything that does not fit is found before any work."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sae_core.config.run import ActivationsConfig
from sae_core.errors import ConfigError
from sae_core.sae.base import SparseAutoencoder
from sae_core.sae.belonging import Belonging, belonging
from sae_core.sae.hub import located, origin_of
from sweeps.planning.inputs import SharedActivations

RUN_ID = "published"
"""Start of the ids of published SAEs."""


@dataclass(frozen=True, slots=True)
class Published:
    """A published SAE, and the activations that it is measured on."""

    run_id: str
    """From what it computes and from the activations, wherever it lies."""
    name: str
    """As it was given: a directory, or a name on the Hub."""
    directory: Path
    origin: str
    """Its absolute path, or its name on the Hub with the commit."""
    belongs: Belonging
    sizes: tuple[int, ...]
    """d_in, and d_out of a transcoder."""
    sparsity: tuple[str, float | None]
    """Name of the architecture's sparsity parameter, and its value where the files have it."""
    config: dict[str, Any]
    """For its record: `activations` and `sae`, as runs have them."""
    shared: SharedActivations
    same: tuple[str, ...] = ()
    """Further names under which it was given: what they name computes the same."""

    @property
    def notes(self) -> list[str]:
        """What a reader should know: that its files name another model than the definition (names of one model differ), or that it was
        given several times."""
        theirs, ours = self.belongs.model, self.shared.metadata.get("model_name")
        is_of_another = theirs is not None and ours is not None and Path(theirs).name.lower() != Path(str(ours)).name.lower()
        return [
            *([f"evaluate: {self.name!r} says that it is for the model {theirs!r}, and is measured on {ours!r}"] if is_of_another else []),
            *(f"evaluate: {name!r} computes the same as {self.name!r}: measured once" for name in self.same),
        ]


def published(names: Sequence[str], configs: Sequence[ActivationsConfig], inputs: Sequence[SharedActivations]) -> list[Published]:
    """Read SAEs, and find the activations that each is for.

    Args:
        names: directories, or names on the Hub.
        configs: the activations of a definition, each once.
        inputs: the same, with their sources.

    Raises:
        ConfigError: with every problem, one per line: a name that cannot be read, a hook point that the definition does not read, another
            width, a transcoder where there are no pairs.
    """
    _share(inputs)
    problems: list[str] = []
    found: dict[str, Published] = {}
    for name in dict.fromkeys(names):
        try:
            for one in _measured_on(name, list(zip(configs, inputs, strict=True))):
                first = found.get(one.run_id)
                found[one.run_id] = one if first is None else replace(first, same=(*first.same, name))
        except ConfigError as error:
            problems += str(error).splitlines()
    if problems:
        raise ConfigError("\n".join(dict.fromkeys(problems)))
    return list(found.values())


def _share(inputs: Sequence[SharedActivations]) -> None:
    """Let sources of one model look it up once."""
    firsts: dict[str, SharedActivations] = {}
    for shared in inputs:
        if shared.source.pass_key is not None and (first := firsts.setdefault(shared.source.pass_key, shared)) is not shared:
            shared.source.beside(first.source)


def _measured_on(name: str, choices: Sequence[tuple[ActivationsConfig, SharedActivations]]) -> list[Published]:
    directory = located(name)
    sae, belongs = SparseAutoencoder.from_pretrained(directory), belonging(directory)
    content = sae.content_hash()
    found = []
    for config, shared in _fitting(name, belongs, choices):
        source = shared.source
        if (sae.d_in, sae.d_out) != (source.d_in, source.d_out):
            raise ConfigError(
                f"an SAE must be for activations of the width that it is measured on, and a transcoder for pairs, but got d_in={sae.d_in} "
                f"and d_out={sae.d_out} in {name!r}, and d_in={source.d_in} and d_out={source.d_out} at {_place(shared)} of the "
                "definition. Correct `model.name` or `model.hook_point`, or choose another SAE."
            )
        measured = {"activations": config.model_dump(mode="json"), "sae": sae.config.model_dump(mode="json")}
        digest = hashlib.sha256(json.dumps([content, measured["activations"]], sort_keys=True).encode()).hexdigest()
        parameter = sae.config.sparsity_parameter
        value = None if sae.config.has_coefficient else sae.config.sparsity_value
        run_id = f"{RUN_ID}-{sae.config.architecture}-{digest[:12]}"
        origin = origin_of(name, directory)
        found.append(Published(run_id, name, directory, origin, belongs, sae.sizes, (parameter, value), measured, shared))
    return found


def _fitting(
    name: str, belongs: Belonging, choices: Sequence[tuple[ActivationsConfig, SharedActivations]]
) -> list[tuple[ActivationsConfig, SharedActivations]]:
    """The activations at the SAE's hook points; where its files name none, those of a definition with one hook point."""
    places = list(dict.fromkeys(_place(shared) for _, shared in choices))
    if belongs.hook_point is None and len(places) > 1:
        raise ConfigError(
            f"the hook point of an SAE must be known, but the files of {name!r} name none, and the definition has {places}. Give it: "
            "`--set model.hook_point=NAME`."
        )
    fitting = [(config, shared) for config, shared in choices if _is_at(shared, belongs)]
    if not fitting:
        told = " to ".join(place for place in (belongs.hook_point, belongs.hook_out) if place)
        raise ConfigError(
            f"an SAE must be for a hook point of the definition, but {name!r} says {told!r}, and the definition has {places}. Give it: "
            f"`--set model.hook_point={belongs.hook_point}`, or choose another SAE."
        )
    return fitting


def _is_at(shared: SharedActivations, belongs: Belonging) -> bool:
    """Whether nothing that both name differs."""
    pairs = (("hook_name", belongs.hook_point), ("hook_name_out", belongs.hook_out))
    named = [(str(ours), theirs) for key, theirs in pairs if (ours := shared.metadata.get(key)) is not None and theirs is not None]
    return all(shared.source.is_same_hook_point(ours, theirs) for ours, theirs in named)


def _place(shared: SharedActivations) -> str:
    named = [str(shared.metadata[key]) for key in ("hook_name", "hook_name_out") if shared.metadata.get(key)]
    return " to ".join(named) or f"the source {shared.source.config.source!r}"
