"""How long `sae-sweep plan` takes for a sweep of 5,000 runs.

    python benchmarks/large_sweeps.py plan [--runs N]

The definition is the demo's, with more learning rates, levels and seeds; nothing is trained. Each command runs in a process of its own, as
a user's does, and its wall-clock time and peak memory are printed.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from sweeps.definition import Sweep

ARCHITECTURES = ("standard", "gated", "topk", "batchtopk", "jumprelu")
SEEDS = 5
LEVELS = 8


def large_sweep(n_runs: int) -> Sweep:
    """The demo with five architectures, eight levels, five seeds, and as many learning rates as `n_runs` takes."""
    definition: dict[str, Any] = Sweep.from_yaml("demo").model_dump(exclude_unset=True)
    n_rates = n_runs // (len(ARCHITECTURES) * LEVELS * SEEDS)
    return Sweep(
        **{
            **definition,
            "name": "large",
            "train": {**definition["train"], "lr": [round(1e-3 * 1.05**i, 8) for i in range(n_rates)]},
            "target_l0": [4, 8, 12, 16, 24, 32, 48, 64],
            "architectures": {name: {} for name in ARCHITECTURES},
            "seeds": list(range(SEEDS)),
        }
    )


def timed(command: list[str]) -> dict[str, float]:
    """Run a command to its end.

    Returns:
        Its wall-clock seconds, and the peak memory of the largest process so far.
    """
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - start
    peak_kib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return {"seconds": round(seconds, 1), "peak_mib": round(peak_kib / 1024)}


def time_plan(n_runs: int) -> dict[str, float]:
    """`sae-sweep plan` of a sweep that was not launched yet."""
    with tempfile.TemporaryDirectory() as directory:
        definition = Path(directory, "large.yaml")
        definition.write_text(large_sweep(n_runs).to_yaml(), encoding="utf-8")
        return timed([sys.executable, "-m", "sweeps.cli", "plan", str(definition), "--results", directory])


COMMANDS = {"plan": time_plan}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("--runs", type=int, default=5_000)
    arguments = parser.parse_args()
    measured = COMMANDS[arguments.command](arguments.runs)
    sys.stdout.write(json.dumps({"command": arguments.command, "runs": arguments.runs, **measured}) + "\n")


if __name__ == "__main__":
    main()
