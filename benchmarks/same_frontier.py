"""Whether the fast paths move the frontier: the same runs with other arithmetic, paired by seed.

    python benchmarks/same_frontier.py --results results      # after `make demo`, whose activations it reads; 10 to 17 minutes on one core

Every architecture at every target and seed is trained on the same batches three times: with the fast kernels under bfloat16 autocast,
as the demo is; with the reference kernels (plain PyTorch) under bfloat16 autocast; and with the reference kernels in float32. Told is, for
each architecture, how much higher the FVU on held-out tokens is than in the last of these, as the mean over pairs with its standard
error; beside it how much it differs between seeds, all else equal. L0 and FVU are of the inference form on the last tenth of the tokens.
"""

import argparse
import math
import statistics
from collections import defaultdict
from pathlib import Path

import torch
from measuring import activations_of, console
from rich.table import Table
from target_l0 import Comparison

from sae_core.config.run import RunConfig
from sae_core.sparse.kernels.choice import Choice, using_kernels
from sae_core.training.loop import train_group
from sweeps.definition.sweep import Sweep

PATHS: dict[str, tuple[Choice, str]] = {
    "fast, bfloat16": ("fast", "bfloat16"),
    "reference, bfloat16": ("reference", "bfloat16"),
    "reference, float32": ("reference", "off"),
}
BASE = "reference, float32"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--definition", default="demo")
    parser.add_argument("--set", action="append", default=[], help="settings of the definition, as for `sae-sweep run`")
    parser.add_argument("--targets", nargs="+", type=int, default=[16, 64])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=250)
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = [*options.set, f"target_l0={options.targets}", f"seeds={list(range(options.seeds))}"]
    sweep = Sweep.from_yaml(options.definition, settings)
    comparison = Comparison(sweep.runs(), activations_of(sweep.runs()[0], options.results)[1])
    runs = [_shortened(run, options.steps) for run in sweep.runs()]
    found = {name: _measured(comparison, runs, kernels, autocast) for name, (kernels, autocast) in PATHS.items()}
    console().print(table(runs, found))


def _shortened(run: RunConfig, n_steps: int) -> RunConfig:
    return run.model_copy(update={"activations": run.activations.model_copy(update={"train_tokens": n_steps * run.train.batch_size})})


def _measured(comparison: Comparison, runs: list[RunConfig], kernels: Choice, autocast: str) -> list[tuple[float, float]]:
    """L0 and FVU of every run."""
    changed = [run.model_copy(update={"train": run.train.model_copy(update={"autocast": autocast})}) for run in runs]
    with using_kernels(kernels):
        return [comparison.measure(result) for result in train_group(changed, comparison.stream)]


def table(runs: list[RunConfig], found: dict[str, list[tuple[float, float]]]) -> Table:
    """One row per architecture; FVU relative to that of float32."""
    made = Table(title=f"FVU against {BASE}, mean over pairs ± standard error; L0 likewise in brackets")
    made.add_column("architecture", no_wrap=True)
    for name in found:
        if name != BASE:
            made.add_column(name, justify="right")
    made.add_column("spread of FVU between seeds", justify="right")
    for architecture in dict.fromkeys(run.sae.architecture for run in runs):
        of = [index for index, run in enumerate(runs) if run.sae.architecture == architecture]
        cells = []
        for name in found:
            if name != BASE:
                l0, fvu = (_mean([math.log(found[name][i][which] / found[BASE][i][which]) for i in of]) for which in (0, 1))
                cells.append(f"{fvu} ({l0})")
        by_target = defaultdict(list)
        for index in of:
            by_target[runs[index].sae.target_l0].append(math.log(found[BASE][index][1]))
        spread = statistics.mean(statistics.stdev(values) for values in by_target.values())
        made.add_row(architecture, *cells, f"{spread:.1%}")
    return made


def _mean(changes: list[float]) -> str:
    return f"{statistics.mean(changes):+.2%} ± {statistics.stdev(changes) / math.sqrt(len(changes)):.2%}"


if __name__ == "__main__":
    main()
