"""What splicing the SAE into the language model costs. None for sources without a model. Formulas: docs/formulas.md.

All are ratios or means of sums over the whole evaluation set, never means of per-batch ratios.
"""

from sae_core.metrics.metric import METRICS, Metric, Observation, Sums
from sae_core.records import MetricSpec


class _CrossEntropy(Metric):
    """From the mean next-token cross-entropy, in nats, over non-special positions that have a next token."""

    needs = "splice"

    def sums(self, seen: Observation) -> Sums:
        if seen.spliced is None:
            return {}
        chunk = seen.chunk
        results = {"clean": chunk.clean, "zero_ablated": chunk.zero_ablated, "mean_ablated": chunk.mean_ablated, "spliced": seen.spliced}
        sums = {name: result.ce.double().sum() for name, result in results.items() if result is not None}
        return sums | {"n_predicted": sums["spliced"].new_tensor(seen.spliced.ce.numel())}

    def value(self, sums: Sums, n_tokens: int) -> float | None:
        n_predicted = float(sums["n_predicted"])
        return self.of({name: float(total) / n_predicted for name, total in sums.items()}) if n_predicted else None

    def of(self, ce: dict[str, float]) -> float | None:
        """The metric from the mean cross-entropy of each condition: clean, spliced, zero_ablated, mean_ablated. Here that in its name."""
        return ce[self.spec.name.removeprefix("ce_loss_")]


@METRICS.register("ce_loss_clean")
class CELossClean(_CrossEntropy):
    spec = MetricSpec("ce_loss_clean", "CE loss of the untouched model", "nats per token", "none")


@METRICS.register("ce_loss_spliced")
class CELossSpliced(_CrossEntropy):
    spec = MetricSpec("ce_loss_spliced", "CE loss with the SAE spliced in", "nats per token", "min")


@METRICS.register("ce_loss_zero_ablated")
class CELossZeroAblated(_CrossEntropy):
    spec = MetricSpec("ce_loss_zero_ablated", "CE loss with the hook point set to zero", "nats per token", "none")


@METRICS.register("ce_loss_mean_ablated")
class CELossMeanAblated(_CrossEntropy):
    spec = MetricSpec("ce_loss_mean_ablated", "CE loss with the hook point set to its mean", "nats per token", "none")


@METRICS.register("delta_ce")
class DeltaCE(_CrossEntropy):
    """ce_loss_spliced - ce_loss_clean: Gemma Scope's primary measure."""

    spec = MetricSpec("delta_ce", "CE loss added by the SAE", "nats per token", "min")

    def of(self, ce: dict[str, float]) -> float:
        return ce["spliced"] - ce["clean"]


@METRICS.register("ce_loss_recovered")
class CELossRecovered(_CrossEntropy):
    """(zero_ablated - spliced) / (zero_ablated - clean), a ratio of means; SAELens' ce_loss_score."""

    spec = MetricSpec("ce_loss_recovered", "CE loss recovered (zero ablation = 0)", "", "max")

    def of(self, ce: dict[str, float]) -> float | None:
        lost = ce["zero_ablated"] - ce["clean"]
        return (ce["zero_ablated"] - ce["spliced"]) / lost if lost else None


@METRICS.register("kl")
class KL(Metric):
    """Mean over non-special positions of KL(clean || spliced)."""

    needs = "splice"
    spec = MetricSpec("kl", "KL from the untouched model", "nats per token", "min")

    def sums(self, seen: Observation) -> Sums:
        return {} if seen.spliced is None else {"kl": seen.spliced.kl.double().sum()}
