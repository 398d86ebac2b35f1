"""Which value of a training setting is the better default: the same runs with each value, paired by seed.

    python benchmarks/defaults.py --results DIR                                  # the demo with `adam_beta1` 0.9 and 0.8
    python benchmarks/defaults.py --results DIR --values 0.9 0.8 0.7 0.5 --targets 32 --seeds 0

Every architecture is trained with every value at every target L0 and seed, by `train_group`, without Ray, in `--processes` processes of
one thread. A seed decides the initial weights; the batches are the same for all. SAEs are measured as a sweep measures them: inference
form, held-out text. A pair is two runs that differ in the value alone. FVU and delta CE are read at the target, along the front of the runs
that share architecture, value and seed (`interpolate_at_l0`), because a run ends up to a few percent off its target; with one target they
are those of the run.

Printed, per architecture and target and over all targets: the mean with the first value; the change with another value, as the geometric
mean over pairs with its range; and in how many pairs the other value is better. Then, for the first value and the other one, in percent:
the largest error of L0, and the mean share of dead latents. Every group of runs is written to `DIR/<field>.jsonl` when it is measured, so
that the same command resumes; the result is `benchmarks/results/defaults_<name>.json`. 24 SAEs of 1 M tokens take
about two and a half minutes on two cores.
"""

import argparse
import itertools
import json
import statistics
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from measuring import RESULTS, activations_of, console, write_result
from rich.table import Table

from analysis.pareto import interpolate_at_l0
from sae_core.activations import shards
from sae_core.activations.stream import Stream
from sae_core.config.run import RunConfig
from sae_core.evaluation import evaluate
from sae_core.training.loop import train_group
from sweeps.definition.sweep import Sweep

METRICS = ("fvu", "delta_ce")
KEPT = ("l0", *METRICS, "dead_fraction")
"""Metrics of a run that are written down; those that its source has."""

Row = dict[str, Any]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True, help="directory of activations and of finished runs")
    parser.add_argument("--definition", default="demo")
    parser.add_argument("--set", action="append", default=[], help="settings of the definition, as for `sae-sweep run`")
    parser.add_argument("--field", default="adam_beta1", help="of `train`")
    parser.add_argument("--values", nargs="+", type=float, default=[0.9, 0.8], help="the first is what the others are compared with")
    parser.add_argument("--architectures", nargs="+", help="default: those of the definition")
    parser.add_argument("--targets", nargs="+", type=int, default=[16, 32, 64])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS, help="directory of the result file")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    runs, name = grid(options), Sweep.from_yaml(options.definition, options.set).name
    source, cache = activations_of(runs[0], options.results)
    if not shards.was_finished(cache):
        source.prepare(cache)
        shards.harvest(source, cache)
        shards.finish(source, cache)
    rows = measured(runs, options)
    found = compare(pd.DataFrame(rows), options.values)
    console().print(shown(found, f"{name}: {options.field} against {options.values[0]:g}"))
    write_result(options.out, f"defaults_{name}", {"field": options.field, "pairs": found, "runs": rows})


def grid(options: argparse.Namespace) -> list[RunConfig]:
    """Runs of the definition with one axis of values for each architecture, which so replace those that it sets itself."""
    names = Sweep.from_yaml(options.definition, options.set).architectures
    axes = [f"architectures.{name}.{options.field}={options.values}" for name in names]
    settings = [*options.set, *axes, f"target_l0={options.targets}", f"seeds={options.seeds}"]
    wanted = options.architectures or names
    return [run for run in Sweep.from_yaml(options.definition, settings).runs() if run.sae.architecture in wanted]


def measured(runs: Sequence[RunConfig], options: argparse.Namespace) -> list[Row]:
    """A row per run, in their order. Rows of earlier calls are read, not measured again."""
    path = options.results / f"{options.field}.jsonl"
    rows = {row["run_id"]: row for row in map(json.loads, path.read_text().splitlines())} if path.exists() else {}
    jobs = list(groups([run for run in runs if run.run_id not in rows]))
    with ProcessPoolExecutor(options.processes, mp_context=get_context("spawn")) as pool, path.open("a") as file:
        for done in as_completed([pool.submit(train_and_measure, job, options.results, options.field) for job in jobs]):
            for row in done.result():
                rows[row["run_id"]] = row
                file.write(json.dumps(row) + "\n")
            file.flush()
    return [rows[run.run_id] for run in runs]


def groups(runs: Sequence[RunConfig]) -> Iterator[list[RunConfig]]:
    """Runs that are trained and measured together: all of an architecture and a seed. Seed by seed, so that what is there compares."""

    def key(run: RunConfig) -> tuple[int, str]:
        return run.seed, run.sae.architecture

    for _, some in itertools.groupby(sorted(runs, key=key), key=key):
        yield list(some)


