"""What early stopping saves, and what it costs: the demo's grid over learning rates, with and without it.

    python benchmarks/early_stopping.py --results DIR

Both sweeps are the same runs: architectures x L0 targets x learning rates. Printed: training tokens spent, and the hypervolume of each
architecture's front and of the front over all of them in (log2 L0, FVU), L0 8 to 128, held-out text. An interrupted benchmark goes on
where it stopped.
"""

import argparse
from pathlib import Path

from rich.console import Console

from analysis.pareto import L0_WINDOW, hypervolume
from analysis.table import load_table
from sweeps.definition import Sweep
from sweeps.launcher import LaunchResult, launch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architectures", nargs="+", default=["standard", "topk", "jumprelu"])
    parser.add_argument("--targets", nargs="+", type=int, default=[8, 16, 32, 64])
    parser.add_argument("--lrs", nargs="+", type=float, default=[1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--tokens", type=int, default=1_000_000, help="training tokens of a run")
    parser.add_argument("--eval-tokens", type=int, default=100_000)
    parser.add_argument("--rungs", nargs="+", type=float, default=[0.1, 0.3])
    parser.add_argument("--reduction-factor", type=float, default=3.0)
    parser.add_argument("--l0-band", type=float, default=1.5)
    parser.add_argument("--results", type=Path, required=True)
    options = parser.parse_args()
    stopping = {"rungs": options.rungs, "reduction_factor": options.reduction_factor, "l0_band": options.l0_band}
    full = launched(grid_of(options, "full", None), options.results)
    stopped = launched(grid_of(options, "stopped", stopping), options.results)
    show(full, stopped, options.architectures)


def grid_of(options: argparse.Namespace, name: str, stopping: dict[str, object] | None) -> Sweep:
    """The demo with one axis of targets and one of learning rates for all architectures."""
    demo = Sweep.from_yaml("demo").model_dump(exclude_unset=True)
    own = {name: {key: value for key, value in (fields or {}).items() if key != "lr"} for name, fields in demo["architectures"].items()}
    return Sweep(
        **demo
        | {
            "name": name,
            "data": demo["data"] | {"train_tokens": options.tokens, "eval_tokens": options.eval_tokens},
            "train": demo["train"] | {"lr": options.lrs},
            "target_l0": options.targets,
            "architectures": {name: own[name] for name in options.architectures},
            "seeds": options.seeds,
            "early_stopping": stopping,
        }
    )


def launched(sweep: Sweep, results: Path) -> LaunchResult:
    done = launch(sweep, results=results)
    if done.interrupted:
        raise KeyboardInterrupt
    return done


def show(full: LaunchResult, stopped: LaunchResult, architectures: list[str]) -> None:
    """Tokens, then hypervolumes, without and with early stopping."""
    console = Console(soft_wrap=True, highlight=False)
    share = stopped.tokens_spent / full.tokens_spent
    console.print(
        f"tokens spent: {full.tokens_spent:,} and {stopped.tokens_spent:,} ({share:.1%}), {len(stopped.pruned)} runs stopped early"
    )
    console.print(f"{'hypervolume':<22}{'full':>9}{'stopped':>9}{'lost':>9}")
    tables = [load_table(done.directory) for done in (full, stopped)]
    for name in [*architectures, "pooled"]:
        volumes = [
            hypervolume(table if name == "pooled" else table[table["architecture"] == name], y="fvu", window=L0_WINDOW, direction="min")
            for table in tables
        ]
        console.print(f"{name:<22}{volumes[0]:>9.4f}{volumes[1]:>9.4f}{1 - volumes[1] / volumes[0]:>9.3%}")


if __name__ == "__main__":
    main()
