"""Launches that are disturbed at random moments, again and again, until their sweep is finished: nothing finished may be lost.

    python benchmarks/kills.py [--tries 20] [--seed 0] [--json FILE] [ROW...]

A row is what is done to a launch: a signal to the driver, or SIGKILL to a worker, a trial, the raylet or the GCS. One try is one launch, or
one victim within a launch where it goes on. After each try: no process, lock or temporary file of ours is left within 30 s, every finished
record is as it was, and the exit code is the one that is documented. When a sweep is finished, its results are those of one that nobody
disturbed, to the last bit; the next try then begins another. `SAE_SWEEP_TRIES` sets --tries, too.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

DEFINITION: dict[str, Any] = {
    "activations": {"source": "synthetic", "d_in": 32, "train_tokens": 80_000, "eval_tokens": 20_000},
    "sae": {"d_sae": 128},
    "train": {"batch_size": 256},
    "architectures": {"topk": {"k": [2, 4]}, "standard": {"l1_coefficient": [0.3, 1.0]}, "gated": {"l1_coefficient": 1.0, "lr": 1e30}},
}
PROGRAM = """
import functools, sweeps.cli, sweeps.execution.launcher as launcher
launcher.launch = functools.partial(launcher.launch, checkpoint_seconds=0.2)
sweeps.cli.main()
"""
SIGNALS = {"SIGKILL": -9, "SIGTERM": 130, "SIGINT": 130, "SIGUSR1": 130}
"""Signal to the driver -> exit code."""
VICTIMS = {"worker": "_RayWorker", "trial": "ImplicitFunc", "raylet": "/raylet ", "gcs": "/gcs_server "}
"""Other victims -> what their command lines hold."""
MARK = "SAE_SWEEP_KILLS"
CLEAN_SECONDS = 30.0


class Launch:
    """A launch whose processes are marked, so that those that it leaves are found."""

    def __init__(self, results: Path, executor: str) -> None:
        self.temporary = Path(tempfile.mkdtemp(prefix="k", dir="/tmp"))
        self.mark = f"{os.getpid()}-{self.temporary.name}"
        file = results / "definition.json"
        file.write_text(json.dumps({"name": "sweep", **DEFINITION}))
        command = [sys.executable, "-c", PROGRAM, "run", str(file), "--results", str(results), "--executor", executor]
        environment = {**os.environ, MARK: self.mark, "TMPDIR": str(self.temporary)}
        self.log = (self.temporary / "log").open("w")
        self.process = subprocess.Popen(command, env=environment, stdout=self.log, stderr=self.log, start_new_session=True)

    def said(self) -> str:
        return (self.temporary / "log").read_text()

    def processes(self) -> list[psutil.Process]:
        """All that descend from it, in whatever way."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def victims(self, part: str) -> list[psutil.Process]:
        """Its processes of some kind."""
        found = []
        for process in self.processes():
            with suppress(psutil.Error):
                if part in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def end(self) -> None:
        for process in self.processes():
            with suppress(psutil.Error):
                process.kill()
        self.log.close()
        shutil.rmtree(self.temporary, ignore_errors=True)


@contextmanager
def launched(results: Path, executor: str) -> Iterator[Launch]:
    launch = Launch(results, executor)
    try:
        yield launch
    finally:
        launch.end()


def content(results: Path) -> dict[str, str]:
    """What came out: run id -> a digest of its weights and metrics. Of finished and failed runs."""
    found = {}
    for file in results.glob("sweep/runs/*/record.json"):
        record = json.loads(file.read_text())
        if record["status"] in ("finished", "failed"):
            weights = file.parent / "sae" / "sae_weights.safetensors"
            parts = [weights.read_bytes() if weights.exists() else b"", json.dumps(record["metrics"], sort_keys=True).encode()]
            found[record["run_id"]] = hashlib.sha256(b"".join(parts)).hexdigest()
    return found


def left_over(launch: Launch, results: Path, *, has_guard: bool) -> list[str]:
    """What is left of a launch that has ended; waits for it to go.

    Args:
        has_guard: that removes temporary files of a killed launch; else the next one does.
    """
    end = time.monotonic() + CLEAN_SECONDS
    while True:
        left = [f"process {process.pid}" for process in launch.processes()]
        left += [str(path) for path in launch.temporary.iterdir() if path.name.startswith("sae-ray-")]
        kept = (".lock", ".lock.holder", ".users", ".activations")
        left += [str(path) for path in results.rglob(".*") if has_guard and path.name not in kept]
        if not left or time.monotonic() > end:
            return left
        time.sleep(0.2)


