"""Metrics on held-out text: one file per family. See `metric.Metric`."""

from sae_core.metrics.metric import METRICS, Metric, Observation

__all__ = ["METRICS", "Metric", "Observation"]
