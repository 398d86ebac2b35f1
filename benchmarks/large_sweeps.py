"""How long `sae-sweep plan`, `report` and `status` take for a sweep of 5,000 runs, and how long its report's page takes in Chromium.

    python benchmarks/large_sweeps.py plan|report|status|page [--runs N] [--documents N]

The definition is the demo's, with more learning rates, levels and seeds; nothing is trained. For `report`, `status` and `page` records,
histories and sums per document are made up, with the committed demo's configs. Each command runs in a process of its own, as a user's
does, and its wall-clock and processor time and peak memory are printed. `page` writes a report, opens it in headless Chromium and prints
in milliseconds how long it takes until the page is drawn, and what a filter, another axis, a point per run, a search and sorting take
until it is laid out again.
"""

import argparse
import dataclasses
import html
import json
import math
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from sae_core.documents import Ratio, StoredDocuments, write_documents
from sae_core.files import write_json, write_json_lines
from sae_core.records import RunRecord
from sweeps.definition.sweep import Sweep

ARCHITECTURES = ("standard", "gated", "topk", "batchtopk", "jumprelu")
SEEDS = 5
LEVELS = 8
RATIOS = {
    "l0": Ratio({"active": 1}, {"n_tokens": 1}),
    "fvu": Ratio({"error": 1}, {"variance": 1}),
    "delta_ce": Ratio({"added": 1}, {"n_tokens": 1}),
}
_MEASURE = """<script>addEventListener("load", () => {
  const seen = { load: performance.now() }, $ = (id) => document.getElementById(id);
  const timed = (name, act) => {
    const start = performance.now();
    act();
    document.body.offsetHeight;
    seen[name] = performance.now() - start;
  };
  const choose = (id, value) => { $(id).value = value; $(id).dispatchEvent(new Event("change")); };
  timed("filter", () => document.querySelector("#filters input").click());
  timed("axis", () => choose("y", "delta_ce"));
  timed("runs", () => choose("by", "run"));
  timed("search", () => { $("search").value = "gated"; $("search").dispatchEvent(new Event("input")); });
  timed("sort", () => $("by-fvu").click());
  document.body.append(Object.assign(document.createElement("pre"), { id: "seen", textContent: JSON.stringify(seen) }));
});</script>"""


def large_sweep(n_runs: int) -> Sweep:
    """The demo with five architectures, eight levels, five seeds, and as many learning rates as `n_runs` takes."""
    definition: dict[str, Any] = Sweep.from_yaml("demo").model_dump(exclude_unset=True)
    n_rates = n_runs // (len(ARCHITECTURES) * LEVELS * SEEDS)
    return Sweep(
        **{
            **definition,
            "name": "large",
            "train": {**definition["train"], "lr": [round(1e-3 * 1.05**i, 8) for i in range(n_rates)]},
            "target_l0": [4, 8, 12, 16, 24, 32, 48, 64],
            "architectures": {name: {} for name in ARCHITECTURES},
            "seeds": list(range(SEEDS)),
        }
    )


def timed(command: list[str]) -> dict[str, float]:
    """Run a command to its end.

    Returns:
        Its wall-clock and processor seconds, and the peak memory of the largest process so far.
    """
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": round(seconds, 1), "processor_s": round(processor, 1), "peak_mib": round(after.ru_maxrss / 1024)}


def time_plan(n_runs: int, n_documents: int) -> dict[str, float]:
    """`sae-sweep plan` of a sweep that was not launched yet."""
    del n_documents  # nothing is held out yet
    with tempfile.TemporaryDirectory() as directory:
        definition = Path(directory, "large.yaml")
        definition.write_text(large_sweep(n_runs).to_yaml(), encoding="utf-8")
        return timed([sys.executable, "-m", "sweeps.cli", "plan", str(definition), "--results", directory])


def time_report(n_runs: int, n_documents: int) -> dict[str, float]:
    """`sae-sweep report` of a sweep whose runs are all finished, and the size of its page."""
    with tempfile.TemporaryDirectory() as directory:
        sweep = made_up_results(Path(directory, "large"), n_runs, n_documents)
        measured = timed([sys.executable, "-m", "sweeps.cli", "report", str(sweep)])
        return {**measured, "page_mib": round((sweep / "report" / "report.html").stat().st_size / 2**20, 2)}


