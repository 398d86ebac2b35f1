import importlib.metadata
import re
import signal
import subprocess
import sys
import types
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import typer
import yaml
from typer.testing import CliRunner

from sae_core.errors import ConfigError
from sae_core.files import write_json
from sae_core.metrics import METRICS
from sae_core.records import RunRecord
from sweeps.cli import app
from sweeps.definition.sweep import Sweep
from sweeps.execution.failures import LaunchError
from sweeps.storage.store import Store

DEFINITION = {
    "name": "small",
    "activations": {"source": "synthetic", "train_tokens": 10_000, "eval_tokens": 1000},
    "sae": {"d_sae": 64},
    "architectures": {"topk": {"k": [4, 8]}},
}


@dataclass
class Result:
    directory: Path
    finished: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    interrupted: bool = False
    pruned: dict[str, str] = field(default_factory=dict)
    tokens_spent: int = 0
    tokens_asked: int = 0
    stopped: str = ""
    not_mirrored: dict[str, str] = field(default_factory=dict)


@pytest.fixture
def definition(tmp_path):
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(DEFINITION))
    return str(file)


@pytest.fixture
def launched(monkeypatch):
    """Stands in for the Ray launch; `launched.outcome` is what it returns or raises, `launched.calls` what it was given."""
    module = types.ModuleType("sweeps.execution.launcher")
    module.calls = []

    def launch(sweep, **options):
        module.calls.append((sweep, options))
        if isinstance(module.outcome, BaseException):
            raise module.outcome
        return module.outcome

    module.launch = launch
    monkeypatch.setitem(sys.modules, "sweeps.execution.launcher", module)
    return module


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def finished(tmp_path):
    """A results directory with finished runs."""
    sweep = Sweep(**DEFINITION)
    store = Store(tmp_path / "results" / "small")
    store.begin(sweep, sweep.runs())
    for run in sweep.runs():
        k = run.sae.k
        store.write_record(
            RunRecord(
                run_id=run.run_id,
                status="finished",
                config=run.model_dump(mode="json"),
                architecture="topk",
                sparsity_parameter="k",
                sparsity_value=k,
                seed=0,
                d_in=32,
                metrics={**dict.fromkeys(METRICS), "l0": float(k), "fvu": 0.4 / k, "dead_fraction": 0.0},
                metric_specs=[METRICS[name].spec for name in METRICS],
                train_tokens=10_000,
                eval_tokens=1000,
                activations_hash="a",
                eval_hash="b",
            )
        )
    return store


def test_run_passes_on_what_was_asked(definition, launched, tmp_path):
    launched.outcome = Result(tmp_path)
    done = call("run", definition, "--set", "train.lr=1e-3", "--set", "name=mine", "--results", tmp_path / "out", "--cpus-per-trial", 2)
    assert done.exit_code == 0, done.output
    ((sweep, options),) = launched.calls
    assert sweep == Sweep(**{**DEFINITION, "name": "mine", "train": {"lr": 1e-3}})
    expected = {
        "results": tmp_path / "out",
        "executor": "ray",
        "address": None,
        "cpus_per_trial": 2,
        "gpus_per_trial": 0.0,
        "kernels": "fast",
        "ship_code": False,
        "cache_limit": None,
        "mirror": None,
        "local_cache": None,
        "max_hours": None,
        "max_tokens": None,
    }
    assert expected.items() <= options.items()
    assert call("run", definition, "--reference-kernels").exit_code == 0
    assert launched.calls[1][1]["kernels"] == "reference"


@pytest.mark.slow
def test_run_shows_the_frontier_and_where_the_report_is(definition, launched, tmp_path):
    store = finished(tmp_path)
    launched.outcome = Result(store.directory, finished=2)
    done = call("run", definition)
    assert done.exit_code == 0, done.output
    assert "Pareto frontier" in done.stdout
    assert f"Report: {store.paths.report / 'report.html'}" in done.stdout


def test_run_exits_with_1_when_a_run_failed_or_is_missing(definition, launched, tmp_path):
    launched.outcome = Result(tmp_path, failed={"topk-1": "DivergedError: nan"})
    done = call("run", definition)
    assert (done.exit_code, done.stderr) == (1, "failed: topk-1: DivergedError: nan\n")
    launched.outcome = Result(tmp_path, missing=["topk-2"])
    done = call("run", definition)
    assert (done.exit_code, done.stderr) == (1, "missing: topk-2\n")


def test_run_says_what_stopped_it(definition, launched, tmp_path):
    launched.outcome = Result(tmp_path, missing=["topk-2"], stopped="`--max-hours 2` is reached")
    done = call("run", definition, "--max-hours", 2)
    assert (done.exit_code, done.stderr) == (1, "stopped: `--max-hours 2` is reached. The same command resumes.\nmissing: topk-2\n")
    assert launched.calls[0][1]["max_hours"] == 2.0


