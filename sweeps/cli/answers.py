"""Commands that answer questions about finished sweeps."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from sae_core.errors import ConfigError
from sweeps.cli.app import Answer, command

Results = Annotated[list[Path], typer.Argument(help="Directory of a sweep, e.g. results/demo; several are ranked together.")]


@command()
def best(
    results: Results,
    l0: Annotated[float, typer.Option("--l0", metavar="L0", help="Active latents per token.")],
    metric: Annotated[str, typer.Option(metavar="NAME", help="Metric to rank by.")] = "fvu",
    architecture: Annotated[str | None, typer.Option(metavar="NAME", help="Take only runs of this architecture.")] = None,
) -> Answer:
    """Name the run to use at an L0: its numbers with intervals, its path, and how to load it."""
    from analysis.best import best as best_of
    from analysis.best import lines_of, texts_of
    from analysis.table import finished, load_table
    from analysis.words import shortened

    if file := next((path for path in results if path.is_file()), None):
        raise ConfigError(
            f"`best` takes directories of sweeps, but got the file {str(file)!r}. For a table, use `sae-sweep compare {file}`, which also "
            "puts it beside a sweep."
        )
    table = load_table(results)
    texts = texts_of(table[finished(table)])
    parts = [table[(table["eval_hash"] == text).fillna(False).to_numpy()] for text in texts] if len(texts) > 1 else [table]
    found = [best_of(part, l0, metric=metric, architecture=architecture) for part in parts]
    lines: list[str] = []
    for number, one in enumerate(found):
        lines += [*([f"{one.comparison}, held-out text {shortened(texts[number])}:"] if len(found) > 1 else []), *lines_of(one), ""]
    return Answer({"best": [_plain(dataclasses.asdict(one)) for one in found]}, lines[:-1])


@command()
def figures(
    results: Annotated[list[Path], typer.Argument(help="Directory of a sweep, e.g. results/demo; several are shown together.")],
    style: Annotated[str, typer.Option(metavar="NAME", help="paper, or report for the figures as the report has them.")] = "paper",
    width: Annotated[float, typer.Option(metavar="INCHES", help="Of a column; figures of several panels span two.")] = 3.25,
    form: Annotated[str, typer.Option("--format", metavar="NAME", help="pdf, svg, png or eps.")] = "pdf",
    layout: Annotated[
        str, typer.Option(metavar="NAME", help="Of several widths: a panel per `architectures` or `sizes`, or `one` plot.")
    ] = "architectures",
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Where to write. Default: figures/ of the first sweep.")] = None,
) -> Answer:
    """Write every plot at the width of a paper's column, and tables with intervals for LaTeX."""
    from analysis.paper import write_figures

    files = write_figures(results, out, kind=style, width=width, form=form, layout=layout)  # type: ignore[arg-type]
    return Answer({"files": [str(file) for file in files]}, [str(file) for file in files])


def _plain(value: Any) -> Any:
    """As JSON has it."""
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    return str(value) if isinstance(value, Path) else value
