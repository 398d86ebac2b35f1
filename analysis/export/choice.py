"""The runs to export: those that are named, or the best one of each place in the model at an L0.

A place is a model and the hook points that are read and written there. Whoever asks for an L0 gets one run per place, as `best` ranks them.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.results import StoredRun, StoredSweep, read_sweeps
from sae_core.errors import ConfigError, UnknownNameError
from sae_core.validation import at

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True)
class Place:
    """Where in which model an SAE reads, and where a transcoder writes."""

    model: str | None
    """Name as the definition has it; None where activations come from no language model."""
    hook_point: str | None
    hook_out: str | None
    """None: an SAE, which writes where it reads."""

    @classmethod
    def of(cls, run: StoredRun) -> "Place":
        """The place that a run's config names."""
        names = (at(run.config, f"activations.model.{field}") for field in ("name", "hook_point", "hook_out"))
        return cls(*(name if isinstance(name, str) else None for name in names))

    @property
    def order(self) -> tuple[tuple[int, int | str], ...]:
        """What sorts places as a reader counts: layer 2 before layer 10."""
        parts = re.split(r"(\d+)", f"{self.model} {self.hook_point} {self.hook_out}")
        return tuple((0, int(part)) if part.isdecimal() else (1, part) for part in parts)

    def __str__(self) -> str:
        return " -> ".join(hook for hook in (self.hook_point, self.hook_out) if hook) or "activations of no language model"


@dataclass(frozen=True, slots=True)
class Chosen:
    """A run to export."""

    run_id: str
    place: Place
    directory: Path
    """Its exported SAE: cfg.json and sae_weights.safetensors."""
    architecture: str
    """That was trained."""
    metrics: Mapping[str, Any]


def named(results: str | Path | Sequence[str | Path], run_ids: Sequence[str]) -> list[Chosen]:
    """The runs with these ids, each once, in this order.

    Raises:
        ConfigError: there is no such run, or it has no exported SAE; all of them in one message.
    """
    sweeps = read_sweeps(results)
    runs = {run.run_id: run for sweep in sweeps for run in sweep.runs}
    if unknown := [run_id for run_id in run_ids if run_id not in runs]:
        raise UnknownNameError.of("run id", unknown[0], runs, "`sae-sweep status` lists them.")
    return _with_saes([runs[run_id] for run_id in dict.fromkeys(run_ids)])


def best_of_each_place(
    results: str | Path | Sequence[str | Path], l0: float, *, architecture: str | None = None, only_transcoders: bool = False
) -> list[Chosen]:
    """Of each place in a model, the run that `analysis.best` names at an L0.

    Args:
        l0: active latents per token.
        architecture: take only runs of this one.
        only_transcoders: leave out runs that write where they read.

    Raises:
        ConfigError: some place has no run near the L0, or one without its SAE; all of them in one message.
    """
    from analysis.best import best
    from analysis.table import table_of

    sweeps = read_sweeps(results)
    table = table_of(sweeps)
    runs = {run.run_id: run for sweep in sweeps for run in sweep.runs}
    places: dict[Place, list[str]] = {}
    for run_id, run in runs.items():
        if run.finished and (Place.of(run).hook_out is not None or not only_transcoders):
            places.setdefault(Place.of(run), []).append(run_id)
    if not places:
        what = "finished transcoders, which a `hook_out` in the definition makes" if only_transcoders else "finished runs"
        raise ConfigError(f"results must have {what}, but got none in {_names(sweeps)}. Run the sweep first.")
    found, problems = [], []
    for place, run_ids in sorted(places.items(), key=lambda item: item[0].order):
        try:
            found.append(best(_rows(table, run_ids), l0, architecture=architecture).run_id)
        except ConfigError as error:
            problems.append(f"{place}: {error}" if len(places) > 1 else str(error))
    if problems:
        raise ConfigError("\n".join(problems))
    return _with_saes([runs[run_id] for run_id in found])


def _rows(table: "pd.DataFrame", run_ids: Sequence[str]) -> "pd.DataFrame":
    rows = table[table["run_id"].isin(run_ids)]
    rows.attrs = dict(table.attrs)
    return rows


def _with_saes(runs: Sequence[StoredRun]) -> list[Chosen]:
    without = [f"{run.run_id} ({run.record.status if run.record else 'missing'})" for run in runs if not run.paths.sae.is_dir()]
    if without:
        raise ConfigError(
            f"runs must have their SAEs to be exported, but got none of {', '.join(without)}. Choose finished runs, or train them again: "
            "delete their records and repeat `sae-sweep run`."
        )
    return [
        Chosen(
            run.run_id,
            Place.of(run),
            run.paths.sae,
            str(run.requested.get("architecture")),
            run.record.metrics if run.record else {},
        )
        for run in runs
    ]


def _names(sweeps: Sequence[StoredSweep]) -> str:
    return ", ".join(repr(str(sweep.paths.directory)) for sweep in sweeps)
