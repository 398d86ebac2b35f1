"""What splicing the SAE into the language model costs. None for sources without a model. Formulas: docs/formulas.md.

All are ratios or means of sums over the whole evaluation set, never means of per-batch ratios. Cross-entropies are of the next token, in
nats, over non-special positions that have one.
"""

from sae_core.documents import Ratio
from sae_core.metrics.metric import METRICS, RatioOfSums
from sae_core.records import MetricSpec


@METRICS.register("ce_loss_clean")
class CELossClean(RatioOfSums):
    spec = MetricSpec("ce_loss_clean", "CE loss of the untouched model", "nats per token", "none")
    needs = "splice"
    ratio = Ratio({"clean": 1}, {"n_predicted": 1})


@METRICS.register("ce_loss_spliced")
class CELossSpliced(RatioOfSums):
    spec = MetricSpec("ce_loss_spliced", "CE loss with the SAE spliced in", "nats per token", "min")
    needs = "splice"
    ratio = Ratio({"spliced": 1}, {"n_predicted": 1})


@METRICS.register("ce_loss_zero_ablated")
class CELossZeroAblated(RatioOfSums):
    spec = MetricSpec("ce_loss_zero_ablated", "CE loss with the hook point set to zero", "nats per token", "none")
    needs = "splice"
    ratio = Ratio({"zero_ablated": 1}, {"n_predicted": 1})


@METRICS.register("ce_loss_mean_ablated")
class CELossMeanAblated(RatioOfSums):
    spec = MetricSpec("ce_loss_mean_ablated", "CE loss with the hook point set to its mean", "nats per token", "none")
    needs = "splice"
    ratio = Ratio({"mean_ablated": 1}, {"n_predicted": 1})


@METRICS.register("delta_ce")
class DeltaCE(RatioOfSums):
    """ce_loss_spliced - ce_loss_clean: Gemma Scope's primary measure."""

    spec = MetricSpec("delta_ce", "CE loss added by the SAE", "nats per token", "min")
    needs = "splice"
    ratio = Ratio({"spliced": 1, "clean": -1}, {"n_predicted": 1})


@METRICS.register("ce_loss_recovered")
class CELossRecovered(RatioOfSums):
    """(zero_ablated - spliced) / (zero_ablated - clean), a ratio of means; SAELens' ce_loss_score."""

    spec = MetricSpec("ce_loss_recovered", "CE loss recovered (zero ablation = 0)", "", "max")
    needs = "splice"
    ratio = Ratio({"zero_ablated": 1, "spliced": -1}, {"zero_ablated": 1, "clean": -1})


@METRICS.register("kl")
class KL(RatioOfSums):
    """Mean over non-special positions of KL(clean || spliced)."""

    spec = MetricSpec("kl", "KL from the untouched model", "nats per token", "min")
    needs = "splice"
    ratio = Ratio({"kl": 1}, {"n_tokens": 1})