class Row:
    """The tries of one row.

    Args:
        undisturbed: `content` of a sweep that nobody disturbed.
        seconds: that an undisturbed launch takes.
    """

    def __init__(self, name: str, executor: str, undisturbed: dict[str, str], seconds: float, chance: random.Random) -> None:
        self.name, self.executor, self.undisturbed, self.seconds, self.chance = name, executor, undisturbed, seconds, chance
        self.results = Path(tempfile.mkdtemp(prefix="kills-"))
        self.tries, self.sweeps, self.problems, self.stops = 0, 0, list[str](), list[float]()

    def problem(self, text: str, launch: Launch) -> None:
        self.problems.append(f"try {self.tries}: {text}\n{launch.said()[-1500:]}")

    def run(self, tries: int) -> None:
        while self.tries < tries:
            finished = content(self.results)
            with launched(self.results, self.executor) as launch:
                self.disturb(launch, tries)
                after = content(self.results)
                if lost := {run for run, digest in finished.items() if after.get(run) != digest}:
                    self.problem(f"lost {lost}", launch)
                if left := left_over(launch, self.results, has_guard=self.executor == "ray"):
                    self.problem(f"left {left}", launch)
                if launch.process.returncode in (0, 1) and set(after) == set(self.undisturbed):
                    self.sweeps += 1
                    if after != self.undisturbed:
                        self.problem("another result", launch)
                    shutil.rmtree(self.results / "sweep")
                    if self.chance.random() < 0.5:  # the next one harvests, too
                        shutil.rmtree(self.results / ".activations", ignore_errors=True)
        shutil.rmtree(self.results)

    def disturb(self, launch: Launch, tries: int) -> None:
        """One launch, to its end."""
        time.sleep(self.chance.uniform(0, self.seconds))
        signal_name = self.name if self.name in SIGNALS else "SIGKILL"
        while launch.process.poll() is None:
            victims = [launch.process] if self.name in SIGNALS else launch.victims(VICTIMS[self.name])
            if not victims or self.tries >= tries:
                time.sleep(0.1)
                continue
            self.tries += 1
            started = time.monotonic()
            with suppress(psutil.Error, ProcessLookupError):
                self.chance.choice(victims).send_signal(getattr(signal, signal_name))
            if self.name in ("worker", "trial"):  # the launch goes on
                time.sleep(self.chance.uniform(1, self.seconds))
                continue
            with suppress(subprocess.TimeoutExpired):
                launch.process.wait(60)
            self.stops.append(time.monotonic() - started)
            expected = SIGNALS.get(self.name, 1)
            has_begun = bool(launch.said())  # before, Python itself ends at a signal
            if has_begun and launch.process.poll() not in (expected, 0, 1):  # it may have ended before
                self.problem(f"exit code {launch.process.returncode} after {self.stops[-1]:.1f} s", launch)

    def told(self) -> dict[str, Any]:
        longest = max(self.stops, default=None)
        return {
            "row": self.name, "executor": self.executor, "tries": self.tries, "sweeps_finished": self.sweeps,
            "longest_end_s": longest and round(longest, 1), "problems": self.problems,
        }  # fmt: skip


def main() -> None:
    """Every row, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=", ".join([*SIGNALS, *VICTIMS]))
    parser.add_argument("--tries", type=int, default=int(os.environ.get("SAE_SWEEP_TRIES", "20")))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--executor", choices=("ray", "inline"), default="ray", help="inline: for signals only")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    told = []
    with tempfile.TemporaryDirectory() as directory:
        started = time.monotonic()
        with launched(Path(directory), arguments.executor) as launch:
            launch.process.wait()
            undisturbed = content(Path(directory))
            assert len(undisturbed) == 5, launch.said()
        seconds = time.monotonic() - started
    for name in arguments.rows or [*SIGNALS, *(VICTIMS if arguments.executor == "ray" else [])]:
        row = Row(name, arguments.executor, undisturbed, seconds, random.Random(f"{name}{arguments.seed}"))
        row.run(arguments.tries)
        told.append(row.told())
        sys.stdout.write(f"{json.dumps(told[-1], indent=2)}\n")
        sys.stdout.flush()
        if arguments.json:
            arguments.json.write_text(json.dumps(told, indent=2))


if __name__ == "__main__":
    main()
