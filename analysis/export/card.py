"""The model card of exported SAEs: what they are, how good they are, how to load them, how they were trained.

A card says what the records say and nothing else: no license, and no name of a model or dataset that is a path on this machine.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analysis import words
from analysis.estimates import Estimate
from analysis.export.choice import Chosen
from analysis.export.folders import name_of
from analysis.export.snippets import uses_of
from analysis.results import StoredSweep
from sae_core.files import read_json
from sae_core.layout import CFG, PARTS
from sae_core.records import flat
from sae_core.validation import at

MEANINGS = {
    "l0": "latents that are not 0, mean over tokens.",
    "fvu": "fraction of variance unexplained, summed over all held-out tokens; 0 is perfect, 1 is the mean activation.",
    "delta_ce": "rise of the model's next-token cross-entropy with the reconstruction in place of the activation, nats per token.",
    "ce_loss_recovered": "share of the loss between zeros in place of the activation (0) and the untouched model (1) that is recovered.",
    "kl": "KL divergence of the model's predictions with the reconstruction from those without, nats per token.",
    "dead_fraction": "share of the latents that are active on no held-out token.",
}
"""Metrics that a card shows, where runs have them."""
_HASH = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{20,}\b")
_SHARED_SECTIONS = ("sae", "train")
_NO_SETTINGS = ("sae.architecture", "sae.d_sae")


def card_of(runs: Sequence[Chosen], sweeps: Sequence[StoredSweep], table: pd.DataFrame, *, repo: str | None) -> str:
    """The card, in Markdown.

    Args:
        sweeps: that the runs are of.
        table: of the sweeps.
        repo: where on the Hub the folders will lie; None: beside the card.
    """
    import jinja2

    from analysis.report.facts import facts_of

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["cell"] = lambda text: str(text).replace("|", "\\|").replace("\n", " ")
    rows = _rows(table, runs)
    cfgs = [read_json(run.directory / CFG) for run in runs]
    ids = {run.run_id for run in runs}
    own = [
        dataclasses.replace(sweep, runs=tuple(run for run in (*sweep.runs, *sweep.variants) if run.run_id in ids), variants=())
        for sweep in sweeps
    ]
    metrics, values = _metrics(rows, runs)
    content = {
        "front_matter": _front_matter(runs, cfgs),
        "title": _title(runs),
        "introduction": _introduction(runs),
        "metrics": metrics,
        "rows": _cells(rows, runs, values),
        "intervals": _about_intervals(rows, values),
        "inputs": _inputs(cfgs),
        "uses": uses_of([name_of(run) for run in runs], cfgs, repo),
        "places": len({run.place for run in runs}) > 1,
        "facts": [(name, _HASH.sub(r"\1", value)) for name, value in facts_of(own, _without_paths(rows))],
        "settings": _settings(runs),
    }
    return environment.get_template("README.md.jinja").render(content)


def _rows(table: pd.DataFrame, runs: Sequence[Chosen]) -> pd.DataFrame:
    """The rows of the runs, in their order."""
    by_id = {run_id: place for place, run_id in enumerate(table["run_id"])}
    rows = table.iloc[[by_id[run.run_id] for run in runs]].reset_index(drop=True)
    rows.attrs = dict(table.attrs)
    return rows


def _without_paths(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with names of directories and files in place of their paths on this machine."""
    named = {
        column: rows[column].map(lambda name: Path(name).name if isinstance(name, str) and Path(name).is_absolute() else name)
        for column in ("model", "dataset")
    }
    return rows.assign(**named)


def _front_matter(runs: Sequence[Chosen], cfgs: Sequence[Mapping[str, Any]]) -> str:
    import yaml

    from analysis.best import IN_SAELENS

    models = _hub_names(runs, "activations.model.name")
    texts = _hub_names(runs, "activations.data.dataset")
    of_several = any((cfg.get("metadata") or {}).get(PARTS) for cfg in cfgs)
    kinds = ["transcoder"] if all(run.place.hook_out for run in runs) else ["crosscoder"] if of_several else ["sae"]
    content = {
        **({"library_name": "saelens"} if all(cfg.get("architecture") in IN_SAELENS for cfg in cfgs) else {}),
        "tags": [
            "sparse-autoencoder",
            "mechanistic-interpretability",
            "sae-sweep",
            *kinds,
            *words.in_order(run.architecture for run in runs),
        ],
        **({"base_model": models} if models else {}),
        **({"datasets": texts} if texts else {}),
    }
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def _hub_names(runs: Sequence[Chosen], path: str) -> list[str]:
    """Names on the Hub that configs have there; `demo` and local paths are none."""
    names = dict.fromkeys(at(run.run.config, path) for run in runs)
    return [name for name in names if isinstance(name, str) and name != "demo" and re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name)]