def test_bad_input_exits_with_2_and_one_message(definition, launched):
    launched.outcome = ConfigError("`x` must be 1, but got x=2. Lower it.")
    done = call("run", definition)
    assert (done.exit_code, done.stdout, done.stderr) == (2, "", "`x` must be 1, but got x=2. Lower it.\n")


def test_a_launch_that_cannot_continue_exits_with_1_and_one_message(definition, launched):
    launched.outcome = LaunchError("Ray must run until a launch ends, but its process raylet died.")
    done = call("run", definition)
    assert (done.exit_code, done.stdout, done.stderr) == (1, "", "Ray must run until a launch ends, but its process raylet died.\n")


def test_a_full_disk_is_one_message(definition, launched):
    launched.outcome = OSError(28, "No space left on device", "/results/x")
    done = call("run", definition)
    assert done.exit_code == 1
    assert done.stderr == (
        "files must be readable and writable, but got [Errno 28] No space left on device: '/results/x'. Free space or correct permissions, "
        "then repeat.\n"
    )


def test_the_traceback_of_what_nobody_thought_of_is_in_a_file(definition, launched, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    launched.outcome = KeyError("odd")
    done = call("run", definition)
    (file,) = tmp_path.glob("sae-sweep-*.txt")
    assert done.exit_code == 1
    message = f"an unexpected error ended the command: KeyError: 'odd'. Its traceback is in {str(file)!r}: please report it. What is"
    assert done.stderr.startswith(message)
    assert len(done.stderr.splitlines()) == 1
    assert "raise module.outcome" in file.read_text()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nothing"))
    done = call("run", definition)
    assert done.stderr.endswith("could not be written: no space for temporary files.\n")


def test_cache_verify(tmp_path):
    write_json(tmp_path / "results" / "demo" / "sweep.json", {"name": "demo"})
    done = call("cache", "verify", "--results", tmp_path / "results")
    assert (done.exit_code, done.stdout) == (0, "1 files read, 0 damaged\n")
    file = tmp_path / "results" / "demo" / "sweep.json"
    file.write_text(file.read_text().replace("demo", "dema"))
    done = call("cache", "verify", "--results", tmp_path / "results")
    assert done.exit_code == 1
    assert done.stdout.splitlines() == [
        f"damaged: {file}: ValueError: its checksum does not match its content. The next launch creates it again.",
        "1 files read, 1 damaged",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_signals_in_the_first_moments(tmp_path, number):
    """Of the program itself: before any command has begun."""
    program = f"""
import os, sweeps.cli
sweeps.cli.app = lambda: os.kill(os.getpid(), {int(number)})
sweeps.cli.main()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "Interrupted. What is finished is kept; the same command resumes.\n")


@pytest.mark.parametrize("ending", [KeyboardInterrupt(), Result(Path("r"), finished=1, missing=["topk-2"], interrupted=True)])
def test_an_interrupted_run_says_how_to_go_on(definition, launched, ending):
    launched.outcome = ending
    done = call("run", definition)
    assert done.exit_code == 130
    assert done.stderr == "Interrupted. What is finished is kept; the same command resumes.\n"


@pytest.mark.parametrize("command", ["run", "plan"])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["train.lrr=1"], "train: unknown key 'lrr'. Did you mean 'lr'?"),
        (["architectures.topk.k=100"], "architectures.topk.k: `k` must satisfy 0 < k <= d_sae, but got k=100 and d_sae=64."),
        (["model.name=demo"], "a definition must have `model` and `data`, or else `activations`, but got ['model', 'activations']."),
        (["lr"], "`--set` must be given as key=value, but got 'lr'."),
    ],
)
def test_bad_settings(definition, monkeypatch, command, settings, message):
    # `launch` begins with the runs: nothing else of it is needed here.
    module = types.ModuleType("sweeps.execution.launcher")
    module.launch = lambda sweep, **options: sweep.runs()
    monkeypatch.setitem(sys.modules, "sweeps.execution.launcher", module)
    done = call(command, definition, *[part for setting in settings for part in ("--set", setting)])
    assert done.exit_code == 2
    assert message in done.stderr
    assert "Traceback" not in done.output


@pytest.mark.parametrize("arguments", [[], ["--cpus-per-trial", "0"], ["--gpus-per-trial", "-1"], ["--nothing"]])
def test_bad_options(launched, arguments):
    done = call("run", *(["demo", *arguments] if arguments else []))
    assert done.exit_code == 2
    assert launched.calls == []


def test_an_unknown_definition():
    done = call("plan", "dmo")
    assert done.exit_code == 2
    assert "but got 'dmo'. Did you mean 'demo'?" in done.stderr


def test_plan(definition, tmp_path):
    done = call("plan", definition, "--results", tmp_path / "results", "--slots", 3)
    assert done.exit_code == 0, done.output
    assert "small: 2 runs, 2 to train" in done.stdout
    assert "on 3 slots" in done.stdout
    assert not (tmp_path / "results").exists()


def test_plan_for_a_cluster_that_is_not_at_hand(definition, tmp_path):
    done = call("plan", definition, "--results", tmp_path / "results", "--cluster", "gpus=8,gpu=a100,price=2")
    assert done.exit_code == 0, done.output
    assert "cluster     8 x a100" in done.stdout
    done = call("plan", definition, "--cluster", "gpus=8,gpu=a100", "--slots", 3, "--measure")
    assert (done.exit_code, done.stderr) == (
        2,
        "`--cluster` says where trials run, but got --slots, --measure, too. Leave out one of them.\n",
    )


def test_plan_of_a_search(tmp_path):
    file = tmp_path / "search.yaml"
    file.write_text(yaml.safe_dump({**DEFINITION, "train": {"lr": {"low": 1e-3, "high": 1e-2, "log": True}}, "search": {"trials": 5}}))
    done = call("plan", file, "--results", tmp_path / "results")
    assert done.exit_code == 0, done.output
    assert "Search small: 5 trials, 5 to make." in done.stdout
    assert "train.lr" in done.stdout and "0.001 to 0.01 (log)" in done.stdout
    assert not (tmp_path / "results").exists()


def test_run_tells_what_early_stopping_saved_and_it_is_no_error(definition, launched, tmp_path):
    launched.outcome = Result(tmp_path, pruned={"topk-1": "StoppedEarly: dominated"}, tokens_spent=400, tokens_asked=1_000)
    done = call("run", definition)
    assert (done.exit_code, done.stdout) == (0, "1 runs stopped early: 400 of 1,000 training tokens spent\n")


def test_status(tmp_path):
    store = finished(tmp_path)
    first, second = store.records()
    store.paths.run(second).record.unlink()
    done = call("status", store.directory)
    assert done.exit_code == 0
    assert sorted(done.stdout.splitlines()) == sorted(
        [f"{first}  finished", f"{second}  missing   interrupted", "1 finished, 0 trained, 0 pruned, 0 failed, 1 missing"]
    )


def test_status_of_no_sweep(tmp_path):
    done = call("status", tmp_path)
    assert (done.exit_code, f"but got '{tmp_path}'" in done.stderr) == (2, True)


@pytest.mark.slow
def test_report(tmp_path):
    store = finished(tmp_path)
    done = call("report", store.directory)
    assert done.exit_code == 0, done.output
    assert done.stdout == f"Report: {store.paths.report / 'report.html'}\n"
    assert (store.paths.report / "report.html").is_file()
    done = call("report", store.directory, "--out", tmp_path / "elsewhere")
    assert (tmp_path / "elsewhere" / "report.html").is_file()


def test_a_port_is_where_a_report_is_served(tmp_path):
    done = call("report", tmp_path, "--port", 8765)
    assert done.exit_code == 2
    assert "`--port` says where `--serve` serves the report, but got --port 8765 alone." in done.stderr


def test_report_on_several_sweeps_needs_a_place(tmp_path):
    done = call("report", tmp_path, tmp_path)
    assert done.exit_code == 2
    assert "`--out` must be given for several sweeps, but got 2 directories" in done.stderr


@pytest.mark.slow
def test_help_is_quick_and_imports_nothing_heavy():
    program = "import sys, sweeps.cli; print([m for m in ('torch', 'ray', 'pandas', 'matplotlib', 'transformers') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def commands_of(group, *path):
    """Path -> command, also of those in groups."""
    found = {}
    for name, command in group.commands.items():
        found |= commands_of(command, *path, name) if hasattr(command, "commands") else {(*path, name): command}
    return found


COMMANDS = commands_of(typer.main.get_command(app))


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_shows_all_its_options(path):
    done = call(*path, "--help")
    assert done.exit_code == 0, done.output
    options = {option for parameter in COMMANDS[path].params if not getattr(parameter, "hidden", False) for option in parameter.opts}
    assert {option for option in options if option.startswith("-")} <= set(re.findall(r"--?[a-z][a-z0-9-]*", done.stdout))


def test_the_version():
    assert call("--version").output == f"sae-sweep {importlib.metadata.version('sae-sweep')}\n"


def test_list_names_what_a_definition_may_name_plugins_included(tmp_path):
    plugin = tmp_path / "sobol.py"
    plugin.write_text(
        "from sweeps.samplers import SAMPLERS\n@SAMPLERS.register('sobol')\ndef sobol(seed, n_trials):\n    'A Sobol sequence.'"
    )
    listed = call("list", "--plugin", plugin).output
    for name in ("demo", "batchtopk", "language_model", "delta_ce", "tpe", "l0_fvu", "whitening"):
        assert f"\n  {name} " in listed
    assert "  sobol   A Sobol sequence. [sobol.py]\n" in listed
    assert f"  sobol.py  {plugin}" in listed


def test_init_writes_a_definition_that_can_be_planned(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call("init", "mine").exit_code == 0
    assert call("plan", "mine.yaml").output.startswith("Sweep mine: 12 runs, 12 to train.")
    again = call("init", "mine.yaml")
    assert (again.exit_code, again.stderr.count("\n")) == (2, 1)
    assert "must be written to a new file, but got 'mine.yaml'" in again.stderr
