"""Metrics on held-out text: one file per family. See `metric.Metric`."""

from sae_core.documents import Ratio
from sae_core.metrics.metric import METRICS, Metric, Observation, RatioOfSums, Sums, Terms

__all__ = ["METRICS", "Metric", "Observation", "Ratio", "RatioOfSums", "Sums", "Terms"]
