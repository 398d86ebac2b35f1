"""Sweeps drawn from a known truth, as tables and sums per document in memory: for tests of how often intervals cover it."""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from analysis.documents import DocumentSums
from sae_core.documents import Ratio

RATIOS = {
    "l0": Ratio({"active": 1.0}, {"n_tokens": 1.0}),
    "fvu": Ratio({"error": 1.0}, {"variance": 1.0}),
}


@dataclass(frozen=True)
class Truth:
    """What is drawn from. All spreads are of ln FVU."""

    arms: dict[str, float]
    """Name -> its FVU at L0 16, over seeds and documents without end."""
    l0s: tuple[float, ...] = (8.0, 16.0, 32.0, 64.0)
    n_seeds: int = 3
    n_documents: int = 50
    slope: float = -0.6
    level_noise: float = 0.03
    """Of each run by itself."""
    seed_noise: float = 0.0
    """Of each seed of an arm, alike at all levels."""
    shared_noise: float = 0.0
    """Of each seed, alike in all arms and levels."""
    document_noise: float = 0.2
    """Of each document, alike for all runs."""
    arm_document_noise: float = 0.05
    """Of each document in each arm."""
    run_document_noise: float = 0.1
    """Of each document in each run."""
    length_noise: float = 0.0
    """Of the lengths of documents, in ln, beside being spread evenly between 100 and 900 tokens."""
    l0_noise: float = 0.0
    """Of the L0 of each run, in ln."""
    level_factors: tuple[float, ...] = field(default=())
    """What `level_noise` is multiplied with at each level."""

    def fvu(self, arm: str, l0: float) -> float:
        """The truth."""
        return self.arms[arm] * (l0 / 16) ** self.slope


def draw(truth: Truth, generator: np.random.Generator) -> tuple[pd.DataFrame, DocumentSums | None]:
    """One sweep."""
    names, levels = list(truth.arms), np.array(truth.l0s)
    shape = (len(names), len(levels), truth.n_seeds)
    normal = generator.normal
    factors = np.array(truth.level_factors or np.ones(len(levels)))[:, None]
    l0 = levels[:, None] * np.exp(normal(0, truth.l0_noise, shape))
    mean = np.log([truth.arms[name] for name in names])[:, None, None] + truth.slope * np.log(l0 / 16)
    mean = mean + factors * normal(0, truth.level_noise, shape) + normal(0, truth.seed_noise, (shape[0], 1, shape[2]))
    mean = np.exp(mean + normal(0, truth.shared_noise, (1, 1, shape[2])))
    index = pd.MultiIndex.from_product([names, truth.l0s, range(truth.n_seeds)], names=["architecture", "sparsity_value", "seed"])
    table = index.to_frame(index=False).assign(status="finished", sparsity_parameter="k", l0=l0.ravel(), comparison_hash="c")
    table["run_id"] = [f"run-{number}" for number in range(len(table))]
    table["setting_hash"] = [f"{row.architecture}-{row.sparsity_value:g}" for row in table.itertuples()]
    table.attrs["metrics"] = {"fvu": {"name": "fvu", "label": "FVU", "unit": "", "direction": "min"}}
    if not truth.n_documents:
        return table.assign(fvu=mean.ravel()), None
    n = truth.n_documents
    n_tokens = generator.integers(100, 900, n).astype(float)
    n_tokens = np.ceil(n_tokens * np.exp(normal(0, truth.length_noise, n))) if truth.length_noise else n_tokens
    variance = n_tokens * np.exp(normal(0, 0.3, n))
    noise = normal(0, truth.document_noise, n) + normal(0, truth.arm_document_noise, (shape[0], 1, 1, n))
    noise = noise + normal(0, truth.run_document_noise, (*shape, n))
    total = truth.document_noise**2 + truth.arm_document_noise**2 + truth.run_document_noise**2
    error = (mean[..., None] * variance * np.exp(noise - total / 2)).reshape(-1, n)
    active = l0.reshape(-1, 1) * n_tokens
    sums = {
        "n_tokens": np.tile(n_tokens, (len(table), 1)),
        "variance": np.tile(variance, (len(table), 1)),
        "error": error,
        "active": active,
    }
    documents = DocumentSums(tuple(table["run_id"]), np.arange(n), n_tokens, sums, RATIOS)
    return table.assign(fvu=error.sum(axis=1) / variance.sum()), documents
