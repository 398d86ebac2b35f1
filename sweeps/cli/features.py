"""`sae-sweep features`: what a run learned."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sae_core.errors import ConfigError
from sweeps.cli.app import Answer, SweepDirectory, command

if TYPE_CHECKING:
    from analysis.features.activations import Progress
    from analysis.features.run import LearnedRun

TOP = 50
"""Latents on the page, unless others are asked for."""
PLAIN_SECONDS = 10.0
"""Seconds between lines of progress where the output is no terminal."""

RunId = Annotated[str, typer.Argument(help="One of its runs; `sae-sweep status` lists them.")]


class Layout(StrEnum):
    """Other tools' files."""

    NEURONPEDIA = "neuronpedia"
    DELPHI = "delphi"


@command()
def features(
    results: SweepDirectory,
    run_id: RunId,
    latent: Annotated[list[int] | None, typer.Option("--latent", metavar="N", help="A latent to show. Repeatable.")] = None,
    top: Annotated[int | None, typer.Option("--top", metavar="N", min=1, help=f"Show the N that write most. Default: {TOP}.")] = None,
    compare: Annotated[
        str | None,
        typer.Option("--compare", metavar="RUN_ID", help="Show their counterparts in another run, or in the SAE in a directory."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="The page. Default: features.html of the run.")] = None,
    export: Annotated[Layout | None, typer.Option("--export", help="Write files for another tool instead of the page.")] = None,
    to: Annotated[Path | None, typer.Option("--to", metavar="DIR", help="Where `--export` writes.")] = None,
) -> Answer:
    """Write a page of what a run's latents are active on and do; or export them to Neuronpedia or delphi."""
    from sae_core.layout import SweepPaths
    from sweeps.opening import open_run

    _check(latent, top, compare, out, export, to)
    with _progress() as progress:
        run = open_run(results, run_id)
        run.progress = progress
        run.check_latents(latent or [])
        if export is not None and to is not None:
            written = _export(run, export, to, latent, top)
            answer: dict[str, object] = {"run_id": run_id, "page": None, "export": str(written), "latents": []}
            return Answer(answer, [f"Export for {export.value}: {written}"])
        from analysis.features.content import most_written, page_content
        from analysis.features.page import write_page

        other = _other(run, results, compare) if compare else None
        shown = latent or most_written(run, top or TOP)
        page = out or SweepPaths(Path(results)).run(run_id).features
        write_page(page_content(run, list(dict.fromkeys(shown)), other), page)
    return Answer({"run_id": run_id, "page": str(page), "export": None, "latents": shown}, [f"{len(shown)} latents: {page}"])


def _check(
    latent: list[int] | None, top: int | None, compare: str | None, out: Path | None, export: Layout | None, to: Path | None
) -> None:
    """Refuse options that do not go together, all at once."""
    problems = []
    if latent and top:
        problems.append(f"`--latent` and `--top` must not be given together, but got {latent} and {top}. Leave one out.")
    if (export is None) != (to is None):
        given = f"--to {to}" if export is None else f"--export {export.value}"
        problems.append(f"`--export` and `--to` must be given together, but got only `{given}`. Add the other.")
    if export is not None and (compare or out):
        problems.append(f"`--compare` and `--out` are for the page, but got `--export {export.value}`. Leave them out.")
    if problems:
        raise ConfigError("\n".join(problems))


def _export(run: "LearnedRun", layout: Layout, to: Path, latent: list[int] | None, top: int | None) -> Path:
    from analysis.features.content import most_written
    from analysis.features.delphi import export_delphi
    from analysis.features.neuronpedia import export_neuronpedia

    exporter = {Layout.NEURONPEDIA: export_neuronpedia, Layout.DELPHI: export_delphi}[layout]
    return exporter(run, to, latent or (most_written(run, top) if top else None))


def _other(run: "LearnedRun", results: Path, name: str) -> "LearnedRun":
    """Another run of the sweep; or this one with the SAE of a directory in place of its own."""
    from sae_core.sae.base import SparseAutoencoder
    from sweeps.opening import open_run

    if not (Path(name) / "cfg.json").is_file():
        other = open_run(results, name)
        # The same language model need not be loaded twice.
        source = run.source if other.cache == run.cache else other.source
        return dataclasses.replace(other, source=source, progress=run.progress)
    sae = SparseAutoencoder.from_pretrained(name).to(run.sae.W_dec.device)
    if sae.d_in != run.sae.d_in:
        raise ConfigError(
            f"`--compare` must be an SAE for activations of the same width, but got d_in={sae.d_in} in {name!r} and d_in={run.sae.d_in} of "
            f"run {run.run_id!r}. Choose one of the same hook point."
        )
    return dataclasses.replace(run, run_id=name, sae=sae, facts={})


@contextmanager
def _progress() -> "Iterator[Progress]":
    """Show on the terminal how far a long command is; in lines where there is none."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _in_lines(console.print)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        tasks: dict[str, object] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)  # type: ignore[arg-type]

        yield show


def _in_lines(say: Callable[[str], None]) -> "Progress":
    last = time.monotonic()

    def show(what: str, done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= PLAIN_SECONDS:
            last = time.monotonic()
            say(f"{what}: {done} of {total}")

    return show
