"""A whole sweep, start to report, beside SAELens' `MultiSAETrainingRunner`, whose training alone is timed.

    python benchmarks/sweep.py                                                            # the embedded demo
    python benchmarks/sweep.py --set model.name=DIR --set data.dataset=FILE               # another model and text
    python benchmarks/sweep.py --fraction 1 --rounds 3                                    # SAELens' training in full, three times

Ours is `sae-sweep run` into an empty directory, a process of its own: checks, tokens, harvest, training on one core per slot,
calibration, export, evaluation of every SAE with CE on held-out text, table, figures, report. Theirs is `MultiSAETrainingRunner.run` with
the same SAEs on the same model, hook point, text and number of tokens, in its default float32 and with bfloat16 autocast, on all cores;
loading of the model, evaluation, files and logs are left out. Its sparsity coefficients are those our sweep starts from: its steps are
dense, so they cost the same whatever these are. It takes ten minutes and more, so by default it trains on `--fraction` of the tokens. Its
time for all of them is what it takes up to the end of its first step, and the mean of the others for each further one; both numbers are
told. It fills its buffer of activations again every 32 steps, which so few steps leave out. Programs take turns: a round holds ours, then
both of theirs.
"""

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from measuring import Spread, console, fastest, parser, ratio, run_sweep, write_result
from rich.table import Table
from worker import MISSING_PEER, Worker, peers_python

from sae_core import provenance
from sae_core.activations.language_model.dataset import documents
from sae_core.config.run import RunConfig
from sweeps.definition.local_data import locate
from sweeps.definition.sweep import Sweep

FIELDS = {
    "standard": ["l1_coefficient"],
    "gated": ["l1_coefficient"],
    "jumprelu": ["l0_coefficient"],
    "matryoshka_batchtopk": ["k", "matryoshka_widths"],
}
"""Architecture -> fields that a SAELens config has under the same name, beside d_sae; ["k"] for the others."""
SETTINGS = {"float32": False, "bfloat16": True}
"""SAELens' settings -> whether autocast is on."""


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--definition", default="demo")
    made.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="settings of the definition, as for `sae-sweep run`")
    made.add_argument("--fraction", type=float, default=0.05, help="of the tokens, for SAELens")
    made.add_argument("--batch-size", type=int, default=2048, help="SAELens' tokens per step")
    made.add_argument("--rounds", type=int, default=1)
    made.add_argument("--keep", type=Path, metavar="DIR", help="where to leave the results of our last sweep, in place of what is there")
    options = made.parse_args()
    screen, peer = console(), peers_python()
    runs = Sweep.from_yaml(options.definition, options.set).runs()
    settings = [part for setting in options.set for part in ("--set", setting)]
    versions = None
    with tempfile.TemporaryDirectory() as scratch:
        if peer is None:
            screen.print(MISSING_PEER)
        else:
            arguments = saelens_arguments(runs, Path(scratch), options.fraction, options.batch_size)
        seconds: dict[str, list[float]] = {}
        scaled: dict[str, list[float]] = {}
        for round_ in range(options.rounds):
            directory = Path(scratch) / f"results-{round_}"
            ours = run_sweep(options.definition, *settings, "--results", str(directory))
            seconds.setdefault("ours", []).append(ours)
            screen.print(f"ours: {seconds['ours'][-1]:.0f} s")
            for name, autocast in SETTINGS.items() if peer else ():
                with Worker(peer, "peers/saelens_sweep.py", threads=options.threads) as worker:
                    versions = worker.call("versions")
                    moments = worker.call("train", **arguments, autocast=autocast)
                seconds.setdefault(name, []).append(moments[-1])
                scaled.setdefault(name, []).append(for_all_steps(moments, runs[0].activations.train_tokens // options.batch_size))
                screen.print(f"SAELens {name}: {moments[-1]:.0f} s for {options.fraction:g} of the tokens")
        if options.keep:
            shutil.rmtree(options.keep, ignore_errors=True)
            shutil.move(directory, options.keep)
    results = told(runs, seconds, scaled, options.fraction)
    screen.print(table(results))
    screen.print(f"written: {write_result(options.out, 'sweep', results, peer=versions)}")


def saelens_arguments(runs: list[RunConfig], scratch: Path, fraction: float, batch_size: int) -> dict[str, Any]:
    """What SAELens is given: the same SAEs, and the training text as the parquet file of texts that it reads best."""
    activations: Any = locate(runs[0].activations, scratch)
    text = scratch / "text.parquet"
    pq.write_table(pa.table({"text": list(documents(activations.data, "train"))}), text)
    width = saelens_width(activations)
    return {
        "saes": {run.run_id: saelens_fields(run) | {"d_in": width} for run in runs},
        "model": activations.model.name,
        "hook_point": activations.model.hook_point,
        "context_size": activations.model.context_size,
        "text": str(text),
        "n_tokens": round(fraction * activations.train_tokens / batch_size) * batch_size,
        "batch_size": batch_size,
    }


def saelens_width(activations: Any) -> int:
    from sae_core.activations.language_model.source import LanguageModelSource

    return LanguageModelSource(activations).d_in


def saelens_fields(run: RunConfig) -> dict[str, Any]:
    """A SAELens config, as far as it is ours."""
    sae: Any = run.sae
    return {"architecture": sae.architecture, "d_sae": sae.d_sae} | {
        name: getattr(sae, name) for name in FIELDS.get(sae.architecture, ["k"])
    }


def for_all_steps(moments: Sequence[float], n_steps: int) -> float:
    """What `n_steps` steps take, from what some took.

    Args:
        moments: seconds from the start to each batch, in order, and to the end of the step on the last one.
        n_steps: as many as there are batches, or more.

    Raises:
        ValueError: fewer than two steps were made, so that none is like those to come.
    """
    n_made = len(moments) - 1
    if not 2 <= n_made <= n_steps:
        raise ValueError(f"there must be 2 to {n_steps} steps to go by, but got {n_made}. Change the fraction of the tokens.")
    return moments[-1] + (n_steps - n_made) * (moments[-1] - moments[1]) / (n_made - 1)


def told(runs: list[RunConfig], seconds: dict[str, list[float]], scaled: dict[str, list[float]], fraction: float) -> dict[str, Any]:
    """What was measured, and what it says."""
    ours = seconds["ours"]
    compared = {"default": ratio(scaled["float32"], ours), "best": ratio(scaled[fastest(scaled)], ours)} if scaled else {}
    return {
        "n_saes": len(runs),
        "train_tokens": runs[0].activations.train_tokens,
        "slots": provenance.n_cores(),
        "fraction": fraction,
        "seconds": seconds,
        "saelens_seconds_for_all_tokens": scaled,
        "ratios": compared,
    }


def table(results: dict[str, Any]) -> Table:
    """One row per program and setting."""
    made = Table(title=f"{results['n_saes']} SAEs x {results['train_tokens']:,} tokens, seconds")
    for column in ("", "measured", "all tokens", "ratio to ours"):
        made.add_column(column, justify="right" if column else "left")
    made.add_row("ours, start to report", *[Spread.of(results["seconds"]["ours"]).text()] * 2, "1")
    for name, scaled in results["saelens_seconds_for_all_tokens"].items():
        measured = f"{Spread.of(results['seconds'][name]).text()} for {results['fraction']:g} of the tokens"
        made.add_row(
            f"SAELens {name}, training alone", measured, Spread.of(scaled).text(), ratio(scaled, results["seconds"]["ours"]).text(digits=2)
        )
    return made


if __name__ == "__main__":
    main()
