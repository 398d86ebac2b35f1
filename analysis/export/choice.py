"""The runs to export: those that are named, those on the fronts, or the best one of each place in the model at an L0.

A place is a model and the hook points that are read and written there. Whoever asks for an L0 gets one run per place, as `best` ranks them.
A front is of one place, width and number of training tokens, over all architectures: of each setting on it the best repeat is taken.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.results import StoredRun, StoredSweep
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

    run: StoredRun
    place: Place

    @property
    def run_id(self) -> str:
        """Id of the run, with its held-out text where it was measured on several."""
        return self.run.run_id

    @property
    def directory(self) -> Path:
        """Its exported SAE: cfg.json and sae_weights.safetensors."""
        return self.run.paths.sae

    @property
    def architecture(self) -> str:
        """That was trained."""
        return str(self.run.requested.get("architecture"))

    @property
    def metrics(self) -> Mapping[str, Any]:
        """On held-out text; none of a run that was not evaluated."""
        return self.run.record.metrics if self.run.record else {}


def named(sweeps: Sequence[StoredSweep], run_ids: Sequence[str]) -> list[Chosen]:
    """The runs with these ids, or what was measured beside one, each once, in this order.

    Raises:
        ConfigError: there is no such run, or it has no exported SAE; all of them in one message.
    """
    runs = {run.run_id: run for sweep in sweeps for run in (*sweep.runs, *sweep.variants)}
    if unknown := [run_id for run_id in run_ids if run_id not in runs]:
        raise UnknownNameError.of("run id", unknown[0], runs, "`sae-sweep status` lists them.")
    wanted = [runs[run_id] for run_id in dict.fromkeys(run_ids)]
    if others := [f"{run.run_id} ({run.published})" for run in wanted if run.published is not None]:
        raise ConfigError(f"SAEs must have been trained here to be exported, but got {', '.join(others)}. Take them from where they came.")
    return _with_saes(wanted)


def on_fronts(sweeps: Sequence[StoredSweep], table: "pd.DataFrame", *, architecture: str | None = None) -> list[Chosen]:
    """Of each front of L0 and FVU of what was trained here the best repeat of every setting on it, place by place, from sparse to dense.

    Args:
        table: of the sweeps.
        architecture: take only runs of this one.

    Raises:
        ConfigError: no run is finished, or one has no exported SAE; all of them in one message.
    """
    from analysis.pareto import pareto_front
    from analysis.table import by_comparison, finished, over_seeds, trained_here

    table = trained_here(table)
    known = finished(table) & table["fvu"].notna().to_numpy() & (table["l0"] > 0).fillna(False).to_numpy()
    if architecture is not None and architecture not in set(table.loc[known, "architecture"]):
        raise UnknownNameError.of("an architecture with finished runs", architecture, map(str, set(table.loc[known, "architecture"])))
    rows = table[known & (True if architecture is None else (table["architecture"] == architecture).to_numpy())]
    if rows.empty:
        raise ConfigError(f"results must have finished runs to have a front, but got none in {_names(sweeps)}. Run the sweep first.")
    found = []
    for comparable in by_comparison(rows).values():
        settings = over_seeds(comparable)
        on_front = settings[pareto_front(settings, "l0", "fvu").to_numpy()].sort_values(["l0", "setting_hash"])
        for setting_hash in on_front["setting_hash"]:
            repeats = comparable[comparable["setting_hash"] == setting_hash]
            found.append(str(repeats["run_id"].iloc[int(repeats["fvu"].to_numpy(dtype=float).argmin())]))
    runs = {run.run_id: run for sweep in sweeps for run in sweep.runs}
    return sorted(_with_saes([runs[run_id] for run_id in found]), key=lambda chosen: chosen.place.order)


def best_of_each_place(
    sweeps: Sequence[StoredSweep],
    table: "pd.DataFrame",
    l0: float,
    *,
    architecture: str | None = None,
    only_transcoders: bool = False,
) -> list[Chosen]:
    """Of each place in a model, the run that `analysis.best` names at an L0, of those that were trained here.

    Args:
        table: of the sweeps.
        l0: active latents per token.
        architecture: take only runs of this one.
        only_transcoders: leave out runs that write where they read.

    Raises:
        ConfigError: some place has no run near the L0, or one without its SAE; all of them in one message.
    """
    from analysis.best import best

    runs = {run.run_id: run for sweep in sweeps for run in sweep.runs}
    places: dict[Place, list[str]] = {}
    for run_id, run in runs.items():
        if run.finished and run.published is None and (Place.of(run).hook_out is not None or not only_transcoders):
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
    return [Chosen(run, Place.of(run)) for run in runs]


def _names(sweeps: Sequence[StoredSweep]) -> str:
    return ", ".join(repr(str(sweep.paths.directory)) for sweep in sweeps)
