"""What the columns of our tables hold, for tables that no record comes with: metrics, and which of their values are unusual."""

from sae_core.records import MetricSpec

METRICS = {
    spec.name: spec
    for spec in (
        MetricSpec("l0", "L0 (active latents per token)", "latents", "min"),
        MetricSpec("mse", "Mean squared error (summed over d_in)", "activation units squared", "min"),
        MetricSpec("fvu", "Fraction of variance unexplained", "", "min"),
        MetricSpec("explained_variance", "Explained variance", "", "max"),
        MetricSpec("cosine", "Cosine similarity", "", "max"),
        MetricSpec("reconstruction_bias", "Relative reconstruction bias", "", "none"),
        MetricSpec("dead_fraction", "Dead latents (never active on the held-out tokens)", "", "min"),
        MetricSpec("ce_loss_clean", "CE loss of the untouched model", "nats per token", "none"),
        MetricSpec("ce_loss_spliced", "CE loss with the SAE spliced in", "nats per token", "min"),
        MetricSpec("ce_loss_zero_ablated", "CE loss with the hook point set to zero", "nats per token", "none"),
        MetricSpec("ce_loss_mean_ablated", "CE loss with the hook point set to its mean", "nats per token", "none"),
        MetricSpec("delta_ce", "CE loss added by the SAE", "nats per token", "min"),
        MetricSpec("ce_loss_recovered", "CE loss recovered (zero ablation = 0)", "", "max"),
        MetricSpec("kl", "KL from the untouched model", "nats per token", "min"),
        MetricSpec("mcc", "MCC of latents and true features", "", "max"),
    )
}
"""Our metrics that published tables may have: a copy of what `sae_core.metrics` writes into records, which needs torch to be read."""

_ANY = float("inf")
USUAL = {
    "fvu": (0.0, 1.0),
    "explained_variance": (0.0, 1.0),
    "cosine": (0.0, 1.0),
    "delta_ce": (0.0, _ANY),
    "ce_loss_recovered": (0.0, 1.0),
}
"""Metric -> values that need no second look. Others occur, and are flagged: an SAE worse than the mean, a spliced model better than the
clean one."""
