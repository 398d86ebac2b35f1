"""How well x_hat reconstructs y: the activations, or what a transcoder is to write. Formulas: docs/formulas.md."""

import torch

from sae_core.documents import Ratio
from sae_core.metrics.metric import METRICS, VARIANCE, Observation, RatioOfSums, Terms
from sae_core.records import MetricSpec


@METRICS.register("mse")
class MeanSquaredError(RatioOfSums):
    """Mean over tokens of ||y - x_hat||^2, summed over its width."""

    spec = MetricSpec("mse", "Mean squared error (summed over d_in)", "activation units squared", "min")
    ratio = Ratio({"error": 1}, {"n_tokens": 1})


@METRICS.register("fvu")
class FractionOfVarianceUnexplained(RatioOfSums):
    """sum ||y - x_hat||^2 / sum ||y - mean||^2: all sums over the whole evaluation set, `mean` its vector mean."""

    spec = MetricSpec("fvu", "Fraction of variance unexplained", "", "min")
    ratio = Ratio({"error": 1}, {VARIANCE: 1})


@METRICS.register("explained_variance")
class ExplainedVariance(RatioOfSums):
    """1 - fvu, from the same sums."""

    spec = MetricSpec("explained_variance", "Explained variance", "", "max")
    ratio = Ratio({VARIANCE: 1, "error": -1}, {VARIANCE: 1})


@METRICS.register("cosine")
class Cosine(RatioOfSums):
    """Mean over tokens of cos(y, x_hat); a token with x_hat = 0 counts as 0."""

    spec = MetricSpec("cosine", "Cosine similarity", "", "max")
    ratio = Ratio({"cosine": 1}, {"n_tokens": 1})


@METRICS.register("reconstruction_bias")
class ReconstructionBias(RatioOfSums):
    """sum ||x_hat||^2 / sum y . x_hat: 1 is unbiased, below 1 is shrinkage (Rajamanoharan et al. 2024, arXiv:2404.16014, eq. 10)."""

    spec = MetricSpec("reconstruction_bias", "Relative reconstruction bias", "", "none")
    ratio = Ratio({"squared_norm": 1}, {"dot": 1})


@METRICS.register("fvu_without_latents")
class FvuWithoutLatents(RatioOfSums):
    """FVU of a transcoder's skip connection alone, all latents 0: sum ||y - (x W_skip^T + b_dec)||^2 / sum ||y - mean||^2.

    What its latents add is the difference to `fvu` (Paulo et al. 2025, arXiv:2501.18823, train both together). Others have no value.
    """

    needs = "without_latents"
    spec = MetricSpec("fvu_without_latents", "FVU of the skip connection alone", "", "none")
    ratio = Ratio({"skip_error": 1}, {VARIANCE: 1})

    def terms(self, seen: Observation) -> Terms:
        if seen.without_latents is None:
            return {}
        error = seen.chunk.y_double - seen.without_latents.double()
        return {"skip_error": torch.linalg.vecdot(error, error)}
