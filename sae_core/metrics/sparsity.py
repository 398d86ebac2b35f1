"""How sparse the latents are, in inference form. Formulas: docs/formulas.md."""

from sae_core.documents import Ratio
from sae_core.metrics.metric import METRICS, Metric, Observation, RatioOfSums, Sums
from sae_core.records import MetricSpec


@METRICS.register("l0")
class L0(RatioOfSums):
    """Mean over tokens of the number of latents that are not 0."""

    spec = MetricSpec("l0", "L0 (active latents per token)", "latents", "min")
    ratio = Ratio({"active": 1}, {"n_tokens": 1})


@METRICS.register("dead_fraction")
class DeadFraction(Metric):
    """Fraction of latents active on none of the `eval_tokens` held-out tokens. It falls as more tokens are looked at."""

    spec = MetricSpec("dead_fraction", "Dead latents (never active on the held-out tokens)", "", "min")

    def sums(self, seen: Observation) -> Sums:
        return {"times_active": seen.times_active}

    def value(self, sums: Sums, n_tokens: int) -> float:
        return float((sums["times_active"] == 0).double().mean())
