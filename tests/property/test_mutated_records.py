"""Records and sweep.json with anything in them: `load_table` gives a table, or one message.

They are written without their checksum, as earlier versions wrote them: with one, whatever is changed is noticed at once.
"""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_results import failed, metrics_at, record_of, target_record, write_sweep
from hypothesis import HealthCheck, given, settings
from mutations import mutated

from analysis.table import load_table, metric_specs, write_table
from sae_core.errors import ConfigError

pytestmark = pytest.mark.slow

RUN = "gated-target16-lr0.001-0"


def content(file: Path) -> dict[str, Any]:
    """What a JSON file holds, without its checksum."""
    read = json.loads(file.read_text())
    return {key: value for key, value in read.items() if key != "checksum"}


@pytest.fixture(autouse=True, scope="module")
def quiet() -> Iterator[None]:
    """Without a line per example about what is damaged."""
    logger = logging.getLogger("analysis.results")
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(logging.NOTSET)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep to be broken: its files are put back before every example."""
    records = [target_record("gated", 16, metrics_at(16, 0.1, 0.2), lr=1e-3), record_of("topk", 8, metrics_at(8, 0.2, 0.3), seed=1)]
    directory = tmp_path_factory.mktemp("results") / "demo"
    launches = [{"definition": "definitions/1.yaml", "started_at": "2026-05-01T12:00:00Z", "ended_at": None}]
    stages = [{"stage": "train", "seconds": 12.0, "launch": 0}]
    return write_sweep(directory, [*records, failed("topk", 4)], [("topk", 16, 0)], stages=stages, launches=launches, hardware="2 cores")


ONE = target_record("gated", 16, metrics_at(16, 0.1, 0.2), lr=1e-3)
RECORD: dict[str, Any] = json.loads(json.dumps({name: getattr(ONE, name) for name in ONE.__dataclass_fields__}))
PLANNED = {name: RECORD[name] for name in ("run_id", "architecture", "sparsity_parameter", "sparsity_value", "seed", "config")}
SWEEP = {
    "name": "demo",
    "runs": [PLANNED, {**PLANNED, "run_id": "other"}],
    "stages": [{"stage": "train", "seconds": 12.0, "launch": 0}],
    "launches": [{"definition": "definitions/1.yaml", "started_at": "2026-05-01T12:00:00Z", "ended_at": None}],
    "hardware": "2 cores",
}


def check(sweep: Path) -> None:
    """The two things that may come of it."""
    try:
        table = load_table(sweep)
        write_table(table, sweep)
        metric_specs(sweep)
    except ConfigError as error:
        message = str(error)
        assert len(message) < 2_000, message
        assert "\n" not in message
        message.encode()
    else:
        # Whatever became of the broken run, the others are there with their numbers.
        others = table.set_index("run_id")
        assert others.loc["topk-8-1", "fvu"] == 0.2
        assert others.loc["topk-4-0", "status"] == "failed"


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(mutated(RECORD))
def test_a_mutated_record(sweep: Path, record: Any) -> None:
    file = sweep / "runs" / RUN / "record.json"
    before = file.read_bytes()
    file.write_text(json.dumps(record))
    try:
        check(sweep)
    finally:
        file.write_bytes(before)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(mutated(SWEEP))
def test_a_mutated_sweep_json(sweep: Path, facts: Any) -> None:
    file = sweep / "sweep.json"
    before = file.read_bytes()
    file.write_text(json.dumps(facts))
    try:
        check(sweep)
    finally:
        file.write_bytes(before)
