"""Results of a made-up search over learning rates and batch sizes, whose optimum tests know."""

import math
import random
from pathlib import Path

from fake_results import config_of, metrics_at, record_of, write_sweep

from sae_core.files import write_text
from sae_core.records import RunRecord

BEST_RATE = 2e-3
CURVATURE = 0.2
"""Second derivative of ln FVU by ln lr."""


def searched_records(n_trials: int = 60, seed: int = 0) -> list[RunRecord]:
    """Random learning rates; batch sizes that hardly matter. The best rate is BEST_RATE at L0 16 and halves as L0 doubles."""
    draws, records = random.Random(seed), []
    for number in range(n_trials):
        architecture, k = draws.choice(["topk", "batchtopk"]), draws.choice([8, 16, 32, 64])
        lr, batch = math.exp(draws.uniform(math.log(2e-4), math.log(2e-2))), draws.choice([1024, 2048, 4096])
        off = math.log(lr / (BEST_RATE * 16 / k))
        fvu = 0.1 * (16 / k) ** 0.8 * math.exp(CURVATURE / 2 * off**2 + 0.002 * (batch == 4096) + draws.gauss(0, 0.001))
        config = config_of(architecture, k, 0, lr=lr, batch_size=batch)
        finished = f"2026-05-01T12:{number // 60:02d}:{number % 60:02d}Z"
        records.append(record_of(architecture, k, metrics_at(k, fvu, fvu), config=config, run_id=f"run-{number:03d}", finished_at=finished))
    return records


def write_search(directory: Path, n_trials: int = 60) -> Path:
    """The sweep of such a search."""
    sweep = write_sweep(directory, searched_records(n_trials))
    rates = "{low: 2.0e-4, high: 2.0e-2}"
    write_text(sweep / "definition.yaml", f"name: search\narchitectures: {{topk: {{lr: {rates}}}, batchtopk: {{lr: {rates}}}}}\n")
    return sweep
