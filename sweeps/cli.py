"""The command line, `sae-sweep`. Heavy imports are inside the commands, so that `--help` is quick.

Exit codes: 0 all is well, 1 a run failed or is missing, 2 what was asked for is not possible, 130 interrupted.
"""

import gc
import importlib.metadata
import logging
import tempfile
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from sae_core.errors import ConfigError, reason_of
from sweeps.execution import signals
from sweeps.execution.failures import LaunchError
from sweeps.terminal import lost_output, outlast_terminal

if TYPE_CHECKING:
    from sweeps.execution.launcher import LaunchResult

INTERRUPTED = "Interrupted. What is finished is kept; the same command resumes."


class _Commands(TyperGroup):
    """Turns what ends a command into one message and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except ConfigError as error:
            code = _say(str(error), 2)
        except LaunchError as error:
            code = _say(str(error), 1)
        except KeyboardInterrupt:
            signals.was_interrupted()
            code = _say(INTERRUPTED, 130)
        except (typer.Exit, typer.Abort):
            raise
        except OSError as error:
            message = f"files must be readable and writable, but got {reason_of(error)}. Free space or correct permissions, then repeat."
            code = _say(message, 1)
        except Exception as error:
            if hasattr(error, "exit_code"):  # of the command line itself: a wrong argument
                raise
            # Where an interrupt was swallowed half way through an import, anything may be raised later.
            code = _say(INTERRUPTED, 130) if signals.was_interrupted() else _say(_unforeseen(error), 1)
        raise typer.Exit(code)


def _say(message: str, code: int) -> int:
    typer.echo(message, err=True)
    return code


def _unforeseen(error: Exception) -> str:
    """A message for what nobody thought of, and where its traceback is."""
    message = f"an unexpected error ended the command: {reason_of(error)}."
    try:
        with tempfile.NamedTemporaryFile("w", prefix="sae-sweep-", suffix=".txt", delete=False, encoding="utf-8", errors="replace") as file:
            traceback.print_exception(error, file=file)
    except OSError:
        return f"{message} Its traceback could not be written: no space for temporary files."
    return f"{message} Its traceback is in {file.name!r}: please report it. What is finished is kept."


app = typer.Typer(cls=_Commands, no_args_is_help=True, pretty_exceptions_enable=False)
cache_app = typer.Typer(no_args_is_help=True, help="Check the files under a results directory.")
app.add_typer(cache_app, name="cache")

Definition = Annotated[str, typer.Argument(help="A YAML, TOML or JSON file, or the name of a ready definition, e.g. demo.")]
Settings = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a field, e.g. train.lr=1e-3. Repeatable.")]
Results = Annotated[Path, typer.Option("--results", metavar="DIR", help="Directory of all sweeps; this one is DIR/<name>.")]


def _version(requested: bool) -> None:
    if requested:
        typer.echo(f"sae-sweep {importlib.metadata.version('sae-sweep')}")
        raise typer.Exit


@app.callback()
def _sae_sweep(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")] = False,
) -> None:
    """Sweeps of sparse autoencoders: train every architecture and sparsity on one pass over the activations."""


@app.command()
def run(
    definition: Definition,
    settings: Settings = None,
    results: Results = Path("results"),
    address: Annotated[
        str | None, typer.Option(metavar="ADDR", help="Address of a running Ray cluster. Default: start Ray on this machine.")
    ] = None,
    cpus_per_trial: Annotated[int, typer.Option(metavar="N", min=1, help="Cores per trial.")] = 1,
    gpus_per_trial: Annotated[float, typer.Option(metavar="X", min=0, help="GPUs per trial; a fraction shares a GPU.")] = 0.0,
    kernels: Annotated[
        Literal["fast", "triton", "reference"],
        typer.Option(help="Sparse kernels. fast: compiled on CPUs, PyTorch on GPUs; triton: Triton on GPUs; reference: PyTorch."),
    ] = "fast",
    reference_kernels: Annotated[bool, typer.Option("--reference-kernels", hidden=True)] = False,
    executor: Annotated[
        Literal["ray", "inline"], typer.Option(help="ray, or inline: one trial after another in this process, for debuggers.")
    ] = "ray",
) -> None:
    """Train and evaluate the missing runs of a sweep, then write its table and report."""
    from sweeps.definition.sweep import Sweep
    from sweeps.execution.launcher import launch

    sweep = Sweep.from_yaml(definition, settings or [])
    done = launch(
        sweep,
        results=results,
        executor=executor,
        address=address,
        cpus_per_trial=cpus_per_trial,
        gpus_per_trial=gpus_per_trial,
        kernels="reference" if reference_kernels else kernels,
    )
    if done.interrupted:
        raise KeyboardInterrupt
    _tell(done)
    if done.failed or done.missing:
        raise typer.Exit(1)


@app.command()
def plan(
    definition: Definition,
    settings: Settings = None,
    results: Results = Path("results"),
    slots: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Trials at the same time. Default: as many as fit on this machine.")
    ] = None,
    cpus_per_trial: Annotated[int, typer.Option(metavar="N", min=1, help="Cores per trial.")] = 1,
    gpus_per_trial: Annotated[float, typer.Option(metavar="X", min=0, help="GPUs per trial; a fraction shares a GPU.")] = 0.0,
    measure: Annotated[
        bool, typer.Option("--measure", help="Predict the time from a few real steps of each setting. Takes about a minute.")
    ] = False,
) -> None:
    """Show what `run` would do: every run, tokens, FLOPs, memory, disk and time. Nothing is started."""
    from sweeps.definition.sweep import Sweep
    from sweeps.execution.cluster import Cluster
    from sweeps.planning.plan import plan as make_plan

    sweep, device = Sweep.from_yaml(definition, settings or []), "cuda:0" if gpus_per_trial else "cpu"
    n_slots = slots or Cluster(address=None, cpus=cpus_per_trial, gpus=gpus_per_trial).n_slots
    typer.echo("\n".join(make_plan(sweep, results, n_slots, measure=measure, device=device).lines()))


@app.command()
def status(results: Annotated[Path, typer.Argument(help="Directory of a sweep, e.g. results/demo.")]) -> None:
    """List finished, failed and missing runs, with reasons."""
    from sae_core.records import STATES
    from sweeps.storage.store import Store

    runs = Store(results).status()
    width = max((len(run.run_id) for run in runs), default=0)
    for run in runs:
        typer.echo(f"{run.run_id:<{width}}  {run.state:<8}  {run.reason}".rstrip())
    states = [run.state for run in runs]
    typer.echo(", ".join(f"{states.count(state)} {state}" for state in STATES))


@app.command()
def report(
    results: Annotated[list[Path], typer.Argument(help="Directory of a sweep; several give one report.")],
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Where to write. Default for one sweep: its report/.")] = None,
) -> None:
    """Write the report again from the records, for one sweep or several together."""
    from analysis.report import write_report  # and nothing of `sweeps`: a report needs no torch

    if out is None and len(results) > 1:
        raise ConfigError(f"`--out` must be given for several sweeps, but got {len(results)} directories and no `--out`. Add `--out DIR`.")
    typer.echo(f"Report: {write_report(results, out)}")


@app.command("list")
def list_names(
    plugin: Annotated[list[str] | None, typer.Option(metavar="PLUGIN", help="A plugin to import first. Repeatable.")] = None,
) -> None:
    """List every name that a definition may use: ready definitions, architectures, sources, metrics, samplers, plots, loggers."""
    from sae_core import plugins
    from sweeps.listing import listing

    plugins.load(plugins.absolute(location, Path.cwd()) for location in plugin or [])
    typer.echo("\n".join(listing()))


@app.command()
def init(name: Annotated[str, typer.Argument(help="Name of the sweep; writes NAME.yaml.")] = "my-sweep") -> None:
    """Write a definition to start from, with every section explained. It runs as it is."""
    from sweeps.definition.sweep import write_template

    file = Path(f"{name.removesuffix('.yaml')}.yaml")
    write_template(file)
    typer.echo(f"{file} is written. Next: sae-sweep plan {file}")


@cache_app.command()
def verify(results: Results = Path("results")) -> None:
    """Read every file that numbers come from, in all sweeps of a results directory and their caches of activations."""
    from sweeps.storage.verify import verify as damaged_files

    damaged = damaged_files(results)
    for file in damaged.files:
        typer.echo(f"damaged: {file.path}: {file.reason}. {file.remedy}")
    typer.echo(f"{damaged.n_read} files read, {len(damaged.files)} damaged")
    if damaged.files:
        raise typer.Exit(1)


def _tell(done: "LaunchResult") -> None:
    """The frontier, warnings and where the report is, then what did not work."""
    from analysis.findings import warning_lines
    from analysis.summary import frontier_lines
    from analysis.table import load_table

    if done.finished:
        table = load_table(done.directory)
        typer.echo("\n".join([*frontier_lines(table), "", *warning_lines(table), ""]))
        typer.echo(f"Report: {done.directory / 'report' / 'report.html'}")
    if done.pruned:
        share = f"{done.tokens_spent:,} of {done.tokens_asked:,} training tokens spent"
        typer.echo(f"{len(done.pruned)} runs stopped early: {share}")
    for run_id, reason in done.failed.items():
        typer.echo(f"failed: {run_id}: {reason}", err=True)
    for run_id in done.missing:
        typer.echo(f"missing: {run_id}", err=True)


def main() -> None:
    """Entry point: the only place that configures logging, signals and streams."""
    try:
        signals.handle()
        outlast_terminal()
        logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
        logging.getLogger("matplotlib").setLevel(logging.ERROR)  # that its cache cannot be written to, e.g. without a home
        try:
            app()
        except SystemExit as end:
            if not end.code and (lost := lost_output()):
                raise SystemExit(_say(lost, 1)) from None
            raise
    except KeyboardInterrupt:  # between commands: before the first line of one, or after its last
        raise SystemExit(_say(INTERRUPTED, 130)) from None
    finally:
        gc.freeze()  # what the libraries made need not be searched for cycles at exit, which takes a second


if __name__ == "__main__":
    main()
