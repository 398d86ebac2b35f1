"""What Ray, records, progress and scheduling take, beside the same training in bare processes.

    python benchmarks/overhead.py                                      # four minutes on two cores

A sweep of SAEs of the demo's sizes on synthetic activations is run as `sae-sweep run`, and then its groups by `bare_slots.py`, a program
that only trains them. Overhead is what the launch takes more than that program, both from start to end, the stages harvest, evaluate and
report excepted, which do other work: the start and end of Ray, worker and trial processes, groups handed out, histories, exports, records,
progress. What Python and PyTorch take to be imported, the bare program needs too; a second number counts that as overhead as well.

Seconds of two programs that train for minutes differ by more than what is looked for here, because machines are shared. So the processor
time of the threads that train is read from /proc: what a slot's time is more than that, it does not train. In the middle of the training
stage this gives the part of the overhead that grows with training; over the whole of both programs the part that is the same for every
sweep. Seconds are those that the machine had: what its host gave to others, the steal time of /proc/stat, is taken off. What a training
thread itself spends on reports and records is not seen: 3 ms of 5 s, and 10 ms an SAE. A very small sweep comes first and is not
counted: it compiles what is not compiled yet.
"""

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from measuring import Spread, activations_of, console, parser, write_result
from numpy.typing import NDArray

from sae_core import provenance
from sweeps.definition.sweep import Sweep
from sweeps.execution.cluster import WORKER_ENVIRONMENT
from sweeps.storage.store import Store

D_IN = 128
SWEEP_SECONDS = 300.0
WARM_UP_TOKENS = 20_480
SAMPLE_SECONDS = 0.25
MIDDLE = 0.4, 0.9
"""Part of the training stage in which every slot trains."""
FIND_SECONDS = 0.5
"""Between two looks at every process for those that train, until all are found."""
LOOK_SECONDS = 5.0
"""Between two looks at every thread of those, which themselves take a hundredth of a second."""
TARGET = 0.05
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Program:
    """What a program that trains took, in seconds."""

    seconds: float
    """From its start to its end; here and below without what the host took."""
    stage: float
    """Its training stage."""
    trained: float
    """Processor time of training, a slot."""
    busy: float
    """Share of the slots' time that training had in the middle of the stage."""


@dataclass(frozen=True, slots=True)
class Round:
    launch: Program
    bare: Program
    work: dict[str, float]
    """Seconds of the launch's stages that do other work."""

    @property
    def growing(self) -> float:
        """Overhead that grows with training, as a part of it."""
        return self.bare.busy / self.launch.busy - 1

    def fixed(self, *, with_imports: bool) -> float:
        """Seconds that are the same for a sweep of any length."""
        launch = self.launch.seconds - sum(self.work.values()) - self.launch.trained
        # Slots do not end at the same time, in both.
        bare = (self.bare.stage if with_imports else self.bare.seconds) - self.bare.trained
        return launch - bare - self.growing * self.launch.trained


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--tokens", type=int, default=160_000, help="training tokens of the sweep")
    options.add_argument("--targets", type=int, nargs="+", default=[16, 64], help="L0s, at each of which there are six SAEs")
    options.add_argument("--rounds", type=int, default=3)
    arguments = options.parse_args()
    told = console()
    measure(WARM_UP_TOKENS, arguments.targets[:1])
    rounds = []
    for number in range(arguments.rounds):
        one = measure(arguments.tokens, arguments.targets)
        rounds.append(one)
        for name, program in (("launch", one.launch), ("bare processes", one.bare)):
            told.print(
                f"round {number + 1}, {name}: {program.seconds:.1f} s, training stage {program.stage:.1f} s, of which training "
                f"{program.trained:.1f} s, and {program.busy:.1%} in its middle"
            )
    fractions = {}
    growing = Spread.of([one.growing for one in rounds])
    told.print(f"growing: {growing.text('% of training', digits=1, scale=100)}")
    for name, with_imports in (("beside the bare program", False), ("Python and imports counted too", True)):
        fixed = Spread.of([one.fixed(with_imports=with_imports) for one in rounds])
        fractions[name] = Spread.of([one.growing + one.fixed(with_imports=with_imports) / SWEEP_SECONDS for one in rounds])
        told.print(f"{name}: fixed {fixed.text('s a launch', digits=1)}")
        told.print(f"  of {SWEEP_SECONDS:.0f} s of training: {fractions[name].text('%', digits=1, scale=100)} (target: below {TARGET:.0%})")
    write_result(arguments.out, "overhead", {"growing": growing, "of_five_minutes": fractions, "rounds": rounds})


def measure(tokens: int, targets: list[int]) -> Round:
    with tempfile.TemporaryDirectory(prefix="overhead-") as scratch:
        directory = Path(scratch)
        sweep = sweep_of(tokens, targets)
        definition = directory / "definition.yaml"
        definition.write_text(sweep.to_yaml(), encoding="utf-8")
        run = [sys.executable, "-m", "sweeps.cli", "run", str(definition), "--results", str(directory)]
        launch, lines = watch(run, "ray::ImplicitFunc")
        store = Store(directory / sweep.name)
        work = {stage["stage"]: stage["seconds"] for stage in store.facts()["stages"] if stage["stage"] != "train"}
        begin, end = span(lines, "report: ")
        work["report"] = end - begin
        _, cache = activations_of(sweep.runs()[0], directory)
        bare_slots = [sys.executable, str(Path(__file__).with_name("bare_slots.py")), str(definition), str(cache)]
        bare, _ = watch(bare_slots, "multiprocessing.spawn")
        return Round(launch, bare, work)


