"""What was run, as the report says it."""

from pathlib import Path

from fake_results import metrics_at, record_of, write_sweep

from analysis.report.facts import facts_of, to_reproduce
from analysis.results import read_sweeps
from analysis.table import table_of


def test_the_commit_of_evaluation_is_named_where_it_is_another(tmp_path: Path) -> None:
    own = {"torch": "2.9.0", "commit": "aaaa"}
    for commit, expected in (("aaaa", None), ("bbbb", "commit bbbb")):
        record = record_of("topk", 8, metrics_at(8, 0.2, 0.1), versions=own, eval_versions=own | {"commit": commit})
        sweeps = read_sweeps(write_sweep(tmp_path / commit / "demo", [record]))
        facts = dict(facts_of(sweeps, table_of(sweeps)))
        assert "commit aaaa" in facts["Software"]
        assert facts.get("Evaluated with other software") == expected
        assert ("# evaluated with commit bbbb" in to_reproduce(sweeps, table_of(sweeps))) is (expected is not None)
