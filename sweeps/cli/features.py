"""`sae-sweep features` and `sae-sweep probe`: what runs learned."""

import dataclasses
import tempfile
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sae_core.errors import ConfigError, reason_of
from sweeps.cli.app import Answer, SweepDirectory, command
from sweeps.cli.progress import shown_progress

if TYPE_CHECKING:
    from analysis.features.run import LearnedRun

TOP = 50
"""Latents on the page, unless others are asked for."""

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
    page = out or SweepPaths(Path(results)).run(run_id).features
    with shown_progress() as progress:
        run = open_run(results, run_id)
        run.progress = progress
        run.check_latents(latent or [])
        _check_place("--out" if to is None else "--to", to or page)
        if export is not None and to is not None:
            written = _export(run, export, to, latent, top)
            answer: dict[str, object] = {"run_id": run_id, "page": None, "export": str(written), "latents": []}
            return Answer(answer, [f"Export for {export.value}: {written}"])
        from analysis.features.content import most_written, page_content
        from analysis.features.page import write_page

        other = _other(run, results, compare) if compare else None
        shown = latent or most_written(run, top or TOP)
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


def _check_place(option: str, path: Path) -> None:
    """Make sure that there can be a file of this name, or a directory: before minutes of work."""
    try:
        directory = path if option == "--to" else path.parent
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
        if option == "--out" and path.is_dir():
            raise IsADirectoryError("it is a directory")
    except OSError as error:
        kind = "a directory" if option == "--to" else "a file"
        raise ConfigError(
            f"`{option}` must name {kind} that can be written to, but got {str(path)!r}: {reason_of(error)}. Choose another."
        ) from error


def _export(run: "LearnedRun", layout: Layout, to: Path, latent: list[int] | None, top: int | None) -> Path:
    from analysis.features.content import most_written
    from analysis.features.delphi import export_delphi
    from analysis.features.neuronpedia import export_neuronpedia

    exporter = {Layout.NEURONPEDIA: export_neuronpedia, Layout.DELPHI: export_delphi}[layout]
    return exporter(run, to, latent or (most_written(run, top) if top else None))


def _other(run: "LearnedRun", results: Path, name: str) -> "LearnedRun":
    """Another run of the sweep; or this one with the SAE of a directory in place of its own."""
    from sae_core.layout import CFG
    from sae_core.sae.base import SparseAutoencoder
    from sweeps.opening import open_run

    if (Path(name) / CFG).is_file():
        sae = SparseAutoencoder.from_pretrained(name).to(run.sae.W_dec.device)
        other = dataclasses.replace(run, run_id=name, sae=sae, facts={})
    else:
        other = open_run(results, name)
        # The same language model need not be loaded twice.
        other = dataclasses.replace(other, source=run.source if other.cache == run.cache else other.source, progress=run.progress)
    theirs, ours = ((sae.d_in, sae.W_dec.shape[1]) for sae in (other.sae, run.sae))
    if theirs != ours:
        written = (
            f" (d_in, d_out)={theirs} of {name!r} and {ours}"
            if theirs[0] == ours[0]
            else f" d_in={theirs[0]} of {name!r} and d_in={ours[0]}"
        )
        raise ConfigError(
            f"`--compare` must be an SAE for activations of the same width, but got{written} of run {run.run_id!r}. Choose one of the same "
            "hook point."
        )
    return other


@command()
def probe(
    results: SweepDirectory,
    data: Annotated[str, typer.Option(metavar="FILE", help="A .csv, .jsonl or .parquet file of labeled texts, or scikit-learn.")],
    text_column: Annotated[str, typer.Option(metavar="NAME", help="Column of the texts.")] = "text",
    label_column: Annotated[str, typer.Option(metavar="NAME", help="Column of the labels.")] = "label",
    k: Annotated[str, typer.Option("--k", metavar="K,...", help="Latents that a probe reads.")] = "1,5",
) -> Answer:
    """Measure how well k latents tell labeled texts apart, for every finished run: columns of the table."""
    from analysis.features.probe_data import labeled_texts
    from analysis.features.probe_sweep import probe_runs
    from sae_core.layout import SweepPaths
    from sweeps.execution.view import table
    from sweeps.opening import open_runs

    ks = _numbers(k)
    texts = labeled_texts(data, text_column, label_column)
    with shown_progress() as progress:
        scores, whole = probe_runs(open_runs(results), texts, ks, lambda run_id: SweepPaths(Path(results)).run(run_id).probes, progress)
    rows: list[dict[str, object]] = [{"run_id": run_id, "l0": l0, "accuracy": found} for run_id, l0, found in scores]
    answer = {"name": texts.name, "texts": len(texts.texts), "activations": whole, "runs": rows}
    lines = table([{"L0": l0, **{f"k={size}": found[str(size)] for size in ks}} for _, l0, found in scores])
    width = max(len(run_id) for run_id, _, _ in scores)
    shown = [f"{name:<{width}}  {line}" for name, line in zip(["", *(run_id for run_id, _, _ in scores)], lines, strict=True)]
    last = f"without an SAE, from the whole activation: {whole:.3f}; chance is 0.5. The table has columns probe_{texts.name}_k{ks[0]} ..."
    return Answer(answer, [*shown, last])


def _numbers(text: str) -> list[int]:
    """What `--k` says."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ConfigError(f"`--k` must be numbers above 0 with commas between them, but got {text!r}. Give e.g. 1,5.")
    return sorted({int(part) for part in parts})
