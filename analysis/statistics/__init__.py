"""How sure: intervals, tests and fronts with both. Plain data in `analysis/estimates.py`; what it rests on: docs/statistics.md."""
