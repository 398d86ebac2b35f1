"""Whether a multi-objective search beats chance at the same budget: hypervolume of the demo's searches, paired by seed.

    python benchmarks/search_vs_random.py --trials 40 --seeds 5 --tokens 200_000 --results DIR

Every search has the same space (architecture, target L0, learning rate), objectives (L0, FVU) and, for a seed, the same random points
to start with. The hypervolume is that of the front over all architectures in (log2 L0, FVU), L0 8 to 128, held-out text. An
interrupted benchmark goes on where it stopped.
"""

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from analysis.pareto import L0_WINDOW, hypervolume
from analysis.table import load_table
from sweeps.definition.sweep import Sweep
from sweeps.execution.launcher import launch

ARCHITECTURES = ("standard", "gated", "topk", "batchtopk", "jumprelu", "matryoshka_batchtopk")
TARGETS = [8, 16, 32, 64, 128]
LEARNING_RATES = {"low": 1e-4, "high": 1e-1, "log": True}
"""Three decades around nothing in particular: what one asks for who does not know."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=200_000, help="training tokens of a trial")
    parser.add_argument("--eval-tokens", type=int, default=20_000)
    parser.add_argument("--samplers", default="tpe,random", help="the last one is what the others are compared with")
    parser.add_argument("--architectures", nargs="+", default=ARCHITECTURES)
    parser.add_argument("--results", type=Path, required=True)
    options = parser.parse_args()
    samplers, seeds, console = options.samplers.split(","), range(options.seeds), Console(soft_wrap=True, highlight=False)
    volumes: dict[str, list[float]] = {sampler: [] for sampler in samplers}
    console.print(f"seed  {'  '.join(f'{sampler:>8}' for sampler in samplers)}")
    for seed in seeds:
        for sampler in samplers:
            volumes[sampler].append(volume(search_of(options, sampler, seed), options.results))
        console.print(f"{seed:>4}  {'  '.join(f'{volumes[sampler][seed]:8.4f}' for sampler in samplers)}")
    for sampler in samplers[:-1]:
        console.print(summary(sampler, volumes[sampler], samplers[-1], volumes[samplers[-1]]))


def search_of(options: argparse.Namespace, sampler: str, seed: int) -> Sweep:
    """The demo as a search. Its training is that of the demo, but for the tokens and what is searched."""
    demo = Sweep.from_yaml("demo").model_dump(exclude_unset=True)
    own = {name: {key: value for key, value in (fields or {}).items() if key != "lr"} for name, fields in demo["architectures"].items()}
    return Sweep(
        **demo
        | {
            "name": f"{sampler}-{seed}",
            "data": demo["data"] | {"train_tokens": options.tokens, "eval_tokens": options.eval_tokens},
            "train": demo["train"] | {"lr": LEARNING_RATES},
            "target_l0": TARGETS,
            "architectures": {name: own[name] for name in options.architectures},
            "search": {"trials": options.trials, "sampler": sampler, "objectives": ["l0", "fvu"], "seed": seed},
        }
    )


def volume(sweep: Sweep, results: Path) -> float:
    """Make what is missing of a search, and measure its front."""
    done = launch(sweep, results=results)
    if done.interrupted:
        raise KeyboardInterrupt
    return hypervolume(load_table(done.directory), y="fvu", window=L0_WINDOW)


def summary(sampler: str, volumes: Sequence[float], other: str, others: Sequence[float]) -> str:
    """One line: the mean difference, its standard error, and how often it is positive."""
    differences = [mine - theirs for mine, theirs in zip(volumes, others, strict=True)]
    error = statistics.stdev(differences) / len(differences) ** 0.5 if len(differences) > 1 else float("nan")
    wins = sum(difference > 0 for difference in differences)
    return (
        f"{sampler} - {other}: {statistics.mean(differences):+.4f} (standard error {error:.4f}), better for {wins} of {len(differences)} "
        f"seeds; means {statistics.mean(volumes):.4f} and {statistics.mean(others):.4f}"
    )


if __name__ == "__main__":
    main()
