"""How well latents are the features that the activations were made of. Formulas and where they come from: docs/formulas.md.

For sources that know their features. As SAELens' synthetic evaluation computes them, so
that numbers can be compared with SynthSAEBench (Chanin & Garriga-Alonso 2026, arXiv:2602.14687). |cos| is between a latent's decoder row
and a feature's direction.
"""

from abc import abstractmethod
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from sae_core.documents import Ratio
from sae_core.metrics.metric import METRICS, Metric, Observation, RatioOfSums, Sums
from sae_core.records import MetricSpec


class _OfDecoder(Metric):
    """A metric of the decoder alone: measured on the first chunk."""

    needs = "ground_truth"

    def sums(self, seen: Observation) -> Sums:
        if seen.feature_cosines is None or seen.index > 0:
            return {}
        return {"value": self.of(seen.feature_cosines), "times_measured": torch.ones((), dtype=torch.float64)}

    def value(self, sums: Sums, n_tokens: int) -> float:
        return float(sums["value"] / sums["times_measured"])

    @abstractmethod
    def of(self, cosines: Float[Tensor, "d_sae F"]) -> Float[Tensor, ""]:
        """The metric from |cos| of every latent and feature; float64, on the CPU."""


@METRICS.register("mcc")
class MeanCorrelationCoefficient(_OfDecoder):
    """Mean |cos| over the pairs of the best one-to-one assignment of latents to features; min(d_sae, F) pairs."""

    spec = MetricSpec("mcc", "MCC of latents and true features", "", "max")

    def of(self, cosines: Float[Tensor, "d_sae F"]) -> Float[Tensor, ""]:
        from scipy.optimize import linear_sum_assignment  # heavy, and only sources with known features need it

        scores = cosines.double().cpu()
        latents, features = linear_sum_assignment(scores.numpy(), maximize=True)
        return scores[latents, features].mean()


@METRICS.register("uniqueness")
class Uniqueness(_OfDecoder):
    """Number of features that are the most similar one of some latent, over d_sae: 1 where no two latents share a feature."""

    spec = MetricSpec("uniqueness", "Uniqueness (different features found / latents)", "", "max")

    def of(self, cosines: Float[Tensor, "d_sae F"]) -> Float[Tensor, ""]:
        return torch.tensor(cosines.argmax(dim=1).unique().numel() / cosines.shape[0], dtype=torch.float64)


class _Detection(Metric):
    """Mean over latents of how well "the latent is active" says that its most similar feature is; 0 for a latent that never is right."""

    needs = "ground_truth"
    wrong: ClassVar[tuple[str, ...]]
    """Which mistakes count: a latent has true_positives / (true_positives + mean of these)."""

    def sums(self, seen: Observation) -> Sums:
        if seen.feature_cosines is None or seen.chunk.ground_truth is None:
            return {}
        present, nearest = seen.chunk.ground_truth.active, seen.feature_cosines.argmax(dim=1)
        latents, tokens = seen.active.indices, seen.active.tokens
        right = torch.bincount(latents[present[tokens, nearest[latents]]], minlength=nearest.numel()).double()
        times_present = present.double().sum(dim=0)[nearest]
        return {"true_positives": right, "false_positives": seen.times_active - right, "false_negatives": times_present - right}

    def value(self, sums: Sums, n_tokens: int) -> float:
        right = sums["true_positives"]
        # Where the total is below 1, nothing is right.
        total = right + torch.stack([sums[name] for name in self.wrong]).mean(dim=0)
        return float((right / total.clamp_min(1)).mean())


@METRICS.register("feature_precision")
class FeaturePrecision(_Detection):
    """Of the tokens a latent is active on: the fraction that its feature is."""

    spec = MetricSpec("feature_precision", "Precision of latents as detectors of features", "", "max")
    wrong = ("false_positives",)


@METRICS.register("feature_recall")
class FeatureRecall(_Detection):
    """Of the tokens a feature is active on: the fraction that its latent is."""

    spec = MetricSpec("feature_recall", "Recall of latents as detectors of features", "", "max")
    wrong = ("false_negatives",)


@METRICS.register("feature_f1")
class FeatureF1(_Detection):
    """Harmonic mean of a latent's precision and recall, before the mean over latents."""

    spec = MetricSpec("feature_f1", "F1 of latents as detectors of features", "", "max")
    wrong = ("false_positives", "false_negatives")


@METRICS.register("true_l0")
class TrueL0(RatioOfSums):
    """Mean over tokens of the number of active features: the L0 of an SAE that has found them all."""

    needs = "ground_truth"
    spec = MetricSpec("true_l0", "Active features per token", "features", "none")
    ratio = Ratio({"features": 1}, {"n_tokens": 1})
