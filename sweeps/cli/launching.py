"""Commands that launch a sweep, or say what a launch would do."""

import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from sae_core.errors import ConfigError
from sweeps.cli.app import Answer, CacheLimit, CpusPerTrial, Definition, GpusPerTrial, Results, Settings, command

if TYPE_CHECKING:
    from sweeps.execution.launcher import LaunchResult

Address = Annotated[str | None, typer.Option(metavar="ADDR", help="Of a running Ray cluster. Default: start Ray here.")]
Executor = Annotated[Literal["ray", "inline"], typer.Option(help="ray, or inline: one thing after another in this process, for debuggers.")]
ShipCode = Annotated[bool, typer.Option("--ship-code", help="Run this code, with plugins, on the nodes of --address.")]
StallSeconds = Annotated[
    float,
    typer.Option(metavar="S", min=0, help="End and repeat a process that completes no step, or is stopped, for S seconds. 0: never."),
]


@command()
def run(
    definition: Definition,
    settings: Settings = None,
    results: Results = Path("results"),
    address: Address = None,
    cpus_per_trial: CpusPerTrial = 1,
    gpus_per_trial: GpusPerTrial = 0.0,
    kernels: Annotated[
        Literal["fast", "triton", "reference"],
        typer.Option(help="Sparse kernels. fast: compiled on CPUs, PyTorch on GPUs; triton: Triton on GPUs; reference: PyTorch."),
    ] = "fast",
    reference_kernels: Annotated[bool, typer.Option("--reference-kernels", hidden=True)] = False,
    max_hours: Annotated[float | None, typer.Option(metavar="H", help="Stop cleanly after this time; the same command resumes.")] = None,
    max_tokens: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Stop cleanly after this many training tokens of all runs together.")
    ] = None,
    executor: Executor = "ray",
    cache_limit: CacheLimit = None,
    mirror: Annotated[
        str | None, typer.Option(metavar="URL", help="Copy results there as they appear, and start from it. E.g. s3://bucket/prefix.")
    ] = None,
    ship_code: ShipCode = False,
    local_cache: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Directory on each node's own disk, to copy activations to once per node.")
    ] = None,
    stall_seconds: StallSeconds = 600.0,
) -> Answer:
    """Train and evaluate the missing runs of a sweep, then write its table and report."""
    options = dict(locals())
    from sweeps.definition.sweep import Sweep
    from sweeps.execution.launcher import launch
    from sweeps.execution.running_ray import SCHEME

    sweep = Sweep.from_yaml(definition, settings or [])
    if address and address.startswith(SCHEME):
        run_on_cluster(run, sweep.to_yaml(), options)
    of_the_launch = {name: value for name, value in options.items() if name not in ("definition", "settings", "reference_kernels")}
    done = launch(sweep, **of_the_launch | ({"kernels": "reference"} if reference_kernels else {}))
    if done.interrupted:
        raise KeyboardInterrupt
    return _answer(done)


@command()
def plan(
    definition: Definition,
    settings: Settings = None,
    results: Results = Path("results"),
    slots: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Trials at the same time. Default: as many as fit on this machine.")
    ] = None,
    cpus_per_trial: CpusPerTrial = 1,
    gpus_per_trial: GpusPerTrial = 0.0,
    measure: Annotated[
        bool, typer.Option("--measure", help="Predict the time from a few real steps of each setting. Takes about a minute.")
    ] = False,
    cache_limit: CacheLimit = None,
    cluster: Annotated[
        str | None,
        typer.Option(metavar="gpus=N,gpu=NAME,price=P", help="Predict time, cost, disk and network there."),
    ] = None,
) -> Answer:
    """Show what `run` would do: every run, tokens, FLOPs, memory, disk and time. Nothing is started."""
    from sweeps.definition.sweep import Sweep
    from sweeps.execution.cluster import Cluster
    from sweeps.planning.memory import local_slot_bytes
    from sweeps.planning.plan import plan as make_plan
    from sweeps.planning.rented import RentedCluster

    sweep, rented = Sweep.from_yaml(definition, settings or []), None
    if cluster:
        others = {"--slots": slots, "--gpus-per-trial": gpus_per_trial, "--measure": measure}
        if given := [name for name, value in others.items() if value]:
            raise ConfigError(f"`--cluster` says where trials run, but got {', '.join(given)}, too. Leave out one of them.")
        rented = RentedCluster.parse(cluster)
    n_slots = rented.gpus if rented else slots or Cluster(address=None, cpus=cpus_per_trial, gpus=gpus_per_trial).n_slots
    planned = make_plan(
        sweep,
        results,
        n_slots,
        measure=measure,
        device="cuda:0" if gpus_per_trial else "cpu",
        n_gpus=int(gpus_per_trial),
        slot_bytes=rented.slot_bytes if rented else local_slot_bytes(n_slots, gpus_per_trial),
        cache_limit=cache_limit,
        cluster=rented,
    )
    return Answer(planned.data(), planned.lines())


def run_on_cluster(function: Callable[..., Answer], definition: str, options: Mapping[str, Any]) -> NoReturn:
    """Run this very command on the cluster, with the same arguments, and end with its exit code."""
    from sweeps.execution.remote import run_remotely

    if not options["results"].is_absolute():
        path = str(options["results"])
        raise ConfigError(f"`--results` must be an absolute path on the cluster's shared storage, but got {path!r}. Correct it.")
    arguments = [] if "--json" not in sys.argv else ["--json"]
    for name, parameter in inspect.signature(function).parameters.items():
        if name not in ("definition", "settings", "address") and (value := options[name]) != parameter.default:
            arguments += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]

    def say(line: str, is_error: bool) -> None:
        typer.echo(line, err=is_error)

    code = run_remotely(options["address"], function.__name__, definition, arguments, say, ship_code=options["ship_code"])
    raise typer.Exit(code)


def _answer(done: "LaunchResult") -> Answer:
    """The frontier, warnings and where the report is, then what did not work."""
    from analysis.report.findings import warning_lines
    from analysis.report.summary import frontier_lines
    from analysis.table import load_table

    lines, report = [], done.directory / "report" / "report.html"
    if done.finished:
        table = load_table(done.directory)
        lines += [*frontier_lines(table), "", *warning_lines(table), "", f"Report: {report}"]
    if done.pruned:
        lines.append(f"{len(done.pruned)} runs stopped early: {done.tokens_spent:,} of {done.tokens_asked:,} training tokens spent")
    problems = [f"stopped: {done.stopped}. The same command resumes."] if done.stopped else []
    problems += [f"failed: {run_id}: {reason}" for run_id, reason in done.failed.items()]
    problems += [f"missing: {run_id}" for run_id in done.missing]
    problems += [f"not mirrored: {name}: {reason}" for name, reason in done.not_mirrored.items()]
    data = {
        "directory": str(done.directory),
        "report": str(report) if done.finished else None,
        "finished": done.finished,
        "pruned": [{"run_id": run_id, "reason": reason} for run_id, reason in done.pruned.items()],
        "failed": [{"run_id": run_id, "reason": reason} for run_id, reason in done.failed.items()],
        "missing": done.missing,
        "not_mirrored": [{"name": name, "reason": reason} for name, reason in done.not_mirrored.items()],
        "stopped": done.stopped or None,
        "tokens_asked": done.tokens_asked,
        "tokens_spent": done.tokens_spent,
    }
    return Answer(data, lines, problems, 1 if problems else 0)
