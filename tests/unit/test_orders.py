"""Orders of the tokens are repeats, as seeds are: a point of a search has a run per seed and order, in one trial."""

from pathlib import Path
from typing import Any

import pytest
from small_runs import run_of

from sae_core.activations import shards
from sae_core.activations.synthetic import SyntheticSource
from sae_core.config.run import RunConfig
from sae_core.trainable import TrialConfig, run_trial


def histories(told: list[dict[str, Any]], directory: Path, cache: Path, *runs: RunConfig) -> list[str]:
    """The training curves of a trial's runs."""
    config = TrialConfig(runs=[run.model_dump(mode="json") for run in runs], cache=str(cache), directory=str(directory))
    run_trial(config, told.append, "cpu")
    return [(directory / run.run_id / "history.jsonl").read_text() for run in runs]


@pytest.mark.slow
def test_each_order_of_a_trial_is_trained_as_if_alone(tmp_path: Path) -> None:
    told: list[dict[str, Any]] = []
    first = run_of("topk")
    other = first.model_copy(update={"data_seed": 7})
    source, cache = SyntheticSource(first.activations), tmp_path / "cache"
    shards.harvest(source, cache)
    shards.finish(source, cache)
    together = histories(told, tmp_path / "together", cache, first, other)
    assert together == [*histories(told, tmp_path / "first", cache, first), *histories(told, tmp_path / "other", cache, other)]
    assert together[0] != together[1]
    assert any(report["progress"] == {first.run_id: 1.0, other.run_id: 1.0} for report in told)