def _title(runs: Sequence[Chosen]) -> str:
    kind = "Transcoders" if all(run.place.hook_out for run in runs) else "Sparse autoencoders"
    models = dict.fromkeys(Path(run.place.model).name for run in runs if run.place.model)
    return f"{kind} of {words.listed(models)}" if models else kind


def _introduction(runs: Sequence[Chosen]) -> str:
    what = words.counted(len(runs), "SAE")
    places = dict.fromkeys(str(run.place) for run in runs)
    where = f"`{next(iter(places))}`" if len(places) == 1 else f"{len(places)} places in the model"
    if all(run.place.hook_out for run in runs):
        what = words.counted(len(runs), "transcoder")
    return f"{what} for {where}, trained with sae-sweep and measured on held-out text."


def _metrics(rows: pd.DataFrame, runs: Sequence[Chosen]) -> tuple[list[dict[str, str]], dict[str, dict[str, Any]]]:
    """The metrics that are shown, and metric -> run id -> its estimate."""
    from analysis.statistics.matched import label_of, of_runs

    shown = [name for name in MEANINGS if name in rows and rows[name].notna().any()]
    values = {name: of_runs(rows, name) for name in shown}
    return [{"label": label_of(rows, name), "meaning": MEANINGS[name]} for name in shown], values


def _cells(rows: pd.DataFrame, runs: Sequence[Chosen], values: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    several_rates = rows["lr"].nunique() > 1
    return [
        {
            "folder": name_of(run),
            "place": str(run.place),
            "architecture": words.label(run.architecture),
            "setting": words.setting(row, with_lr=several_rates),
            "seed": run.run.requested.get("seed"),
            "d_sae": f"{row['d_sae']:,}",
            "numbers": [words.interval(own.get(run.run_id) or _plain(row[name])) for name, own in values.items()],
        }
        for run, (_, row) in zip(runs, rows.iterrows(), strict=True)
    ]


def _plain(value: float) -> Estimate | None:
    """A value without an interval, as of what was measured beside a run."""
    return None if pd.isna(value) else Estimate(float(value))


def _about_intervals(rows: pd.DataFrame, values: Mapping[str, Mapping[str, Any]]) -> str:
    known = [own for estimates in values.values() for own in estimates.values() if own.low is not None]
    if not known:
        return ""
    documents = max(own.n_documents for own in known)
    return (
        f"In brackets: 95 % intervals over {words.counted(documents, 'held-out document')}. They say how sure the value of this SAE is, "
        "not how much another training of it would differ."
    )


def _inputs(cfgs: Sequence[Mapping[str, Any]]) -> str:
    """What an SAE takes and gives."""
    takes = "`x` is a float32 tensor [tokens, d_in] of activations as the model has them"
    if any((cfg.get("metadata") or {}).get(PARTS) for cfg in cfgs):
        takes += (
            f"; of a crosscoder those at all its hook points side by side, in the order and with the widths of `metadata.{PARTS}` in "
            "`cfg.json`, which to SAELens is an SAE of that width"
        )
    if any(cfg.get("normalize_activations") == "layer_norm" for cfg in cfgs):
        return f"{takes}; it is layer-normed on the way, as `normalize_activations` of `cfg.json` says."
    return f"{takes}: their normalization is folded into the weights."


def _settings(runs: Sequence[Chosen]) -> str:
    """Fields of the configs that are the same for all runs, as YAML; empty where no config is known."""
    import yaml

    configs = [flat({name: run.run.config.get(name) or {} for name in _SHARED_SECTIONS}) for run in runs]
    first, *others = configs
    shared: dict[str, Any] = {}
    for path, value in first.items():
        if path not in _NO_SETTINGS and all(path in other and other[path] == value for other in others):
            *sections, name = path.split(".")
            inner = shared
            for section in sections:
                inner = inner.setdefault(section, {})
            inner[name] = value
    return yaml.safe_dump(shared, sort_keys=False, allow_unicode=True) if shared else ""
