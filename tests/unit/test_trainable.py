"""A trial, called as Ray would call it; tests/ray has the real thing."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from small_runs import run_of

from sae_core import trainable
from sae_core.activations import shards
from sae_core.activations.synthetic import SyntheticSource
from sae_core.config.run import RunConfig
from sae_core.records import RunRecord
from sae_core.sparse.kernels.choice import kernels_used, using_kernels
from sae_core.trainable import TrialConfig, run_trial


@pytest.fixture
def reports() -> list[dict[str, Any]]:
    """What a trial reported."""
    return []


def trial(tmp_path: Path, *runs: RunConfig, **fields: Any) -> TrialConfig:
    """A trial's config, as Tune hands it over: plain data that survives JSON."""
    cache = tmp_path / "cache"
    source = SyntheticSource(runs[0].activations)
    shards.harvest(source, cache)
    shards.finish(source, cache)
    raw = [run.model_dump(mode="json") for run in runs]
    config = TrialConfig(runs=raw, cache=str(cache), directory=str(tmp_path / "runs"), **fields)
    return TrialConfig(**json.loads(json.dumps(asdict(config))))


def record(tmp_path: Path, run: RunConfig) -> RunRecord:
    return RunRecord.read(tmp_path / "runs" / run.run_id / "record.json")


@pytest.mark.slow
def test_every_run_of_the_group_gets_a_record(tmp_path: Path, reports: list[dict[str, Any]]) -> None:
    good, bad = run_of("topk"), run_of("standard", lr=1e30, lr_warm_up=0.0)
    run_trial(trial(tmp_path, good, bad, metadata={"hook_name": "x"}, facts={"activations_hash": "abc"}), reports.append, "cpu")
    assert record(tmp_path, good).status == "trained" and record(tmp_path, bad).status == "failed"
    assert record(tmp_path, good).activations_hash == "abc"
    assert record(tmp_path, good).finished_at is not None
    cfg = json.loads((tmp_path / "runs" / good.run_id / "sae" / "cfg.json").read_text())
    assert cfg["metadata"]["hook_name"] == "x"
    assert reports[-1] == {"progress": {good.run_id: 1.0, bad.run_id: 1.0}}


def test_runs_with_a_record_are_left_alone(tmp_path: Path, reports: list[dict[str, Any]]) -> None:
    run = run_of("topk")
    config = trial(tmp_path, run)
    run_trial(config, reports.append, "cpu")
    path = tmp_path / "runs" / run.run_id / "record.json"
    before = path.stat().st_mtime_ns
    (tmp_path / "cache" / "manifest.json").unlink()  # not even the cache is needed
    run_trial(config, reports.append, "cpu")
    assert path.stat().st_mtime_ns == before
    assert reports[-1] == {"progress": {run.run_id: 1.0}}


def test_progress_and_histories_are_told_on_the_way(tmp_path: Path, reports: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainable, "REPORT_SECONDS", 0.0)
    run = run_of("topk", n_steps=4)
    seen: list[int] = []
    history = tmp_path / "runs" / run.run_id / "history.jsonl"

    def report(told: dict[str, Any]) -> None:
        reports.append(told)
        seen.append(len(history.read_text().splitlines()))

    run_trial(trial(tmp_path, run), report, "cpu")
    assert [told["progress"][run.run_id] for told in reports] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert seen == [1, 2, 3, 4, 4]


def test_a_stopped_trial_goes_on_from_its_checkpoint(
    tmp_path: Path, reports: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainable, "REPORT_SECONDS", 0.0)
    run = run_of("topk", n_steps=6)
    config = trial(tmp_path, run, checkpoint_seconds=0.0)

    def stop(told: dict[str, Any]) -> None:
        if told["progress"][run.run_id] == 0.5:
            raise SystemExit

    with pytest.raises(SystemExit):
        run_trial(config, stop, "cpu")
    run_trial(config, reports.append, "cpu")
    assert [told["progress"][run.run_id] for told in reports] == pytest.approx([4 / 6, 5 / 6, 1, 1])
    assert record(tmp_path, run).status == "trained"


def test_the_stream_is_normalised_as_the_runs_ask(tmp_path: Path, reports: list[dict[str, Any]]) -> None:
    run = run_of("topk", normalize_activations="layer_norm")
    run_trial(trial(tmp_path, run), reports.append, "cpu")
    assert record(tmp_path, run).status == "trained"
    cfg = json.loads((tmp_path / "runs" / run.run_id / "sae" / "cfg.json").read_text())
    assert cfg["normalize_activations"] == "layer_norm"


def test_rungs_are_told_once_each_with_the_history_on_disk(tmp_path: Path, reports: list[dict[str, Any]]) -> None:
    run = run_of("topk", n_steps=10)
    history = tmp_path / "runs" / run.run_id / "history.jsonl"
    rows: list[int] = []

    def report(told: dict[str, Any]) -> None:
        reports.append(told)
        rows.append(len(history.read_text().splitlines()))

    run_trial(trial(tmp_path, run, rungs=[0.3, 0.5]), report, "cpu")
    made_by = {**trainable.provenance.node(), "kernels": "fast", "arithmetic": trainable.arithmetic("cpu", autocast="off")}
    at_rungs = [(told["progress"], told["rung"], told["node"]) for told in reports if "rung" in told]
    assert at_rungs == [({run.run_id: rung}, rung, made_by) for rung in (0.3, 0.5)]
    assert rows[:2] == [3, 5]


def test_a_trial_that_is_stopped_writes_no_record(tmp_path: Path, reports: list[dict[str, Any]]) -> None:
    run = run_of("topk", n_steps=10)

    def stop(told: dict[str, Any]) -> None:
        raise SystemExit

    with pytest.raises(SystemExit):
        run_trial(trial(tmp_path, run, rungs=[0.5]), stop, "cpu")
    assert not (tmp_path / "runs" / run.run_id / "record.json").exists()


@pytest.mark.slow
def test_a_trial_with_a_source_evaluates_what_it_trained(tmp_path: Path, reports: list[dict[str, Any]]) -> None:
    runs = [run_of("topk"), run_of("topk", seed=1)]
    config = trial(tmp_path, *runs, source=runs[0].activations.model_dump(mode="json"))
    run_trial(config, reports.append, "cpu")
    records = [record(tmp_path, run) for run in runs]
    assert [one.status for one in records] == ["finished", "finished"]
    assert [one.eval_tokens for one in records] == [512, 512]
    assert all(one.metrics["fvu"] is not None for one in records)
    # A launch that was killed between training and evaluating.
    replace(records[0], status="trained", metrics={}).write(tmp_path / "runs" / runs[0].run_id / "record.json")
    run_trial(config, reports.append, "cpu")
    assert record(tmp_path, runs[0]).metrics == records[0].metrics


@pytest.mark.parametrize("choice", ["fast", "reference"])
@pytest.mark.slow
def test_a_trial_trains_with_the_kernels_asked_for_and_says_so(
    tmp_path: Path, reports: list[dict[str, Any]], choice: Literal["fast", "reference"]
) -> None:
    used: list[str] = []
    run = run_of("topk")
    with using_kernels("fast"):
        run_trial(trial(tmp_path, run, kernels=choice), lambda told: used.append(kernels_used(torch.device("cpu"))), "cpu")
    assert set(used) == {"cpu" if choice == "fast" else "reference"}
    assert record(tmp_path, run).kernels == choice
