"""Reads results, never trains: records to tables, fronts, plots and reports. Neither torch nor ray is imported here."""

from analysis.best import best
from analysis.drawing import plot
from analysis.estimates import Estimate
from analysis.foreign import read_table
from analysis.pareto import common_window, hypervolume, interpolate_at_l0, pareto_front
from analysis.statistics.comparison import compare
from analysis.table import load_table, metric_specs, variants_as_runs, write_table

__all__ = [
    "Estimate",
    "best",
    "common_window",
    "compare",
    "hypervolume",
    "interpolate_at_l0",
    "load_table",
    "metric_specs",
    "pareto_front",
    "plot",
    "read_table",
    "variants_as_runs",
    "write_table",
]
