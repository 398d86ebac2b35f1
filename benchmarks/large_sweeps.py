"""How long `sae-sweep plan`, `report` and `status` take for a sweep of 5,000 runs.

    python benchmarks/large_sweeps.py plan|report|status [--runs N]

The definition is the demo's, with more learning rates, levels and seeds; nothing is trained. For `report` and `status` the records and
histories are made up, with the committed demo's configs. Each command runs in a process of its own, as a user's does, and its wall-clock
time and peak memory are printed.
"""

import argparse
import dataclasses
import json
import math
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from sae_core.files import write_json, write_json_lines
from sae_core.records import RunRecord
from sweeps.definition.sweep import Sweep

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


def time_report(n_runs: int) -> dict[str, float]:
    """`sae-sweep report` of a sweep whose runs are all finished, and the size of its page."""
    with tempfile.TemporaryDirectory() as directory:
        sweep = made_up_results(Path(directory, "large"), n_runs)
        measured = timed([sys.executable, "-m", "sweeps.cli", "report", str(sweep)])
        return {**measured, "page_mib": round((sweep / "report" / "report.html").stat().st_size / 2**20, 1)}


def time_status(n_runs: int) -> dict[str, float]:
    """`sae-sweep status` of the same."""
    with tempfile.TemporaryDirectory() as directory:
        return timed([sys.executable, "-m", "sweeps.cli", "status", str(made_up_results(Path(directory, "large"), n_runs))])


def made_up_results(sweep: Path, n_runs: int) -> Path:
    """A sweep's directory with finished runs: copies of the committed demo's records with other levels, rates, seeds and values."""
    demo = Path(__file__).parents[1] / "results" / "reference" / "demo"
    known = {record.architecture: record for record in map(RunRecord.read, sorted(demo.glob("runs/*/record.json")))}
    planned = []
    for number in range(n_runs):
        architecture = sorted(known)[number % len(known)]
        place = number // len(known)
        seed, level, rate = place % SEEDS, 4 * 2 ** (place // SEEDS % 12 / 3), 1e-3 * 1.3 ** (place // SEEDS // 12)
        record = _made_up(known[architecture], f"{architecture}-{number:012x}", seed, level, rate)
        directory = sweep / "runs" / record.run_id
        checksum = write_json_lines(directory / "history.jsonl", _history(level))
        dataclasses.replace(record, history_checksum=checksum).write(directory / "record.json")
        names = ("run_id", "architecture", "sparsity_parameter", "sparsity_value", "seed", "config")
        planned.append({name: getattr(record, name) for name in names})
    write_json(sweep / "sweep.json", {"name": sweep.name, "runs": planned})
    return sweep


def _made_up(record: RunRecord, run_id: str, seed: int, level: float, rate: float) -> RunRecord:
    noise = random.Random(run_id)
    config = json.loads(json.dumps(record.config))
    config["sae"]["target_l0"], config["train"]["lr"], config["seed"] = level, rate, seed
    loss = 2 / level * math.exp(noise.gauss(0, 0.03)) * (1 + 0.2 * abs(math.log(rate / 4e-3)))
    values = {"l0": level * math.exp(noise.gauss(0, 0.02)), "fvu": loss, "delta_ce": 2 * loss, "ce_loss_recovered": 1 - loss / 4}
    return dataclasses.replace(record, run_id=run_id, seed=seed, config=config, metrics=record.metrics | values)


def _history(level: float) -> list[dict[str, float]]:
    """A hundred rows, as training leaves them."""
    return [
        {
            "step": row * 10,
            "tokens": row * 10_240,
            "loss": 100 * math.exp(-row / 20) + 3,
            "mse_loss": 90 * math.exp(-row / 20) + 3,
            "l0": level + 400 * math.exp(-row / 10),
            "lr": 1e-3,
        }
        for row in range(1, 101)
    ]


COMMANDS = {"plan": time_plan, "report": time_report, "status": time_status}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("--runs", type=int, default=5_000)
    arguments = parser.parse_args()
    measured = COMMANDS[arguments.command](arguments.runs)
    sys.stdout.write(json.dumps({"command": arguments.command, "runs": arguments.runs, **measured}) + "\n")


if __name__ == "__main__":
    main()
