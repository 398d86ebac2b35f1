"""Commands that read what is there, or write a file to start from."""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from sae_core.errors import ConfigError, UnknownNameError
from sweeps.cli.app import Answer, SweepDirectory, command

SHOWN_ROWS = 20
"""Rows of a history that `logs` shows; `--json` has all of them."""


@command()
def status(
    results: SweepDirectory,
    follow: Annotated[bool, typer.Option("--watch", help="Show the progress of the launch that runs now, until it ends.")] = False,
) -> Answer:
    """List finished, failed and missing runs, with reasons, and say whether a launch runs now."""
    from sae_core.orders import Orders
    from sae_core.records import STATES
    from sweeps.execution.view import line, lines
    from sweeps.execution.watch import watch
    from sweeps.storage.lock import may_be_held
    from sweeps.storage.progress_file import running_progress
    from sweeps.storage.store import Store

    store = Store(results)
    store.check_is_sweep()
    if follow:
        watch(store.paths.progress)
    # Whoever holds the directory may be a killed launch on another node: the file of a live one changes.
    progress = running_progress(store.paths.progress) if may_be_held(store.directory) else None
    runs, orders = store.status(is_running=progress is not None), Orders.read(store.paths.orders)
    width = max((len(run.run_id) for run in runs), default=0)
    states = [run.state for run in runs]
    counts = {state: states.count(state) for state in STATES}
    shown = [f"{run.run_id:<{width}}  {run.state:<8}  {run.reason}".rstrip() for run in runs]
    shown.append(", ".join(f"{number} {state}" for state, number in counts.items()))
    if progress:
        ordered = {"go": "running", "pause": "paused", "stop": "stopping"}[orders.sweep]
        shown += [f"{ordered}: launch {progress.launch}, {line(progress)}", *lines(progress)]
    data = {
        "directory": str(store.directory),
        "running": progress is not None,
        "orders": orders.sweep if progress else None,
        "progress": dataclasses.asdict(progress) if progress else None,
        "counts": counts,
        "runs": [dataclasses.asdict(run) for run in runs],
    }
    return Answer(data, shown)


@command()
def logs(results: SweepDirectory, run_id: Annotated[str, typer.Argument(help="One of its runs; `sae-sweep status` lists them.")]) -> Answer:
    """Show a run: its state, its last rows of history, its attempts, and the traceback of a failure."""
    from sweeps.execution.view import table
    from sweeps.storage.store import Store

    store = Store(results)
    found = {run.run_id: run for run in store.status()}
    if run_id not in found:
        raise UnknownNameError.of("run id", run_id, found)
    record, history = store.read_record(run_id), store.read_history(run_id)
    data = {
        **dataclasses.asdict(found[run_id]),
        **{name: getattr(record, name, None) for name in ("launch", "attempts", "finished_at", "hardware")},
        "traceback": (record.error or {}).get("traceback") if record else None,
        "history": history,
    }
    head = [
        f"{name}: {data[name]}" for name in ("run_id", "state", "reason", "launch", "attempts", "finished_at", "hardware") if data[name]
    ]
    rows = [f"{len(history)} rows of history, the last:", *table(history[-SHOWN_ROWS:])] if history else ["no history yet"]
    return Answer(data, [*head, "", *rows, *(["", str(data["traceback"]).rstrip()] if data["traceback"] else [])])


@command()
def report(
    results: Annotated[list[Path], typer.Argument(help="Directory of a sweep; several give one report.")],
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Where to write. Default for one sweep: its report/.")] = None,
    serve: Annotated[bool, typer.Option("--serve", help="Serve it to this machine, as records change, until Ctrl-C.")] = False,
    port: Annotated[
        int | None, typer.Option(metavar="N", min=0, max=65535, help="With --serve: where. 0: any that is free. Default: 8765.")
    ] = None,
) -> Answer:
    """Write the report again from the records, for one sweep or several together."""
    from analysis.report import write_report  # and nothing of `sweeps`: a report needs no torch
    from analysis.report.serving import PORT, serve_report

    if port is not None and not serve:
        raise ConfigError(f"`--port` says where `--serve` serves the report, but got --port {port} alone. Add `--serve`.")
    if out is None and len(results) > 1:
        raise ConfigError(f"`--out` must be given for several sweeps, but got {len(results)} directories and no `--out`. Add `--out DIR`.")
    if serve:
        page = serve_report(results, out, PORT if port is None else port, say=lambda line: typer.echo(line, err=True))
    else:
        page = write_report(results, out)
    return Answer({"report": str(page)}, [f"Report: {page}"])


@command("list")
def list_names(
    plugin: Annotated[list[str] | None, typer.Option(metavar="PLUGIN", help="A plugin to import first. Repeatable.")] = None,
) -> Answer:
    """List every name that a definition may use: ready definitions, architectures, sources, metrics, samplers, plots, loggers."""
    from sae_core import plugins
    from sweeps.listing import lines, listing

    plugins.load(plugins.absolute(location, Path.cwd()) for location in plugin or [])
    listed = listing()
    return Answer({"names": [dataclasses.asdict(name) for name in listed]}, lines(listed))


@command()
def init(name: Annotated[str, typer.Argument(help="Name of the sweep; writes NAME.yaml.")] = "my-sweep") -> Answer:
    """Write a definition to start from, with every section explained. It runs as it is."""
    from sweeps.definition.sweep import write_template

    file = Path(f"{name.removesuffix('.yaml')}.yaml")
    write_template(file)
    return Answer({"definition": str(file)}, [f"{file} is written. Next: sae-sweep plan {file}"])
