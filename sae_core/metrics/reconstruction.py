"""How well x_hat reconstructs x. Formulas: docs/formulas.md."""

import torch

from sae_core.metrics.metric import METRICS, Metric, Observation, Sums
from sae_core.records import MetricSpec


@METRICS.register("mse")
class MeanSquaredError(Metric):
    """Mean over tokens of ||x - x_hat||^2, summed over d_in."""

    spec = MetricSpec("mse", "Mean squared error (summed over d_in)", "activation units squared", "min")

    def sums(self, seen: Observation) -> Sums:
        return {"error": seen.squared_error.sum()}


@METRICS.register("fvu")
class FractionOfVarianceUnexplained(Metric):
    """sum ||x - x_hat||^2 / sum ||x - mean||^2: all sums over the whole evaluation set, `mean` its vector mean."""

    spec = MetricSpec("fvu", "Fraction of variance unexplained", "", "min")

    def sums(self, seen: Observation) -> Sums:
        chunk = seen.chunk
        return {"error": seen.squared_error.sum(), "squared_norm": chunk.squared_norm.sum(), "x": chunk.x_sum}

    def value(self, sums: Sums, n_tokens: int) -> float | None:
        variance = float(sums["squared_norm"] - sums["x"].pow(2).sum() / n_tokens)
        # Constant activations have no variance, but rounding leaves a little of either sign.
        return float(sums["error"]) / variance if variance > 1e-12 * float(sums["squared_norm"]) else None


@METRICS.register("explained_variance")
class ExplainedVariance(FractionOfVarianceUnexplained):
    """1 - fvu, from the same sums."""

    spec = MetricSpec("explained_variance", "Explained variance", "", "max")

    def value(self, sums: Sums, n_tokens: int) -> float | None:
        fvu = super().value(sums, n_tokens)
        return None if fvu is None else 1 - fvu


@METRICS.register("cosine")
class Cosine(Metric):
    """Mean over tokens of cos(x, x_hat); a token with x_hat = 0 counts as 0."""

    spec = MetricSpec("cosine", "Cosine similarity", "", "max")

    def sums(self, seen: Observation) -> Sums:
        norms = (seen.chunk.squared_norm * seen.squared_norm).sqrt()
        return {"cosine": (seen.dot / norms.clamp_min(torch.finfo(norms.dtype).tiny)).sum()}


@METRICS.register("reconstruction_bias")
class ReconstructionBias(Metric):
    """sum ||x_hat||^2 / sum x . x_hat: 1 is unbiased, below 1 is shrinkage (Rajamanoharan et al. 2024, arXiv:2404.16014, eq. 10)."""

    spec = MetricSpec("reconstruction_bias", "Relative reconstruction bias", "", "none")

    def sums(self, seen: Observation) -> Sums:
        return {"squared_norm": seen.squared_norm.sum(), "dot": seen.dot.sum()}

    def value(self, sums: Sums, n_tokens: int) -> float | None:
        dot = float(sums["dot"])
        return float(sums["squared_norm"]) / dot if dot != 0 else None
