"""`sae-sweep evaluate`: published SAEs, measured as a sweep's own."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sweeps.cli.app import Answer, CpusPerTrial, GpusPerTrial, Results, Settings, command
from sweeps.cli.launching import Address, Executor, ShipCode, StallSeconds

if TYPE_CHECKING:
    from sae_core.records import RunRecord
    from sweeps.execution.evaluating import EvaluationResult
    from sweeps.planning.published import Published

_SHOWN = {"l0": "L0", "fvu": "FVU", "delta_ce": "delta CE", "dead_fraction": "dead"}


@command()
def evaluate(
    saes: Annotated[
        list[str], typer.Argument(metavar="DIR...", help="Folders of SAEs, or hub:USER/REPO, also with /FOLDER and @REVISION.")
    ],
    definition: Annotated[str, typer.Option("--definition", "-d", metavar="D", help="A definition, or the name of a ready one.")],
    settings: Settings = None,
    results: Results = Path("results"),
    address: Address = None,
    cpus_per_trial: CpusPerTrial = 1,
    gpus_per_trial: GpusPerTrial = 0.0,
    executor: Executor = "ray",
    ship_code: ShipCode = False,
    stall_seconds: StallSeconds = 600.0,
) -> Answer:
    """Measure published SAEs on the held-out text of a definition, and add them to its table and report."""
    options = dict(locals())
    from sweeps.definition.sweep import Sweep
    from sweeps.execution.evaluating import evaluate as evaluate_published

    sweep = Sweep.from_yaml(definition, settings or [])
    of_the_launch = {name: value for name, value in options.items() if name not in ("saes", "definition", "settings")}
    done = evaluate_published(sweep, saes, **of_the_launch)
    if done.interrupted:
        raise KeyboardInterrupt
    return _answer(done)


def _answer(done: "EvaluationResult") -> Answer:
    report = done.directory / "report" / "report.html"
    problems = [f"stopped: {done.stopped}. The same command resumes."] if done.stopped else []
    problems += [f"missing: {sae.run_id}: {sae.name}" for sae in done.saes if sae.run_id not in done.records]
    data = {
        "directory": str(done.directory),
        "report": str(report) if done.records else None,
        "evaluated": [
            _plain(name, sae, done.records[sae.run_id]) for sae in done.saes if sae.run_id in done.records for name in (sae.name, *sae.same)
        ],
        "missing": [sae.run_id for sae in done.saes if sae.run_id not in done.records],
        "notes": done.notes,
        "stopped": done.stopped or None,
    }
    lines = [_line(sae, done.records[sae.run_id]) for sae in done.saes if sae.run_id in done.records]
    lines += [f"Report: {report}"] if done.records else []
    return Answer(data, lines, problems, 1 if problems else 0)


def _line(sae: "Published", record: "RunRecord") -> str:
    known = {label: value for name, label in _SHOWN.items() if (value := record.metrics.get(name)) is not None}
    numbers = ", ".join(f"{label} {value:.3g}" for label, value in known.items())
    return f"{sae.name}: {sae.run_id}, {numbers}"


def _plain(name: str, sae: "Published", record: "RunRecord") -> dict[str, object]:
    metadata = sae.shared.metadata
    return {
        "name": name,
        "origin": sae.origin,
        "run_id": sae.run_id,
        "architecture": record.architecture,
        "hook_point": metadata.get("hook_name"),
        "hook_out": metadata.get("hook_name_out"),
        "metrics": record.metrics,
    }
