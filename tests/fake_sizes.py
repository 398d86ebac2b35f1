"""Results at several widths, token budgets and L0s that follow a law of scaling which tests know."""

import math
import random
from collections.abc import Sequence

from fake_results import ARCHITECTURES, config_of, metrics_at, record_of

from sae_core.records import RunRecord

LAW = {"a": -0.5, "l0": 0.26, "d_sae": -0.017, "cross": -0.042, "tokens": -0.12, "irreducible": -3.0, "irreducible_l0": -0.085}
"""Exponents of FVU = exp(a + l0 ln k + d_sae ln n + cross ln k ln n + tokens ln T) + exp(irreducible + irreducible_l0 ln k)."""
BETTER = {"topk": 0.0, "batchtopk": -0.06, "gated": 0.05, "jumprelu": -0.02, "matryoshka_batchtopk": 0.08, "standard": 0.5}
"""What an architecture adds to `a`."""


def fvu_of(architecture: str, d_sae: int, tokens: int, l0: float, law: dict[str, float] = LAW) -> float:
    """The law."""
    k, n, t = math.log(l0), math.log(d_sae), math.log(tokens / 1e6)
    above = law["a"] + BETTER[architecture] + law["l0"] * k + law["d_sae"] * n + law["cross"] * k * n + law["tokens"] * t
    return math.exp(above) + math.exp(law["irreducible"] + law["irreducible_l0"] * k)


def sized_records(
    architectures: Sequence[str] = ("topk", "batchtopk"),
    widths: Sequence[int] = (1024, 4096, 16_384),
    tokens: Sequence[int] = (1_000_000, 4_000_000),
    l0s: Sequence[float] = (8, 16, 32, 64, 128),
    seeds: Sequence[int] = (0,),
    noise: float = 0.0,
) -> list[RunRecord]:
    """A record per combination. `noise`: standard deviation of ln FVU over seeds."""
    records = []
    for architecture in architectures:
        for d_sae in widths:
            for budget in tokens:
                for l0 in l0s:
                    for seed in seeds:
                        luck = random.Random(f"{architecture}{d_sae}{budget}{l0}{seed}").gauss(0, noise)
                        fvu = fvu_of(architecture, d_sae, budget, l0) * math.exp(luck)
                        config = config_of(architecture, l0, seed)
                        config["sae"] |= {"d_sae": d_sae, "target_l0": float(l0)}
                        config["activations"] = {**config["activations"], "train_tokens": budget}
                        name = f"{architecture}-{d_sae}-{budget}-{l0:g}-{seed}"
                        seconds = 1e-8 * d_sae * budget * (1.4 if ARCHITECTURES[architecture][0] != "k" else 1.0)
                        changes = {"run_id": name, "train_tokens": budget, "train_seconds": seconds}
                        records.append(record_of(architecture, l0, metrics_at(l0, fvu, 1.5 * fvu), seed, config, **changes))
    return records
