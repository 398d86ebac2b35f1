"""The progress of a launch in another terminal, on any node that sees its directory."""

import time
from pathlib import Path

from rich.console import Console
from rich.live import Live

from sweeps.execution.progress import PLAIN_SECONDS
from sweeps.execution.view import line, lines, renderable
from sweeps.storage.progress_file import Progress, next_progress, running_progress


def watch(file: Path, console: Console | None = None) -> None:
    """Show the progress of the launch that writes `file`, until it ends. Returns at once if none runs."""
    console = console or Console(stderr=True)
    progress = running_progress(file)
    if progress is None:
        return
    if not console.is_terminal or console.is_dumb_terminal:
        _watch_plainly(file, progress, console)
        return
    with Live(renderable(progress), console=console, refresh_per_second=2, transient=True) as live:
        while (progress := next_progress(file, progress)) is not None:
            live.update(renderable(progress))


def _watch_plainly(file: Path, progress: Progress | None, console: Console) -> None:
    last = -PLAIN_SECONDS
    while progress is not None:
        if time.monotonic() - last >= PLAIN_SECONDS:
            last = time.monotonic()
            console.print("\n".join([line(progress), *lines(progress)]), highlight=False, soft_wrap=True)
        progress = next_progress(file, progress)
