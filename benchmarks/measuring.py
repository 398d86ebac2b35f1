"""What the benchmarks share: medians with their spread, ratios round by round, and the file that results are kept in.

Machines are shared and clocks drift, so two programs take turns: a round holds a block of each, one right after the other. A ratio is taken
in each round; what is reported is the median over the rounds, and the smallest and the largest one.
"""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from rich.console import Console

from sae_core import provenance
from sae_core.config.run import RunConfig
from sweeps.planning.inputs import shared_activations

RESULTS = Path(__file__).parent / "results"
WIDTH = 132
"""Columns that a table of results takes."""


@dataclass(frozen=True, slots=True)
class Spread:
    """A median, and the smallest and largest of the values it is of."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Raises ValueError without values."""
        if not values:
            raise ValueError(f"a spread must be of at least one value, but got values={list(values)}. Measure first.")
        return cls(statistics.median(values), min(values), max(values))

    def text(self, unit: str = "", *, digits: int = 0, scale: float = 1.0) -> str:
        """For a table: "613 (601–655) ms"."""
        median, low, high = (f"{scale * value:.{digits}f}" for value in (self.median, self.low, self.high))
        return f"{median} ({low}–{high}) {unit}".rstrip()


def ratio(theirs: Sequence[float], ours: Sequence[float]) -> Spread:
    """How many times as long theirs takes as ours: the spread of the ratios of paired rounds.

    Raises:
        ValueError: there are not as many rounds of the one as of the other.
    """
    if len(theirs) != len(ours):
        raise ValueError(f"both sides must have the same rounds, but got {len(theirs)} and {len(ours)}. Pair them.")
    return Spread.of([one / other for one, other in zip(theirs, ours, strict=True)])


def fastest(rounds: dict[str, list[float]]) -> str:
    """The name whose rounds have the smallest median."""
    return min(rounds, key=lambda name: statistics.median(rounds[name]))


def parser(description: str | None) -> argparse.ArgumentParser:
    """Options that all side-by-side benchmarks have."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--threads", type=int, default=provenance.n_cores(), help="of every process; default: the cores there are")
    made.add_argument("--out", type=Path, default=RESULTS, help="directory of the result files")
    return made


def activations_of(run: RunConfig, results: Path) -> tuple[Any, Path]:
    """The source of a run's activations, and the cache that a sweep below `results` has made of them."""
    (shared,) = shared_activations([run.activations], [run], results.absolute() / ".activations")
    return shared.source, shared.cache


def run_sweep(*arguments: str) -> float:
    """Wall time of `sae-sweep run` with these arguments, from its start to its end, and what it told.

    Raises:
        RuntimeError: it failed.
    """
    started = time.perf_counter()
    command = [sys.executable, "-m", "sweeps.cli", "run", *arguments]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise RuntimeError(f"the sweep must come to its end, but got exit code {done.returncode}:\n{done.stderr[-3000:]}")
    return seconds


def console() -> Console:
    """Where benchmarks tell what they find; wide enough for their tables, also in a file."""
    return Console(width=WIDTH, highlight=False, soft_wrap=False)


def write_result(directory: Path, name: str, results: Any, *, peer: dict[str, str] | None = None) -> Path:
    """Keep results with what they were measured on.

    Args:
        results: anything JSON can hold; a Spread becomes an object.
        peer: versions of what was measured beside us.
    """
    directory.mkdir(parents=True, exist_ok=True)
    content = {
        "benchmark": name,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "hardware": provenance.hardware(),
        "versions": provenance.versions(),
        "peer_versions": peer,
        "results": results,
    }
    path = directory / f"{name}.json"
    path.write_text(json.dumps(content, indent=1, default=asdict) + "\n", encoding="utf-8")
    return path
