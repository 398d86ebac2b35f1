"""A launch with two seeds leaves the columns of seed stability, and works them out once."""

import pandas as pd
import pytest
from small_sweep import small_sweep

from analysis.table import load_table
from sweeps.execution.launcher import launch
from sweeps.storage.verify import verify


@pytest.mark.slow
def test_two_seeds_are_compared_at_the_end_of_a_launch(tmp_path, monkeypatch):
    monkeypatch.setattr("analysis.report.write_report", lambda *_: None)
    sweep = small_sweep(architectures={"topk": {"k": 2}, "standard": {"l1_coefficient": 0.3}}, seeds=[0, 1])
    assert launch(sweep, results=tmp_path, executor="inline").finished == 4
    table = load_table(tmp_path / "small")
    for column in ("pw_mcc", "recurring_latents", "recurring_explained"):
        assert table[column].notna().all() and list(pd.read_csv(tmp_path / "small" / "table.csv")[column]) == table[column].tolist()
    assert table["pw_mcc"].between(0, 1).all() and table["recurring_latents"].between(0, 1).all()
    # Both seeds of a setting are in one pair, whose mean is theirs.
    assert table.groupby("architecture")["pw_mcc"].nunique().tolist() == [1, 1]
    assert table["decoder_cosine"].between(0, 1).all() and table["decoder_projection"].notna().all()

    before = (tmp_path / "small" / "stability.json").read_bytes()
    monkeypatch.setattr("analysis.stability.match", None)
    launch(sweep, results=tmp_path, executor="inline")
    assert (tmp_path / "small" / "stability.json").read_bytes() == before
    (tmp_path / "small" / "stability.json").write_bytes(before.replace(b"0.", b"1.", 1))
    assert [damage.path.name for damage in verify(tmp_path).files] == ["stability.json"]
