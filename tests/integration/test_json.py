"""Every command's `--json`, compared with docs/commands.md: one object, with the fields and types that are documented."""

import json
import re
import time

import pytest
import typer.main
import yaml
from documents import ROOT
from fake_results import realistic_records, write_sweep
from small_sweep import DEFINITION, DIVERGING
from tiny_model import write_text as write_text_of
from typer.testing import CliRunner

from sae_core.files import write_text
from sweeps.cli import app
from sweeps.definition.sweep import Sweep
from sweeps.execution.progress import SweepProgress
from sweeps.storage.lock import locked
from sweeps.storage.progress_file import GroupProgress
from sweeps.storage.store import Store

TYPES = {str: "string", bool: "boolean", int: "integer", float: "number", dict: "object"}
TOKENS = ["--set", "data.train_tokens=3000", "--set", "data.eval_tokens=1000", "--set", "train.batch_size=256"]
SAME_AS = {"pause": "stop", "resume": "stop"}


def commands():
    group = typer.main.get_command(app)
    for name, command in group.commands.items():
        yield from ([f"{name} {inner}" for inner in command.commands] if hasattr(command, "commands") else [name])


def documented(command):
    """Field -> its types."""
    text = (ROOT / "docs" / "commands.md").read_text()
    section = re.search(rf"^### sae-sweep {SAME_AS.get(command, command)}\n(.*?)(?=^### |\Z)", text, re.DOTALL | re.MULTILINE)
    assert section, f"docs/commands.md must describe `sae-sweep {command} --json`"
    rows = re.findall(r"^\| `([^`]+)` \| ([^|]+) \|", section[1], re.MULTILINE)
    return {"schema": {"integer"}, **{field: set(kinds.split(" or ")) for field, kinds in rows}}


def call(*arguments):
    done = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    return done.exit_code, json.loads(done.stdout)


def seen(value, fields, path=""):
    """(field, type) of everything in an object, down to the fields that are documented."""
    if isinstance(value, dict) and path not in fields:
        for name, inner in value.items():
            yield from seen(inner, fields, f"{path}.{name}".lstrip("."))
    elif isinstance(value, list):
        for inner in value:
            yield from seen(inner, fields, f"{path}[]")
    else:
        yield path, "null" if value is None else TYPES[type(value)]


def check(command, data):
    fields = documented(command)
    found = list(seen(data, fields))
    for field, kind in found:
        assert field in fields, f"{command}: {field!r} is not in docs/commands.md"
        assert kind in fields[field] or (kind == "integer" and "number" in fields[field]), f"{command}: {field} is {kind}"
    missing = {field for field in fields if "[]" not in field} - {field for field, _ in found}
    assert not missing, f"{command}: {missing} are documented, but not there"


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """A sweep with a finished and a failed run, and the call that made it."""
    directory = tmp_path_factory.mktemp("json")
    definition = directory / "small.yaml"
    sections = {**DEFINITION, "architectures": {"topk": {"k": 2}, "standard": DIVERGING}}
    definition.write_text(yaml.safe_dump(sections))
    return definition, directory / "results", call("run", definition, "--results", directory / "results", "--executor", "inline")


@pytest.mark.slow
def test_every_command_prints_what_is_documented(launched, tmp_path, monkeypatch):
    definition, results, (code, ran) = launched
    assert code == 1  # a run has failed
    monkeypatch.chdir(tmp_path)
    sweep, (failed,) = results / "small", ran["failed"]
    two = write_sweep(tmp_path / "two", realistic_records((0, 1))[:16], n_documents=12)
    finished = next(run.name for run in (sweep / "runs").glob("topk-*"))
    text = write_text_of(tmp_path / "text.jsonl")
    arguments = {
        "pretokenize": ["demo", "--to", tmp_path / "tokens", "--set", f"data.dataset={text}", *TOKENS],
        "harvest": [definition, "--results", tmp_path / "harvested", "--executor", "inline"],
        "evaluate": [sweep / "runs" / finished / "sae", "-d", definition, "--results", tmp_path / "published", "--executor", "inline"],
        "plan": [definition, "--results", results],
        "status": [sweep],
        "logs": [sweep, failed["run_id"]],
        "stop": [sweep, failed["run_id"]],
        "pause": [sweep],
        "resume": [sweep],
        "report": [sweep],
        "compare": [two, "--l0", "16"],
        "best": [sweep, "--l0", "2"],
        "export": [sweep, "--run", finished, "--to", tmp_path / "exported"],
        "figures": [sweep, "--out", tmp_path / "figures", "--format", "svg"],
        "features": [sweep, finished, "--top", "2"],
        "list": [],
        "init": ["mine"],
        "cluster": ["slurm"],
        "cache ls": ["--results", results],
        "cache rm": ["--results", results, "--unused"],
        "cache verify": ["--results", results],
    }
    check("run", ran)
    store, progress = Store(sweep), SweepProgress()
    with locked(store.directory), progress:  # a launch, as other terminals see one
        monkeypatch.setattr("sweeps.execution.progress.SECONDS", 0.01)
        progress.group(GroupProgress(1, [failed["run_id"]], 0.5, "here", 10.0, [0.1, 0.2], [2.0, 4.0], 5.0))
        progress.publish(store.paths.progress, 2)
        for command in set(commands()) - {"run", "probe"}:  # probes need a language model: test_features_command.py
            assert command in arguments, f"add a call of `sae-sweep {command}` to this test, and its fields to docs/commands.md"
            code, data = call(*command.split(), *arguments[command])
            assert code == 0, (command, data)
            check(command, data)
            if command == "status":
                assert (data["running"], data["progress"]["groups"][0]["node"]) == (True, "here")
    assert "history" in call("logs", sweep, failed["run_id"])[1]
    assert "DivergedError" in call("logs", sweep, failed["run_id"])[1]["traceback"]


def test_errors_are_objects_too(tmp_path):
    nowhere = str(tmp_path / "nothing")
    for arguments, kind, part in [
        (["status", nowhere], "config", "must hold sweep.json"),
        (["plan", "dmo"], "config", "Did you mean 'demo'?"),
        (["plan", "demo", "--nothing"], "usage", "--nothing"),
        (["nothing"], "usage", "nothing"),
        (["--nothing"], "usage", "--nothing"),
        (["stop"], "usage", "RESULTS"),
    ]:
        code, data = call(*arguments)
        assert (code, data["error"]["exit_code"], data["error"]["type"], data["schema"]) == (2, 2, kind, 1)
        assert part in data["error"]["message"]


def test_only_a_running_launch_is_steered(tmp_path):
    store, sweep = Store(tmp_path / "small"), Sweep(**DEFINITION)
    store.begin(sweep, sweep.runs())
    for command in ("stop", "pause", "resume"):
        code, data = call(command, store.directory)
        assert code == 2 and "a launch must be running to be steered" in data["error"]["message"]
    code, data = call("stop", store.directory, "topk-1")
    assert code == 2 and "run id must be one of" in data["error"]["message"]
    with locked(store.directory):
        assert call("stop", store.directory)[0] == 0
        assert "a launch that stops cannot be steered" in call("pause", store.directory)[1]["error"]["message"]


def test_a_launch_that_was_killed_does_not_run(tmp_path):
    store, sweep = Store(tmp_path / "small"), Sweep(**DEFINITION)
    store.begin(sweep, sweep.runs())
    write_text(store.paths.progress, "{}")
    began = time.monotonic()
    code, data = call("status", store.directory)
    assert (code, data["running"], data["progress"], data["orders"]) == (0, False, None, None)
    assert time.monotonic() - began < 5