def sweep_of(tokens: int, targets: list[int]) -> Sweep:
    """Six architectures at some L0s, of the demo's sizes."""
    fields: dict[str, Any] = Sweep.from_yaml("demo", []).model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    fields |= {"name": "overhead", "target_l0": targets}
    fields["activations"] = {"source": "synthetic", "d_in": D_IN, "n_features": 512, "n_active": 16.0}
    fields["activations"] |= {"train_tokens": tokens, "eval_tokens": 4_096}
    return Sweep.model_validate({name: value for name, value in fields.items() if name not in ("model", "data")})


def watch(command: Sequence[str], slot: str) -> tuple[Program, list[tuple[float, str]]]:
    """Run a program that tells, on standard error and in lines with `train: `, when its training begins and ends.

    Args:
        slot: in the command line of the processes that train.

    Returns:
        What it took, and the lines it told, each with its time.

    Raises:
        RuntimeError: it failed.
    """
    started = time.perf_counter()
    # The environment of our training processes, for both.
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=os.environ | WORKER_ENVIRONMENT)
    samples: list[tuple[float, float, float]] = []
    ended = threading.Event()
    sampling = threading.Thread(target=_sample, args=(process.pid, slot, samples, ended))
    sampling.start()
    lines: list[tuple[float, str]] = []
    assert process.stderr is not None
    with process.stderr:
        lines += [(time.perf_counter(), line) for line in process.stderr]
    code = process.wait()
    finished = time.perf_counter()
    ended.set()
    sampling.join()
    if code:
        raise RuntimeError(f"{command[1]} must come to its end, but got exit code {code}:\n{''.join(line for _, line in lines)[-3000:]}")
    begin, end = span(lines, "train: ")
    n_slots = provenance.n_cores()

    times, trained, stolen = np.array(samples).T

    def per_slot(column: NDArray[np.float64], first: float, last: float) -> float:
        begins, ends = np.interp([first, last], times, column)
        return float(ends - begins) / n_slots

    def had(first: float, last: float) -> float:
        return last - first - per_slot(stolen, first, last)

    middle = [begin + part * (end - begin) for part in MIDDLE]
    busy = per_slot(trained, *middle) / had(*middle)
    return Program(had(started, finished), had(begin, end), per_slot(trained, begin, end), busy), lines


def span(lines: Sequence[tuple[float, str]], stage: str) -> tuple[float, float]:
    """When a stage was first and last told of."""
    at = [at for at, line in lines if line.startswith(stage)]
    return at[0], at[-1]


def _sample(program: int, slot: str, samples: list[tuple[float, float, float]], ended: threading.Event) -> None:
    """Note, again and again, the time, the processor time that the slots of a program have trained, and that the host gave to others.

    To look at every process, or every thread, takes a hundredth of a second of a core, so it is done seldom.
    """
    rays: dict[Path, float] = {}
    trained: dict[Path, float] = {}
    looked = 0.0
    while not ended.wait(SAMPLE_SECONDS):
        now = time.perf_counter()
        incomplete = len(rays) < provenance.n_cores()
        if look := now - looked >= (FIND_SECONDS if incomplete else LOOK_SECONDS):
            looked = now
            if incomplete:
                rays = dict.fromkeys(_slots(program, slot), 0.0)
        for process in list(rays):
            try:
                rays[process] = _rays(process) if look else rays[process]
                trained[process] = _processor_time(process) - rays[process]
            except OSError:  # it has ended
                del rays[process]
        samples.append((now, sum(trained.values()), _stolen()))


def _stolen() -> float:
    """Processor time that the host gave to others."""
    return int(Path("/proc/stat").read_text().split(maxsplit=9)[8]) / TICKS


def _slots(program: int, slot: str) -> list[Path]:
    """The processes of a program that train, as directories below /proc."""
    parents: dict[int, int] = {}
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parents[int(process.name)] = int(_stat(process)[1])
            if slot in (process / "cmdline").read_text():
                found.append(process)
    return [process for process in found if program in _ancestors(int(process.name), parents)]


def _ancestors(process: int, parents: dict[int, int]) -> Iterator[int]:
    while process in parents:
        process = parents[process]
        yield process


def _rays(process: Path) -> float:
    """Processor time of Ray's threads in a process of Ray: its main thread, and those that have a name of their own."""
    seconds = 0.0
    for thread in (process / "task").iterdir() if "ray::" in (process / "cmdline").read_text() else []:
        with suppress(OSError):  # it has ended
            if thread.name == process.name or not (thread / "comm").read_text().startswith("ray::"):
                seconds += _processor_time(thread)
    return seconds


def _processor_time(process: Path) -> float:
    user, system = _stat(process)[11:13]
    return (int(user) + int(system)) / TICKS


def _stat(process: Path) -> list[str]:
    """Fields of /proc/PID/stat after the name, which may have spaces: state, parent, ..."""
    return (process / "stat").read_text().rpartition(")")[2].split()


if __name__ == "__main__":
    main()
