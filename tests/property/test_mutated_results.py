"""A sweep's own files, broken: they cost what they held, or end in one ConfigError; in a launch and in a table.

They are written without their checksum, as earlier versions wrote them: with one, whatever is changed is noticed at once.
"""

import copy
import dataclasses
import json
import logging
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import mutated

from analysis.table import load_table, write_table
from sae_core.errors import ConfigError
from sae_core.files import write_json
from sae_core.metrics import METRICS
from sae_core.records import RunRecord, Status
from sweeps.definition.sweep import Sweep
from sweeps.storage.store import Store, record_without_result

pytestmark = pytest.mark.slow


@cache
def sweep() -> Sweep:
    return Sweep(
        name="small",
        activations={"source": "synthetic", "train_tokens": 10_000, "eval_tokens": 1000},
        sae={"d_sae": 64},
        architectures={"topk": {"k": [4, 8]}},
    )


@cache
def facts() -> dict[str, Any]:
    """A valid sweep.json."""
    with tempfile.TemporaryDirectory() as directory:
        store = Store(Path(directory) / "small")
        store.begin(sweep(), sweep().runs())
        store.note_stage("harvest", 1.0)
        return store.facts()


def record(status: Status = "finished") -> RunRecord:
    """Of the first run, which is broken; a failed one is of the second."""
    run = sweep().runs()[status == "failed"]
    if status == "failed":
        return record_without_result(run, status, {"type": "DivergedError", "message": "it did", "traceback": ""}, launch=1)
    specs = [METRICS[name].spec for name in ("l0", "fvu")]
    return RunRecord(status=status, metrics={"l0": 4.0, "fvu": 0.2}, metric_specs=specs, d_in=32, launch=1, **run.identity)


def use(directory: Path) -> None:
    """What `report`, `plan`, `status` and a launch do with a results directory."""
    try:
        table = load_table(directory)
        write_table(table, directory)
    except ConfigError as error:
        message = str(error)
        assert len(message) < 2_000 and "\n" not in message
        message.encode()
    else:
        # Whatever became of the broken file, the other run is there.
        assert table.set_index("run_id").loc[record("failed").run_id, "status"] == "failed"
    store, runs = Store(directory), sweep().runs()
    try:
        states = {status.run_id: status.state for status in store.status()}
        store.check_ours(runs)
        number = store.begin(sweep(), runs)
    except ConfigError as error:
        assert "\n" not in str(error)
        return
    assert set(states.values()) <= {"missing", "finished", "trained", "failed", "pruned"}
    assert number >= 1
    store.note_stage("harvest", 1.0)
    store.add_runs(runs)
    store.end()
    again = Store(directory)
    assert len(again.facts()["launches"]) == number
    assert {run.run_id for run in runs} <= {status.run_id for status in again.status()}


@settings(max_examples=60, deadline=None)
@given(content=st.deferred(lambda: mutated(facts())))
def test_a_mutated_sweep_json(content: Any) -> None:
    with tempfile.TemporaryDirectory() as results:
        store = Store(Path(results) / "small")
        store.write_record(record("failed"))
        store.paths.facts.write_text(json.dumps(content))
        use(store.directory)


@settings(max_examples=60, deadline=None)
@given(content=st.deferred(lambda: mutated(dataclasses.asdict(record()))))
def test_a_mutated_record(content: Any) -> None:
    with tempfile.TemporaryDirectory() as results:
        store = Store(Path(results) / "small")
        store.write_record(record("failed"))
        write_json(store.paths.facts, copy.deepcopy(facts()))
        file = store.paths.run(record().run_id).record
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(content))
        use(store.directory)


@settings(max_examples=40, deadline=None)
@given(name=st.sampled_from(["sweep.json", "record.json", "definition.yaml", "definitions/1.yaml"]), data=st.data())
def test_flipped_and_cut_bytes(name: str, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as results:
        directory = Path(results) / "small"
        store = Store(directory)
        store.begin(sweep(), sweep().runs())
        store.write_record(record("failed"))
        store.write_record(record())
        file = store.paths.run(record().run_id).record if name == "record.json" else directory / name
        content = bytearray(file.read_bytes())
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] ^= data.draw(st.integers(1, 255))
        file.write_bytes(content[: data.draw(st.sampled_from([len(content), place]))])
        use(directory)
        kept = Store(directory).read_record(record().run_id)
        assert kept is None or dataclasses.asdict(kept) == dataclasses.asdict(record())


def test_no_line_is_logged_twice(tmp_path: Path, caplog: Any) -> None:
    store = Store(tmp_path / "small")
    store.begin(sweep(), sweep().runs())
    store.paths.facts.write_text("")
    again = Store(tmp_path / "small")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            again.status()
    assert len(caplog.messages) == 1
