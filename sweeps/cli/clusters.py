"""`sae-sweep cluster`: writes the file that starts a sweep where people run."""

from pathlib import Path
from typing import Annotated

import typer

from sweeps.cli.app import Answer, command
from sweeps.clusters.files import Kind, Options, write


@command()
def cluster(
    kind: Annotated[Kind, typer.Argument(help="Where the sweep is to run.")],
    definition: Annotated[str | None, typer.Argument(help="The sweep: a file, or a ready definition. Default: my-sweep.yaml.")] = None,
    nodes: Annotated[int | None, typer.Option(metavar="N", help="Nodes. Default: 1.")] = None,
    gpus: Annotated[int | None, typer.Option(metavar="N", help="GPUs per node. Default: 0.")] = None,
    cpus: Annotated[int | None, typer.Option(metavar="N", help="Cores per node. Default: 8.")] = None,
    hours: Annotated[float | None, typer.Option(metavar="H", help="Time limit. Default: 24.")] = None,
    results: Annotated[str | None, typer.Option(metavar="DIR", help="Directory of all sweeps there. Default: one that fits.")] = None,
    mirror: Annotated[str | None, typer.Option(metavar="URL", help="Where results are copied to, e.g. s3://bucket/prefix.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the job. Default: that of the sweep.")] = None,
    partition: Annotated[str | None, typer.Option(help="slurm: partition.")] = None,
    account: Annotated[str | None, typer.Option(help="slurm: account.")] = None,
    image: Annotated[str | None, typer.Option(help="kuberay, docker: container image. Default: sae-sweep:VERSION.")] = None,
    hosts: Annotated[str | None, typer.Option(metavar="A,B,...", help="ray-up: machines, the head first.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Where to write. Default: a name in this directory.")] = None,
) -> Answer:
    """Write the file that starts a sweep on Slurm, Kubernetes, machines over SSH, a cloud or in a container. See docs/clusters.md."""
    options = Options(**{name: value for name, value in locals().items() if name not in ("kind", "out")})
    file, ignored = write(kind, options, out)
    said = f"{file} is written. Its first lines say how to submit, watch and resume."
    problems = [f"{kind} has no use for {', '.join(ignored)}: ignored."] if ignored else []
    return Answer({"kind": kind, "file": str(file), "ignored": ignored}, [said], problems)
