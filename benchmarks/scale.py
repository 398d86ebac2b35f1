"""What a sweep of thousands of SAEs costs beside its training: planning, scheduling, reading its results.

    python benchmarks/scale.py [plan|scheduler|tune|results]

plan       a grid of the size of Gemma Scope, 2,000 SAEs of 4 G tokens each, for 256 GPUs: no imports counted.
scheduler  2,000 trials on 256 slots: the scheduler's code (`ray_tune`'s searcher and scheduler, `Training`, progress, orders), called by a
           loop that stands in for Ray Tune, which would start 256 processes. Each trial reports 20 times and leaves a record.
tune       Ray Tune itself, on the cores there are: trials that report once and end.
results    records, status, table and report of 5,000 made-up runs.

Each part runs in a process of its own. Seconds are of its processor, so that other programs do not count, but for `tune` of the clock.
"""

import argparse
import io
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from large_sweeps import made_up_results
from measuring import RESULTS, write_result
from rich.console import Console

from sae_core.records import RunRecord
from sae_core.trainable import TrialConfig
from sweeps.definition.sweep import Sweep
from sweeps.execution.budget import Budget
from sweeps.execution.loggers import Loggers
from sweeps.execution.progress import SweepProgress
from sweeps.execution.training import Training
from sweeps.execution.work import Grid
from sweeps.planning.plan import plan
from sweeps.planning.rented import RentedCluster
from sweeps.storage.store import Store

N_SLOTS, N_REPORTS, N_REAL_TRIALS, N_MADE_UP = 256, 20, 200, 5_000
GRID: dict[str, Any] = {
    "name": "large",
    "activations": {"source": "synthetic", "d_in": 2304, "n_features": 4096, "n_active": 30.0, "eval_tokens": 2_000_000},
    "sae": {"d_sae": [16_384, 131_072]},
    "train": {"batch_size": 4096, "lr": [7e-5, 1e-4, 2e-4, 3e-4, 5e-4]},
    "target_l0": [10, 15, 20, 30, 40, 50, 60, 80, 100, 150],
    "architectures": {"jumprelu": {}, "topk": {}, "batchtopk": {}, "gated": {}},
    "seeds": [0, 1, 2, 3, 4],
}


def large_grid(train_tokens: int = 4_000_000_000) -> Sweep:
    """2,000 SAEs."""
    return Sweep(**{**GRID, "activations": {**GRID["activations"], "train_tokens": train_tokens}})


class Alone(Grid):
    """A grid whose runs train alone, without activations."""

    def begin(self, n_slots: int, slot_bytes: int | None) -> None:
        (shared,) = self.inputs
        self._left = [([run], shared) for run in self.examples]
        self.n_trials = self.n_runs = len(self.examples)
        self.n_tokens = sum(run.n_steps * run.train.batch_size for run in self.examples)


def time_plan(directory: Path) -> dict[str, Any]:
    """From the definition to the lines and the data of the plan."""
    cluster = RentedCluster(N_SLOTS, "h200", 3.5)
    start = time.process_time()
    planned = plan(large_grid(), directory, cluster.gpus, slot_bytes=cluster.slot_bytes, cluster=cluster)
    n_lines, n_runs = len(planned.lines()), len(planned.data()["runs"])
    return {"runs": n_runs, "lines": n_lines, "seconds": time.process_time() - start}


def _training(sweep: Sweep, directory: Path, progress: SweepProgress) -> Training:
    store = Store(directory / sweep.name)
    work = Alone(sweep, store)
    number = store.begin(sweep, work.runs())
    work.begin(N_SLOTS, None)
    progress.publish(store.paths.progress, number)
    progress.stage("train", work.n_tokens, "tokens")
    settings = TrialConfig(runs=[], cache="", directory=str(store.paths.runs), orders=str(store.paths.orders))
    return Training(work, store, progress, Loggers(sweep, store), settings, Budget(store.paths.orders))


