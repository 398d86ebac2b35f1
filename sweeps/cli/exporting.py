"""`sae-sweep export`: SAEs for other programs."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sweeps.cli.app import Answer, command

if TYPE_CHECKING:
    from analysis.export.choice import Chosen


class Format(StrEnum):
    """Programs that load what is written."""

    SAELENS = "saelens"
    CIRCUIT_TRACER = "circuit-tracer"


@command()
def export(
    results: Annotated[list[Path], typer.Argument(help="Directory of a sweep, e.g. results/demo; layers may come from several.")],
    to: Annotated[str, typer.Option("--to", metavar="DIR|hub:USER/REPO", help="A new or empty directory, or repository on the Hub.")],
    l0: Annotated[float | None, typer.Option("--l0", metavar="L0", help="Take the best run of each hook point at this L0.")] = None,
    front: Annotated[bool, typer.Option("--front", help="Take the runs on the front of each hook point.")] = False,
    run: Annotated[list[str] | None, typer.Option("--run", metavar="ID", help="Take this run. Repeatable.")] = None,
    architecture: Annotated[str | None, typer.Option(metavar="NAME", help="With --l0 or --front: only runs of this architecture.")] = None,
    form: Annotated[Format, typer.Option("--format", help="A folder per run, or one set of transcoders.")] = Format.SAELENS,
) -> Answer:
    """Write SAEs as folders that SAELens loads, or transcoders of all layers as a set that circuit-tracer loads; or publish them."""
    from sweeps.exporting import export as export_runs

    runs, written = export_runs(results, to, form=form.value, l0=l0, front=front, run_ids=run or [], architecture=architecture)
    files = list(map(str, written))
    is_set = form is Format.CIRCUIT_TRACER
    saes = files[1:] if is_set else files
    exported = [
        {
            "run_id": chosen.run_id,
            "hook_point": chosen.place.hook_point,
            "hook_out": chosen.place.hook_out,
            "l0": chosen.metrics.get("l0"),
            "fvu": chosen.metrics.get("fvu"),
            "path": path,
        }
        for chosen, path in zip(runs, saes, strict=True)
    ]
    loading = _loading_set(runs[0], files[0]) if is_set else _loading_folder(runs[0], saes[0])
    data = {"format": form.value, "directory": to, "exported": exported, "loading": loading}
    lines = [_line(chosen, path) for chosen, path in zip(runs, saes, strict=True)]
    return Answer(data, [*lines, "", *(f"  {line}" for line in loading.splitlines())])


def _line(run: "Chosen", path: str) -> str:
    numbers = ", ".join(
        f"{label} {run.metrics[name]:.3g}" for name, label in (("l0", "L0"), ("fvu", "FVU")) if run.metrics.get(name) is not None
    )
    return f"{path}: {run.run_id}, {run.place}{f', {numbers}' if numbers else ''}"


def _loading_folder(run: "Chosen", path: str) -> str:
    """Python that loads an SAE."""
    from analysis.best import loading_of
    from analysis.export.snippets import uses_of
    from sae_core.files import read_json
    from sae_core.layout import CFG
    from sae_core.sae.hub import PREFIX

    if not path.startswith(PREFIX):
        return loading_of(Path(path))
    repo, _, folder = path.removeprefix(PREFIX).rpartition("/")
    return "\n\n".join(use["code"] for use in uses_of([folder], [read_json(run.directory / CFG)], repo)[:2])


def _loading_set(run: "Chosen", config: str) -> str:
    """Python that loads a set: by its full path, because others are looked for on the Hub."""
    import yaml

    from sae_core.sae.hub import PREFIX

    if config.startswith(PREFIX):
        model, place = run.place.model, config.removeprefix(PREFIX).rpartition("/")[0]
    else:
        model = yaml.safe_load(Path(config).read_text(encoding="utf-8"))["model_name"]
        place = str(Path(config).parent.expanduser().resolve())
    return f'from circuit_tracer import ReplacementModel\nmodel = ReplacementModel.from_pretrained("{model}", "{place}")'
