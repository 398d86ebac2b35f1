"""Commands that answer questions about finished sweeps."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

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

    table = load_table(results)
    texts = texts_of(table[finished(table)])
    parts = [table[(table["eval_hash"] == text).fillna(False).to_numpy()] for text in texts] if len(texts) > 1 else [table]
    found = [best_of(part, l0, metric=metric, architecture=architecture) for part in parts]
    lines: list[str] = []
    for one in found:
        lines += [*([f"{one.comparison}:"] if len(found) > 1 else []), *lines_of(one), ""]
    return Answer({"best": [_plain(dataclasses.asdict(one)) for one in found]}, lines[:-1])


def _plain(value: Any) -> Any:
    """As JSON has it."""
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    return str(value) if isinstance(value, Path) else value