def train_and_measure(runs: list[RunConfig], results: Path, field: str) -> list[Row]:
    """A row per run."""
    torch.set_num_threads(1)
    source, cache = activations_of(runs[0], results)
    stream = Stream(cache, batch_size=runs[0].train.batch_size, data_seed=runs[0].data_seed)
    saes = {}
    for result in train_group(runs, stream):
        saes[result.run.run_id] = result.exported()
    measured = evaluate(saes, source, cache, torch.tensor(shards.read_manifest(cache).mean))
    metrics = {run_id: found.metrics for run_id, found in measured.items()}
    return [row_of(run, field) | {name: metrics[run.run_id][name] for name in KEPT if name in metrics[run.run_id]} for run in runs]


def row_of(run: RunConfig, field: str) -> Row:
    facts = {"run_id": run.run_id, "architecture": run.sae.architecture, "target_l0": run.sae.target_l0, "seed": run.seed}
    return facts | {"value": getattr(run.train, field), "lr": run.train.lr}


def compare(runs: pd.DataFrame, values: Sequence[float]) -> list[Row]:
    """Every value but the first against the first: a row per architecture, value and target, and one for all targets together.

    Args:
        runs: rows of `measured`.
        values: of the field.
    """
    table = runs.assign(l0_error=(runs["l0"] / runs["target_l0"] - 1).abs())
    read = {metric: at_targets(table, metric) for metric in METRICS if metric in table}
    rows = []
    for architecture, some in table.groupby("architecture", sort=False):
        targets = sorted(some["target_l0"].unique())
        for value, at in itertools.product(values[1:], [[target] for target in targets] + ([targets] if len(targets) > 1 else [])):
            row: Row = {"architecture": architecture, "target_l0": at, "value": value}
            for metric, levels in read.items():
                pairs = levels[levels.index.isin([architecture], "architecture") & levels.index.isin(at, "target_l0")].unstack("value")
                row[metric] = paired(pairs[values[0]], pairs[value])
            for name, reduce in (("l0_error", "max"), ("dead_fraction", "mean")):
                there = some[some["target_l0"].isin(at)]
                row[name] = [float(there.loc[there["value"] == one, name].agg(reduce)) for one in (values[0], value)]
            rows.append(row)
    return rows


def at_targets(table: pd.DataFrame, metric: str) -> pd.Series:
    """The metric at each target, by architecture, value, seed and target."""
    names = ["architecture", "value", "seed"]
    targets = sorted(table["target_l0"].unique())
    if len(targets) == 1:
        return table.set_index([*names, "target_l0"])[metric]
    return interpolate_at_l0(table, targets, metric, by=names, direction="min").rename_axis(columns="target_l0").stack()


def paired(base: pd.Series, other: pd.Series) -> dict[str, Any]:
    """Means of both, and the ratio of other to base: geometric mean, smallest and largest, and in how many pairs of all it is below 1.

    Raises:
        ValueError: a pair has no value.
    """
    ratios = (other / base).tolist()
    if not all(ratio > 0 for ratio in ratios):
        raise ValueError(f"every pair must have a value at its target, but got ratios={ratios}. Choose targets that the runs reach.")
    summary = {"ratio": statistics.geometric_mean(ratios), "low": min(ratios), "high": max(ratios)}
    better = {"better": sum(ratio < 1 for ratio in ratios), "pairs": len(ratios)}
    return {"base": float(base.mean()), "other": float(other.mean())} | summary | better


def shown(rows: Sequence[Row], title: str) -> Table:
    """One line per row of `compare`; changes and shares in percent."""
    made = Table(title=title)
    metrics = [metric for metric in METRICS if metric in rows[0]]
    for name in ("architecture", "L0", "value", *metrics, "L0 error", "dead"):
        made.add_column(name, no_wrap=True)
    for row in rows:
        shares = (" / ".join(f"{100 * share:.1f}" for share in row[name]) for name in ("l0_error", "dead_fraction"))
        targets = "all" if len(row["target_l0"]) > 1 else f"{row['target_l0'][0]:g}"
        made.add_row(row["architecture"][:10], targets, f"{row['value']:g}", *(_change(row[metric]) for metric in metrics), *shares)
    return made


def _change(pairs: dict[str, Any]) -> str:
    """For a table, in percent: "0.0660 -1.7 (-2.0 to -1.5) 3/3"."""
    mean, low, high = (f"{100 * (pairs[name] - 1):+.1f}" for name in ("ratio", "low", "high"))
    return f"{pairs['base']:.4f} {mean} ({low} to {high}) {pairs['better']}/{pairs['pairs']}"


if __name__ == "__main__":
    main()
