"""What splicing the SAE into the language model costs. None for sources without a model. Formulas: docs/formulas.md.

All are ratios or means of sums over the whole evaluation set, never means of per-batch ratios.
"""

from typing import ClassVar

from sae_core.metrics.metric import METRICS, Metric, Observation, Sums
from sae_core.records import MetricSpec


class _CrossEntropy(Metric):
    """Mean next-token cross-entropy, in nats, over non-special positions that have a next token."""

    condition: ClassVar[str]
    needs = "splice"

    def sums(self, seen: Observation) -> Sums:
        return ce_sums(seen)

    def value(self, sums: Sums, n_tokens: int) -> float | None:
        return mean_ce(sums, self.condition)


def ce_sums(seen: Observation) -> Sums:
    """Sums of cross-entropy under every condition, and the number of predicted positions; empty without a language model."""
    chunk = seen.chunk
    conditions = {"clean": chunk.clean, "zero_ablated": chunk.zero_ablated, "mean_ablated": chunk.mean_ablated, "spliced": seen.spliced}
    sums = {name: result.ce.double().sum() for name, result in conditions.items() if result is not None}
    if seen.spliced is not None:
        sums["n_predicted"] = sums["spliced"].new_tensor(seen.spliced.ce.numel())
    return sums


def mean_ce(sums: Sums, condition: str) -> float | None:
    """Mean cross-entropy under a condition; None where it was not measured."""
    if condition not in sums or not float(sums.get("n_predicted", 0)):
        return None
    return float(sums[condition]) / float(sums["n_predicted"])


@METRICS.register("ce_loss_clean")
class CELossClean(_CrossEntropy):
    condition = "clean"
    spec = MetricSpec("ce_loss_clean", "CE loss of the untouched model", "nats per token", "none")


@METRICS.register("ce_loss_spliced")
class CELossSpliced(_CrossEntropy):
    condition = "spliced"
    spec = MetricSpec("ce_loss_spliced", "CE loss with the SAE spliced in", "nats per token", "min")


@METRICS.register("ce_loss_zero_ablated")
class CELossZeroAblated(_CrossEntropy):
    condition = "zero_ablated"
    spec = MetricSpec("ce_loss_zero_ablated", "CE loss with the hook point set to zero", "nats per token", "none")


@METRICS.register("ce_loss_mean_ablated")
class CELossMeanAblated(_CrossEntropy):
    condition = "mean_ablated"
    spec = MetricSpec("ce_loss_mean_ablated", "CE loss with the hook point set to its mean", "nats per token", "none")


@METRICS.register("delta_ce")
class DeltaCE(_CrossEntropy):
    """ce_loss_spliced - ce_loss_clean: Gemma Scope's primary measure."""

    spec = MetricSpec("delta_ce", "CE loss added by the SAE", "nats per token", "min")

    def value(self, sums: Sums, n_tokens: int) -> float | None:
        spliced, clean = mean_ce(sums, "spliced"), mean_ce(sums, "clean")
        return None if spliced is None or clean is None else spliced - clean


@METRICS.register("ce_loss_recovered")
class CELossRecovered(_CrossEntropy):
    """(zero_ablated - spliced) / (zero_ablated - clean), a ratio of means; SAELens' ce_loss_score."""

    spec = MetricSpec("ce_loss_recovered", "CE loss recovered (zero ablation = 0)", "", "max")

    def value(self, sums: Sums, n_tokens: int) -> float | None:
        spliced, clean, zero = (mean_ce(sums, c) for c in ("spliced", "clean", "zero_ablated"))
        if spliced is None or clean is None or zero is None or zero == clean:
            return None
        return (zero - spliced) / (zero - clean)


@METRICS.register("kl")
class KL(Metric):
    """Mean over non-special positions of KL(clean || spliced)."""

    needs = "splice"
    spec = MetricSpec("kl", "KL from the untouched model", "nats per token", "min")

    def sums(self, seen: Observation) -> Sums:
        return {} if seen.spliced is None else {"kl": seen.spliced.kl.double().sum()}

    def value(self, sums: Sums, n_tokens: int) -> float | None:
        return float(sums["kl"]) / n_tokens if "kl" in sums else None
