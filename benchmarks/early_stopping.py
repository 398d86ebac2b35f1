"""What early stopping saves, and what it costs: the demo's grid over learning rates, with and without it.

    python benchmarks/early_stopping.py --results DIR

Then the full grid's histories are replayed in other orders: which runs are stopped depends on who reaches a rung first.

Both sweeps are the same runs: architectures x L0 targets x learning rates. Printed: training tokens spent, and the hypervolume of each
architecture's front and of the front over all of them in (log2 L0, FVU), L0 8 to 128, held-out text. An interrupted benchmark goes on
where it stopped.
"""

import argparse
import random
from pathlib import Path

from rich.console import Console

from analysis.pareto import L0_WINDOW, hypervolume
from analysis.table import load_table
from sae_core.config.run import RunConfig
from sweeps.definition.sections import EarlyStoppingConfig
from sweeps.definition.sweep import Sweep
from sweeps.execution.early_stopping import AtRung, at_rung, dominating
from sweeps.execution.launcher import LaunchResult, launch
from sweeps.storage.store import Store


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
    parser.add_argument("--orders", type=int, default=12, help="random orders to replay, one run at a time")
    parser.add_argument("--results", type=Path, required=True)
    options = parser.parse_args()
    stopping = {"rungs": options.rungs, "reduction_factor": options.reduction_factor, "l0_band": options.l0_band}
    full = launched(grid_of(options, "full", None), options.results)
    stopped = launched(grid_of(options, "stopped", stopping), options.results)
    show(full, stopped, options.architectures)
    replay(full, EarlyStoppingConfig(**stopping), options.orders)


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


def replay(full: LaunchResult, config: EarlyStoppingConfig, n_orders: int) -> None:
    """Tokens and lost hypervolume of the front over all architectures, had the runs of the full grid come in other orders."""
    store, table = Store(full.directory), load_table(full.directory).set_index("run_id")
    runs = {run_id: RunConfig.model_validate(record.config) for run_id, record in store.records().items()}
    at = {rung: {name: at_rung([run], [store.read_history(name)], rung) for name, run in runs.items()} for rung in config.rungs}
    spent, lost, whole = [], [], hypervolume(table, y="fvu", window=L0_WINDOW, direction="min")
    for order in range(n_orders):
        names = random.Random(order).sample(sorted(runs), len(runs))
        stopped = _stopped(names, at, config)
        spent.append(sum(stopped.get(name, 1.0) for name in names) / len(names))
        finished = table[~table.index.isin(list(stopped))]
        lost.append(1 - hypervolume(finished, y="fvu", window=L0_WINDOW, direction="min") / whole)
    spending = f"{sum(spent) / n_orders:.1%} of the tokens, at most {max(spent):.1%}"
    loss = f"{sum(lost) / n_orders:.2%}, at most {max(lost):.2%}"
    Console(soft_wrap=True, highlight=False).print(f"replayed in {n_orders} orders: {spending}; hypervolume lost, pooled: {loss}")


def _stopped(names: list[str], at: dict[float, dict[str, AtRung | None]], config: EarlyStoppingConfig) -> dict[str, float]:
    """Run -> the rung at which it is stopped, of those that are, when they come in this order."""
    seen: dict[float, list[AtRung]] = {rung: [] for rung in config.rungs}
    stopped: dict[str, float] = {}
    for name in names:
        for rung in config.rungs:
            if (mine := at[rung][name]) is None:
                continue
            because = dominating(mine, seen[rung], config)
            seen[rung].append(mine)
            if because is not None:
                stopped[name] = rung
                break
    return stopped


if __name__ == "__main__":
    main()
