"""Launches that are disturbed at random moments of each stage, until their sweep is finished: nothing finished may be lost.

    python benchmarks/kills.py [--tries 20] [--seed 0] [--executor ray] [--json FILE] [ROW...]

A row is what is done to launches: a signal to the driver, or SIGKILL to a worker, a trial, the raylet or the GCS. A sweep is launched
once for each stage in which there are such victims, hit in that stage, and launched a last time; one that goes on is hit twice in each.
After each launch: no process, socket, lock or temporary file of ours is left within 30 s, every finished record is as it was, no traceback
was printed, and the exit code is the one that is documented. A finished sweep's results are those of one that nobody disturbed, to the last
bit. `SAE_SWEEP_TRIES` sets --tries, too.
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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

DEFINITION: dict[str, Any] = {
    "activations": {"source": "synthetic", "d_in": 32, "train_tokens": 240_000, "eval_tokens": 20_000},
    "sae": {"d_sae": 128},
    "train": {"batch_size": 256},
    "architectures": {"topk": {"k": [2, 4]}, "standard": {"l1_coefficient": [0.3, 1.0]}, "gated": {"l1_coefficient": 1.0, "lr": 1e30}},
}
PROGRAM = """
import functools, sweeps.cli, sweeps.execution.launcher as launcher
launcher.launch = functools.partial(launcher.launch, checkpoint_seconds=0.2)
sweeps.cli.main()
"""
STAGES = ("start", "harvest", "train", "evaluate", "report")
SIGNALS = {"SIGKILL": -9, "SIGTERM": 130, "SIGINT": 130, "SIGUSR1": 130}
"""Signal to the driver -> exit code."""
VICTIMS = {"worker": "_RayWorker", "trial": "ImplicitFunc", "raylet": "/raylet ", "gcs": "/gcs_server "}
"""Other victims -> what their command lines hold."""
THERE = {"worker": ("harvest", "evaluate"), "trial": ("train",), "raylet": STAGES[:4], "gcs": STAGES[:4]}
"""Other victims -> stages in which there are some."""
MARK = "SAE_SWEEP_KILLS"
CLEAN_SECONDS = 30.0
END_SECONDS = 150.0


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

    def stage(self) -> str:
        """The stage it is in."""
        lines = self.said().splitlines()
        return next((stage for stage in STAGES[:0:-1] if any(line.startswith(f"{stage}: ") for line in lines)), STAGES[0])

    def wait_for(self, stage: str) -> None:
        """Wait until the stage has begun, and signals are handled; or until it has ended."""
        while self.process.poll() is None:
            status = Path(f"/proc/{self.process.pid}/status").read_text()
            caught = int(status.partition("SigCgt:")[2].split()[0], 16) if "SigCgt:" in status else 0
            if caught >> (signal.SIGUSR1 - 1) & 1 and STAGES.index(self.stage()) >= STAGES.index(stage):
                return
            time.sleep(0.01)

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
        left += [str(path) for path in launch.temporary.iterdir() if path.name != "log"]
        kept = (".lock", ".lock.holder", ".users", ".activations")
        left += [str(path) for path in results.rglob(".*") if has_guard and path.name not in kept]
        if not left or time.monotonic() > end:
            return left
        time.sleep(0.2)


class Row:
    """The tries of one row.

    Args:
        undisturbed: `content` of a sweep that nobody disturbed.
        seconds: that each stage of its launch took.
    """

    def __init__(self, name: str, executor: str, undisturbed: dict[str, str], seconds: dict[str, float], chance: random.Random) -> None:
        self.name, self.executor, self.undisturbed, self.seconds, self.chance = name, executor, undisturbed, seconds, chance
        self.goes_on = name in ("worker", "trial")
        self.stages, self.sweeps, self.problems = dict.fromkeys(STAGES, 0), 0, list[str]()
        self.longest_end, self.longest_clean, self.highest_load = 0.0, 0.0, 0.0

    @property
    def tries(self) -> int:
        return sum(self.stages.values())

    def run(self, tries: int) -> None:
        there = THERE.get(self.name, STAGES)
        launches = [tuple(stage for stage in there for _ in range(2))] if self.goes_on else [(stage,) for stage in there]
        while self.tries < tries:
            with tempfile.TemporaryDirectory(prefix="kills-") as directory:
                for stages in launches:
                    if self.tries < tries:
                        self.launch(Path(directory), stages[: tries - self.tries])
                self.launch(Path(directory), ())
                self.sweeps += 1

    def launch(self, results: Path, stages: Sequence[str]) -> None:
        """One launch, to its end.

        Args:
            stages: in which it is hit.
        """
        finished = content(results)
        with launched(results, self.executor) as launch:

            def problem(text: str) -> None:
                self.problems.append(f"try {self.tries} in {hit}: {text}\n{launch.said()[-1500:]}")
                sys.stderr.write(f"{self.problems[-1]}\n")

            hit = [found for stage in stages if (found := self.disturb(launch, stage))]
            began = time.monotonic()
            try:
                launch.process.wait(END_SECONDS if hit and not self.goes_on else 600)
            except subprocess.TimeoutExpired:
                problem("it does not end")
                return
            ended = time.monotonic()
            sys.stderr.write(f"{self.name} {self.executor}: {self.tries} tries, the last in {hit}, ended after {ended - began:.1f} s\n")
            if left := left_over(launch, results, has_guard=self.executor == "ray" or self.name != "SIGKILL"):
                problem(f"left {left}")
            if hit and not self.goes_on:
                self.longest_end = max(self.longest_end, ended - began)
                self.longest_clean = max(self.longest_clean, time.monotonic() - ended)
            self.highest_load = max(self.highest_load, os.getloadavg()[0])
            after, code = content(results), launch.process.returncode
            if lost := {run for run, digest in finished.items() if after.get(run) != digest}:
                problem(f"lost {lost}")
            # One run of the sweep diverges: 1. It may have ended before it was hit. A Ray that dies while it starts has not started: 2.
            expected = {1} if not hit or self.goes_on else {1, 2} if self.name in VICTIMS else {1, SIGNALS[self.name]}
            if "\nReport: " in launch.said():  # all is done, and Python, which is ending, no longer handles signals
                expected |= {-getattr(signal, self.name, 0)}
            if code not in expected or "Traceback" in launch.said():
                problem(f"exit code {code}")
            if not stages and after != self.undisturbed:
                problem("another result")

    def disturb(self, launch: Launch, stage: str) -> str:
        """Wait for the stage, and for some moment in it. Returns the stage in which it was hit; empty if there was no victim."""
        launch.wait_for(stage)
        time.sleep(self.chance.uniform(0, self.seconds[stage] / 2))  # it may take less the next time
        end = time.monotonic() + 60
        while launch.process.poll() is None and time.monotonic() < end:
            if victims := [launch.process] if self.name in SIGNALS else launch.victims(VICTIMS[self.name]):
                hit = launch.stage()
                with suppress(psutil.Error, ProcessLookupError):
                    self.chance.choice(victims).send_signal(getattr(signal, self.name if self.name in SIGNALS else "SIGKILL"))
                    self.stages[hit] += 1
                    return hit
            time.sleep(0.1)
        return ""

    def told(self) -> dict[str, Any]:
        return {
            "row": self.name, "executor": self.executor, "tries": self.tries, "stages": {name: n for name, n in self.stages.items() if n},
            "sweeps_finished": self.sweeps, "longest_end_s": round(self.longest_end, 1), "longest_clean_s": round(self.longest_clean, 1),
            "highest_load": round(self.highest_load, 1), "problems": self.problems,
        }  # fmt: skip


def undisturbed_launch(executor: str) -> tuple[dict[str, str], dict[str, float]]:
    """Its `content`, and the seconds of each stage."""
    seconds = {}
    with tempfile.TemporaryDirectory(prefix="kills-") as directory, launched(Path(directory), executor) as launch:
        launch.wait_for(STAGES[0])
        for stage, following in zip(STAGES, [*STAGES[1:], ""], strict=True):
            began = time.monotonic()
            if following:
                launch.wait_for(following)
            else:
                launch.process.wait()
            seconds[stage] = time.monotonic() - began
        found = content(Path(directory))
        assert len(found) == 5, launch.said()
    return found, seconds


def main() -> None:
    """Every row, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=", ".join([*SIGNALS, *VICTIMS]))
    parser.add_argument("--tries", type=int, default=int(os.environ.get("SAE_SWEEP_TRIES", "20")))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--executor", choices=("ray", "inline"), default="ray", help="inline: for signals only")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a shell lets what it starts in the background ignore it, and so would launches
    told = []
    undisturbed, seconds = undisturbed_launch(arguments.executor)
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
