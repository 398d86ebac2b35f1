"""SAEs of a sweep for other programs: in folders that SAELens loads, or as sets that circuit-tracer loads; on disk or on the Hub."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sae_core.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd

    from analysis.export.choice import Chosen
    from analysis.results import StoredSweep
    from sae_core.activations.language_model.model_spec import ModelSpec

Form = Literal["saelens", "circuit-tracer"]
SET_INPUTS = ("mlp.hook_in", "hook_resid_mid")
"""Where circuit-tracer can read, named from within a block. Its `ln2.hook_normalized` lies within a module, where nothing of ours reads."""
SET_OUTPUTS = ("hook_mlp_out", "mlp.hook_out")


def export(
    results: str | Path | Sequence[str | Path],
    to: str | Path,
    *,
    form: Form = "saelens",
    l0: float | None = None,
    front: bool = False,
    run_ids: Sequence[str] = (),
    architecture: str | None = None,
) -> "tuple[list[Chosen], list[Path] | list[str]]":
    """Write SAEs for another program.

    Args:
        results: directory of a sweep, or several: layers may come from sweeps of their own.
        to: a new or empty directory, or `hub:user/repo`, a new or empty repository on the Hub.
        form: `saelens` writes a folder per run and a model card, `circuit-tracer` one set of transcoders, a run per layer of the model.
        l0: take the best run at this L0 of each place in the model.
        front: take the runs on the fronts of each place.
        run_ids: take these runs.
        architecture: with `l0` or `front`: take only runs of this one.

    Returns:
        The runs, and where each was written: paths, or names `hub:user/repo/...`; of a set its files, config.yaml first.

    Raises:
        ConfigError: what was asked for cannot be chosen or written.
    """
    from analysis.results import read_sweeps
    from analysis.table import table_of
    from sae_core.sae.hub import PREFIX
    from sweeps.publishing import check_repository, publish, repository_of

    _check_choice(l0, front, run_ids, architecture, form)
    repo = repository_of(str(to))
    sweeps = read_sweeps(results)
    table = table_of(sweeps)
    runs = _chosen(sweeps, table, l0, front, run_ids, architecture, only_transcoders=form == "circuit-tracer")
    if repo is None:
        return _write(runs, sweeps, table, Path(to).expanduser(), form, None)
    check_repository(repo)
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary) / "repository"
        runs, files = _write(runs, sweeps, table, directory, form, repo)
        publish(directory, repo)
    return runs, [f"{PREFIX}{repo}/{file.relative_to(directory).as_posix()}" for file in files]


def _check_choice(l0: float | None, front: bool, run_ids: Sequence[str], architecture: str | None, form: Form) -> None:
    if (l0 is not None) + front + bool(run_ids) != 1:
        raise ConfigError(
            f"either an L0, the fronts or runs must be asked for, but got l0={l0}, front={front} and runs {list(run_ids)}. Give one of "
            "`--l0`, `--front` and `--run`."
        )
    if architecture is not None and run_ids:
        raise ConfigError(
            f"`--architecture` chooses among runs at an L0 or on fronts, but got {architecture!r} beside `--run`. Leave it out."
        )
    if front and form == "circuit-tracer":
        raise ConfigError(
            "a set for circuit-tracer must have one transcoder per layer, but got `--front`, which takes several. Give `--l0`."
        )


def _chosen(
    sweeps: "Sequence[StoredSweep]",
    table: "pd.DataFrame",
    l0: float | None,
    front: bool,
    run_ids: Sequence[str],
    architecture: str | None,
    *,
    only_transcoders: bool,
) -> "list[Chosen]":
    from analysis.export.choice import best_of_each_place, named, on_fronts

    if front:
        return on_fronts(sweeps, table, architecture=architecture)
    if l0 is not None:
        return best_of_each_place(sweeps, table, l0, architecture=architecture, only_transcoders=only_transcoders)
    return named(sweeps, run_ids)


def _write(
    runs: "list[Chosen]", sweeps: "Sequence[StoredSweep]", table: "pd.DataFrame", to: Path, form: Form, repo: str | None
) -> "tuple[list[Chosen], list[Path]]":
    """Write to a directory; `repo` is where it will lie on the Hub."""
    from analysis.export.card import card_of
    from analysis.export.circuit_tracer import Hooks, write_set
    from analysis.export.folders import write_folders

    if form == "saelens":
        return runs, write_folders(runs, to, card_of(runs, sweeps, table, repo=repo))
    layers, hooks, model = _layers(runs)
    return layers, write_set(layers, to, Hooks(*hooks), model if repo is None else str(runs[0].place.model), repo=repo)


def _layers(runs: "Sequence[Chosen]") -> "tuple[list[Chosen], tuple[str, str], str]":
    """The transcoder of each layer, the hook points they share, named from within a block, and the model's name or path."""
    from sae_core.activations.language_model.model_spec import model_spec
    from sweeps.definition.local_data import located_model

    saes = [run.run_id for run in runs if run.place.hook_out is None]
    if saes:
        raise ConfigError(
            f"runs of a set for circuit-tracer must be transcoders, but got SAEs: {', '.join(saes)}. Train with a `hook_out`, which is "
            "where a transcoder writes: docs/transcoders.md."
        )
    models = {run.place.model for run in runs}
    if len(models) > 1:
        raise ConfigError(f"a set must be of one model, but got {sorted(map(str, models))}. Name runs of one with `--run`.")
    model = str(located_model(runs[0].place.model))
    spec = model_spec(model)
    by_layer: dict[int, list[Chosen]] = {}
    hooks: dict[tuple[str, str], list[str]] = {}
    problems = []
    for run in runs:
        try:
            layer, pair = _hooks_of(run, spec)
        except ConfigError as error:
            problems.append(str(error))
            continue
        by_layer.setdefault(layer, []).append(run)
        hooks.setdefault(pair, []).append(run.run_id)
    if problems:
        raise ConfigError("\n".join(problems))
    n_layers = len(list(spec.model.get_submodule(spec.layout.blocks)))
    _check_layers(by_layer, n_layers, model)
    if len(hooks) > 1:
        got = "; ".join(f"{' -> '.join(pair)} of {', '.join(ids)}" for pair, ids in hooks.items())
        raise ConfigError(
            f"all layers of a set must have the same hook points in their blocks, but got {got}. Name one run per layer with `--run`."
        )
    return [by_layer[layer][0] for layer in range(n_layers)], next(iter(hooks)), model