def time_page(n_runs: int, n_documents: int) -> dict[str, float]:
    """The report's page in Chromium, as a person would use it."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("chromium must be on the PATH, but is not. Install it.")
    with tempfile.TemporaryDirectory() as directory:
        sweep = made_up_results(Path(directory, "large"), n_runs, n_documents)
        subprocess.run([sys.executable, "-m", "sweeps.cli", "report", str(sweep)], check=True, stdout=subprocess.DEVNULL)
        page = sweep / "report" / "report.html"
        text = page.read_text(encoding="utf-8")
        page.write_text(text.replace("</body>", f"{_MEASURE}</body>"), encoding="utf-8")
        command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1280,900", "--dump-dom", page.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.DOTALL)
        assert found, done.stderr[-2000:]
        return {"page_mib": round(len(text.encode()) / 2**20, 2)} | {
            f"{name}_ms": round(value) for name, value in json.loads(html.unescape(found[1])).items()
        }


def time_status(n_runs: int, n_documents: int) -> dict[str, float]:
    """`sae-sweep status` of the same."""
    with tempfile.TemporaryDirectory() as directory:
        sweep = made_up_results(Path(directory, "large"), n_runs, n_documents)
        return timed([sys.executable, "-m", "sweeps.cli", "status", str(sweep)])


def made_up_results(sweep: Path, n_runs: int, n_documents: int) -> Path:
    """A sweep's directory with finished runs: copies of the committed demo's records with other levels, rates, seeds and values."""
    demo = Path(__file__).parents[1] / "results" / "reference" / "demo-seeds"
    known = {record.architecture: record for record in map(RunRecord.read, sorted(demo.glob("runs/*/record.json")))}
    planned = []
    for number in range(n_runs):
        architecture = sorted(known)[number % len(known)]
        place = number // len(known)
        seed, level, rate = place % SEEDS, 4 * 2 ** (place // SEEDS % 12 / 3), 1e-3 * 1.3 ** (place // SEEDS // 12)
        record = _made_up(known[architecture], f"{architecture}-{number:012x}", seed, level, rate)
        directory = sweep / "runs" / record.run_id
        checksum = write_json_lines(directory / "history.jsonl", _history(level))
        made_up = _documents(record, number, n_documents) if n_documents else None
        documents = write_documents(directory / "documents.parquet", made_up) if made_up else None
        dataclasses.replace(record, history_checksum=checksum, documents_checksum=documents).write(directory / "record.json")
        names = ("run_id", "architecture", "sparsity_parameter", "sparsity_value", "seed", "config")
        planned.append({name: getattr(record, name) for name in names})
    write_json(sweep / "sweep.json", {"name": sweep.name, "runs": planned})
    return sweep


def _made_up(record: RunRecord, run_id: str, seed: int, level: float, rate: float) -> RunRecord:
    noise = random.Random(run_id)
    config = json.loads(json.dumps(record.config))
    config["sae"]["target_l0"], config["train"]["lr"], config["seed"] = level, rate, seed
    loss = 2 / level * math.exp(noise.gauss(0, 0.03)) * (1 + 0.2 * abs(math.log(rate / 4e-3)))
    values = {"l0": level * math.exp(noise.gauss(0, 0.02)), "fvu": loss, "delta_ce": 2 * loss, "ce_loss_recovered": 1 - loss / 4}
    return dataclasses.replace(record, run_id=run_id, seed=seed, config=config, metrics=record.metrics | values)


def _documents(record: RunRecord, number: int, n_documents: int) -> StoredDocuments:
    """Sums per document that add up to the record's metrics; documents differ in length and by 30 %, and by 10 % for each run."""
    text, own = np.random.default_rng(0), np.random.default_rng(number)
    n_tokens = np.floor(text.uniform(100, 900, n_documents))
    shared = np.exp(text.normal(0, 0.3, n_documents))
    sums = {"n_tokens": n_tokens, "variance": n_tokens}
    for name, metric in (("active", "l0"), ("error", "fvu"), ("added", "delta_ce")):
        parts = n_tokens * shared * np.exp(own.normal(0, 0.1, n_documents))
        sums[name] = parts * (float(record.metrics[metric] or 0) * n_tokens.sum() / parts.sum())
    return StoredDocuments(np.arange(n_documents), sums, RATIOS)


def _history(level: float) -> list[dict[str, float]]:
    """A hundred rows, as training leaves them."""
    return [
        {
            "step": row * 10,
            "tokens": row * 10_240,
            "loss": 100 * math.exp(-row / 20) + 3,
            "mse_loss": 90 * math.exp(-row / 20) + 3,
            "l0": level + 400 * math.exp(-row / 10),
            "lr": 1e-3,
        }
        for row in range(1, 101)
    ]


COMMANDS = {"plan": time_plan, "report": time_report, "status": time_status, "page": time_page}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("--runs", type=int, default=5_000)
    parser.add_argument("--documents", type=int, default=200)
    arguments = parser.parse_args()
    measured = COMMANDS[arguments.command](arguments.runs, arguments.documents)
    sys.stdout.write(json.dumps({**vars(arguments), **measured}) + "\n")


if __name__ == "__main__":
    main()
