"""The program `sae-sweep`: how a command answers, to readers or as JSON, and how what ends it becomes one message and an exit code."""

import functools
import importlib.metadata
import inspect
import json
import tempfile
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from sae_core.errors import ConfigError, reason_of
from sae_core.files import finite_or_none
from sweeps.execution import signals
from sweeps.execution.failures import LaunchError
from sweeps.storage.lease import LeaseLostError

SCHEMA = 1
"""Version of what `--json` prints; docs/commands.md describes it."""
INTERRUPTED = "Interrupted. What is finished is kept; the same command resumes."
_JSON = "--json"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command answers."""

    data: dict[str, Any]
    """For programs: plain data, described in docs/commands.md."""
    lines: Sequence[str] = ()
    """For readers, on stdout."""
    problems: Sequence[str] = ()
    """For readers, on stderr."""
    code: int = 0
    """Exit code."""


class _Commands(TyperGroup):
    """Prints answers, and turns what ends a command otherwise into one message and an exit code."""

    as_json = False

    def make_context(self, info_name: str | None, args: list[str], *arguments: Any, **options: Any) -> Any:
        self.as_json = _JSON in args  # looked for here, so that wrong arguments are answered in JSON, too
        try:
            return super().make_context(info_name, args, *arguments, **options)
        except Exception as error:
            raise self._usage(error) from None

    def invoke(self, ctx: Any) -> Any:
        try:
            code = self._show(super().invoke(ctx))
        except ConfigError as error:
            code = self._say("config", str(error), 2)
        except (LaunchError, LeaseLostError) as error:
            code = self._say("launch", str(error), 1)
        except KeyboardInterrupt:
            signals.was_interrupted()
            code = self._say("interrupted", INTERRUPTED, 130)
        except (typer.Exit, typer.Abort):
            raise
        except OSError as error:
            message = f"files must be readable and writable, but got {reason_of(error)}. Free space or correct permissions, then repeat."
            code = self._say("files", message, 1)
        except Exception as error:
            if hasattr(error, "exit_code"):  # of the command line itself: a wrong argument
                raise self._usage(error) from None
            # Where an interrupt was swallowed half way through an import, anything may be raised later.
            interrupted = signals.was_interrupted()
            code = self._say("interrupted", INTERRUPTED, 130) if interrupted else self._say("unexpected", _unforeseen(error), 1)
        raise typer.Exit(code)

    def _show(self, answer: Answer | None) -> int:
        """Print an answer; None is that of a command which has printed what there is to say. Returns the exit code."""
        if answer is None:
            return 0
        if self.as_json:
            _echo_json(answer.data)
        else:
            for stream, lines in ((False, answer.lines), (True, answer.problems)):
                if lines:
                    typer.echo("\n".join(lines), err=stream)
        return answer.code

    def _say(self, kind: str, message: str, code: int) -> int:
        if self.as_json:
            _echo_json({"error": {"type": kind, "message": message, "exit_code": code}})
        else:
            typer.echo(message, err=True)
        return code

    def _usage(self, error: Exception) -> Exception:
        """What to raise for a wrong argument: the error itself, which Typer prints, or the end of the program after it was told in JSON."""
        if not (self.as_json and hasattr(error, "format_message")):
            return error
        return typer.Exit(self._say("usage", error.format_message(), getattr(error, "exit_code", 2)))


def _echo_json(data: dict[str, Any]) -> None:
    typer.echo(json.dumps(finite_or_none({"schema": SCHEMA, **data}), indent=2, allow_nan=False))


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
cache_app = typer.Typer(no_args_is_help=True, help="The caches of activations under a results directory.")
app.add_typer(cache_app, name="cache")

Definition = Annotated[str, typer.Argument(help="A YAML, TOML or JSON file, or the name of a ready definition, e.g. demo.")]
Settings = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a field, e.g. train.lr=1e-3. Repeatable.")]
Results = Annotated[Path, typer.Option("--results", metavar="DIR", help="Directory of all sweeps; this one is DIR/<name>.")]
SweepDirectory = Annotated[Path, typer.Argument(metavar="RESULTS", help="Directory of a sweep, e.g. results/demo.")]
CpusPerTrial = Annotated[int, typer.Option(metavar="N", min=1, help="Cores per trial.")]
GpusPerTrial = Annotated[float, typer.Option(metavar="X", min=0, help="GPUs per trial; a fraction shares a GPU.")]

CacheLimit = Annotated[
    float | None,
    typer.Option(metavar="GIB", min=0, help="Most GiB of activations to store; the rest is made again as it is read. Default: what fits."),
]


def command(name: str | None = None, *, of: typer.Typer = app) -> Callable[[Callable[..., Answer]], Callable[..., Answer]]:
    """Make a function a command that also takes `--json`.

    Args:
        name: of the command; default: that of the function.
        of: the group of commands it belongs to.
    """
    option = Annotated[bool, typer.Option(_JSON, help="Print one JSON object instead; docs/commands.md describes it.")]

    def register(function: Callable[..., Answer]) -> Callable[..., Answer]:
        @functools.wraps(function)
        def called(*, as_json: bool, **arguments: Any) -> Answer:
            return function(**arguments)  # `_Commands` knows how the answer is to be printed

        signature = inspect.signature(function)
        added = inspect.Parameter("as_json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=option)
        called.__signature__ = signature.replace(parameters=[*signature.parameters.values(), added])  # type: ignore[attr-defined]
        called.__annotations__ = {**function.__annotations__, "as_json": option}
        of.command(name)(called)
        return function

    return register


def _version(requested: bool) -> None:
    if requested:
        typer.echo(f"sae-sweep {importlib.metadata.version('sae-sweep')}")
        raise typer.Exit


@app.callback()
def _sae_sweep(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")] = False,
) -> None:
    """Sweeps of sparse autoencoders: train every architecture and sparsity on one pass over the activations."""