def _hooks_of(run: "Chosen", spec: "ModelSpec") -> tuple[int, tuple[str, str]]:
    """Layer and hook points of a transcoder, named from within its block."""
    ends = [
        _within_block(run, spec, field, hook_point, known)
        for field, hook_point, known in (("hook_point", run.place.hook_point, SET_INPUTS), ("hook_out", run.place.hook_out, SET_OUTPUTS))
    ]
    (layer, read), (layer_out, write) = ends
    if layer != layer_out:
        raise ConfigError(f"a transcoder of a set must read and write in one layer, but got {run.place} of run {run.run_id}. Name another.")
    return layer, (read, write)


def _within_block(run: "Chosen", spec: "ModelSpec", field: str, hook_point: str | None, known: Sequence[str]) -> tuple[int, str]:
    """Layer of a hook point, and circuit-tracer's name for it; of several, the one that the definition has."""
    place = spec.place(str(hook_point))
    names = [name for name in known if spec.names.get(f"blocks.{place.layer}.{name}") == (place.module, place.side)]
    if place.layer is None or not names:
        raise ConfigError(
            f"`{field}` of a set for circuit-tracer must be {' or '.join(repr(f'blocks.*.{name}') for name in known)}, but got "
            f"{hook_point!r} of run {run.run_id}. Train transcoders there, or export with `--format saelens`."
        )
    own = [name for name in names if str(hook_point).endswith(f".{name}")]
    return place.layer, (own or names)[0]


def _check_layers(by_layer: "dict[int, list[Chosen]]", n_layers: int, model: str) -> None:
    missing = [layer for layer in range(n_layers) if layer not in by_layer]
    several = {layer: [run.run_id for run in runs] for layer, runs in sorted(by_layer.items()) if len(runs) > 1}
    problems = [f"none of layers {missing}"] if missing else []
    problems += [f"{len(ids)} of layer {layer} ({', '.join(ids)})" for layer, ids in several.items()]
    if problems:
        remedies = [" Train those that are missing: `hook_point: blocks.*.mlp.hook_in` is all of them."] if missing else []
        remedies += [" Name one run per layer with `--run`."] if several else []
        raise ConfigError(
            f"a set for circuit-tracer must have one transcoder of each of the {n_layers} layers of {model!r}, but got "
            f"{', '.join(problems)}.{''.join(remedies)}"
        )
