"""How well x_hat reconstructs x. Formulas: docs/formulas.md."""

from sae_core.documents import Ratio
from sae_core.metrics.metric import METRICS, VARIANCE, RatioOfSums
from sae_core.records import MetricSpec


@METRICS.register("mse")
class MeanSquaredError(RatioOfSums):
    """Mean over tokens of ||x - x_hat||^2, summed over d_in."""

    spec = MetricSpec("mse", "Mean squared error (summed over d_in)", "activation units squared", "min")
    ratio = Ratio({"error": 1}, {"n_tokens": 1})


@METRICS.register("fvu")
class FractionOfVarianceUnexplained(RatioOfSums):
    """sum ||x - x_hat||^2 / sum ||x - mean||^2: all sums over the whole evaluation set, `mean` its vector mean."""

    spec = MetricSpec("fvu", "Fraction of variance unexplained", "", "min")
    ratio = Ratio({"error": 1}, {VARIANCE: 1})


@METRICS.register("explained_variance")
class ExplainedVariance(RatioOfSums):
    """1 - fvu, from the same sums."""

    spec = MetricSpec("explained_variance", "Explained variance", "", "max")
    ratio = Ratio({VARIANCE: 1, "error": -1}, {VARIANCE: 1})


@METRICS.register("cosine")
class Cosine(RatioOfSums):
    """Mean over tokens of cos(x, x_hat); a token with x_hat = 0 counts as 0."""

    spec = MetricSpec("cosine", "Cosine similarity", "", "max")
    ratio = Ratio({"cosine": 1}, {"n_tokens": 1})


@METRICS.register("reconstruction_bias")
class ReconstructionBias(RatioOfSums):
    """sum ||x_hat||^2 / sum x . x_hat: 1 is unbiased, below 1 is shrinkage (Rajamanoharan et al. 2024, arXiv:2404.16014, eq. 10)."""

    spec = MetricSpec("reconstruction_bias", "Relative reconstruction bias", "", "none")
    ratio = Ratio({"squared_norm": 1}, {"dot": 1})