def time_scheduler(directory: Path) -> dict[str, Any]:
    """A loop in place of Ray Tune's: fill the slots, let the oldest trial report and end, again."""
    from sweeps.execution import ray_tune

    with SweepProgress(Console(file=io.StringIO())) as progress:
        start = time.process_time()
        training = _training(large_grid(), directory, progress)
        begun = time.process_time() - start
        searcher = ray_tune._Searcher(training, SimpleNamespace(n_slots=N_SLOTS))  # type: ignore[arg-type]
        scheduler, running, most, trials, seconds = ray_tune._Scheduler(searcher), deque[str](), 0, 0, 0.0
        while True:
            start = time.process_time()
            suggested = searcher.suggest(name := f"{trials:05d}")
            if isinstance(suggested, dict):
                trials += 1
                running.append(name)
            most = max(most, len(running))
            if suggested is None:
                name = running.popleft()
                (run,) = searcher.trials[name].runs
                for step in range(1, N_REPORTS + 1):
                    told = {"progress": {run.run_id: step / N_REPORTS}, "host": "node", "loss": [0.5], "l0": [32.0]}
                    scheduler.on_trial_result(None, SimpleNamespace(trial_id=name), {"json": json.dumps(told)})
                seconds += time.process_time() - start
                # What a trial does in its own process.
                training.store.write_record(RunRecord(status="trained", **run.identity))
                start = time.process_time()
                searcher.on_trial_complete(name)
            seconds += time.process_time() - start
            if suggested is not None and not isinstance(suggested, dict):
                break
    overhead = {"ms_per_trial": 1e3 * seconds / trials, "begin_seconds": begun, "seconds": seconds}
    return {"trials": trials, "slots": most, "reports_per_trial": N_REPORTS, **overhead}


def instant(config: dict[str, Any]) -> None:
    """A trial that ends at once."""
    from ray import tune

    (run,) = config["trial"]["runs"]
    tune.report({"json": json.dumps({"progress": dict.fromkeys([run["run_id"]], 1.0) if "run_id" in run else {}})})


def time_tune(directory: Path) -> dict[str, Any]:
    """Ray Tune, with trials that do nothing."""
    from sweeps.execution.cluster import Cluster

    sweep = large_grid().model_copy(update={"seeds": [0]})
    with Cluster(address=None, cpus=1, gpus=0) as cluster, SweepProgress(Console(file=io.StringIO())) as progress:
        from sweeps.execution import ray_tune

        ray_tune.train_trial = instant  # type: ignore[assignment]
        training = _training(sweep, directory, progress)
        training.work._left = training.work._left[:N_REAL_TRIALS]  # type: ignore[attr-defined]
        start = time.perf_counter()
        ray_tune.train(training, cluster)
        seconds = time.perf_counter() - start
    return {"trials": N_REAL_TRIALS, "slots": cluster.n_slots, "ms_per_trial": 1e3 * seconds / N_REAL_TRIALS, "seconds": seconds}


def time_results(directory: Path) -> dict[str, Any]:
    """Records, status, table and report of many runs."""
    from analysis.report import write_report
    from analysis.table import load_table

    sweep = made_up_results(directory / "large", N_MADE_UP, 0)
    steps: dict[str, Callable[[], Any]] = {
        "records": lambda: Store(sweep).records(),
        "status": lambda: Store(sweep).status(),
        "table": lambda: load_table(sweep),
        "report": lambda: write_report([sweep]),
    }
    took = {}
    for name, step in steps.items():
        start = time.process_time()
        step()
        took[name] = time.process_time() - start
    return {"runs": N_MADE_UP, **took, "seconds": sum(took.values())}


PARTS = {"plan": time_plan, "scheduler": time_scheduler, "tune": time_tune, "results": time_results}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=PARTS)
    part = parser.parse_args().part
    if part is None:
        commands = {name: [sys.executable, __file__, name] for name in PARTS}
        told = {name: subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout for name, command in commands.items()}
        write_result(RESULTS, "scale", {name: json.loads(text) for name, text in told.items()})
        sys.stdout.write("".join(told.values()))
        return
    with tempfile.TemporaryDirectory() as directory:
        measured = PARTS[part](Path(directory))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    measured = {**measured, "peak_mib": round(peak)}
    rounded = {name: round(value, 2) if isinstance(value, float) else value for name, value in measured.items()}
    sys.stdout.write(json.dumps(rounded) + "\n")


if __name__ == "__main__":
    main()
