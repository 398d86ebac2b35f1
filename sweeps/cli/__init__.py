"""The command line, `sae-sweep`. Heavy imports are inside the commands, so that `--help` is quick.

Exit codes: 0 all is well, 1 a run failed or is missing, 2 what was asked for is not possible, 130 interrupted.
"""

import gc
import logging

import typer

from sweeps.cli import answers, caches, clusters, comparing, evaluating, exporting, features, harvesting, launching, looking, steering
from sweeps.cli.app import INTERRUPTED, app
from sweeps.execution import signals
from sweeps.terminal import lost_output, outlast_terminal

__all__ = [
    "answers",
    "app",
    "caches",
    "clusters",
    "comparing",
    "evaluating",
    "exporting",
    "features",
    "harvesting",
    "launching",
    "looking",
    "main",
    "steering",
]


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
                typer.echo(lost, err=True)
                raise SystemExit(1) from None
            raise
    except KeyboardInterrupt:  # between commands: before the first line of one, or after its last
        typer.echo(INTERRUPTED, err=True)
        raise SystemExit(130) from None
    finally:
        gc.freeze()  # what the libraries made need not be searched for cycles at exit, which takes a second
