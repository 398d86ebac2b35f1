"""Measuring a machine, for `sae-sweep calibrate`.

Work is measured in as many processes at a time as there are slots, so that they compete for memory as they do in a sweep. What a sweep
costs beside its work is what a tiny one takes longer than predicted.
"""

import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sae_core import provenance
from sae_core.activations.language_model.model_work import ModelWork, model_work
from sae_core.activations.source import ActivationSource
from sae_core.config.run import SOURCES
from sae_core.errors import ConfigError
from sweeps.definition.local_data import locate
from sweeps.definition.sweep import Sweep
from sweeps.execution.cluster import WORKER_ENVIRONMENT
from sweeps.planning.calibration import Calibration, ModelCost, StageCost, machine
from sweeps.planning.forecast import Forecast
from sweeps.planning.measuring import EVAL_D_SAE, Measured, ModelSeconds, SlotMeasurements, measure_slot
from sweeps.planning.plan import plan
from sweeps.planning.step_cost import StepCost
from sweeps.storage.store import Store

TINY_SWEEP = (
    "sae.d_sae=64",
    "architectures.matryoshka_batchtopk.matryoshka_widths=[16, 32]",
    "target_l0=[8]",
    "data.train_tokens=131_072",
    "data.eval_tokens=8192",
)
"""The demo, so small that most of its time is start-up, records and report, and large enough to start a worker in each of several slots."""
_NOTHING = StageCost(harvest=0, train=0, evaluate=0, rest=0)


def calibrate(note: Callable[[str], None]) -> Calibration:
    """Measure this machine, with nothing else at work on it.

    Args:
        note: is told what is measured.

    Raises:
        ConfigError: the tiny sweep did not come to its end.
    """
    n_slots = provenance.n_cores()
    tiny = Sweep.from_yaml("demo", list(TINY_SWEEP))
    with tempfile.TemporaryDirectory() as scratch:
        results = Path(scratch)
        config: Any = locate(tiny.runs()[0].activations, results / ".activations")
        source, cache = SOURCES[config.source](config), results / "prepared"
        whole = SOURCES[config.source](locate(Sweep.from_yaml("demo", []).runs()[0].activations, results / ".activations"))
        prepare = _prepare_cost(source, whole, cache)
        note(f"Measuring training steps of every architecture, in {n_slots} processes ...")
        slots = _in_slots(n_slots, config.model_dump(mode="json"), cache)
        work = Calibration(
            made_at=datetime.now(UTC).date().isoformat(),
            machine=machine(),
            n_slots=n_slots,
            steps=_step_costs([steps for steps, _ in slots]),
            model=_model_cost([model for _, model in slots], prepare, model_work(config.model), source.d_in),
            stages=_NOTHING,
        )
        note("Running a tiny sweep, for what start-up and report take ...")
        predicted = plan(tiny, results, n_slots, work).forecast
        assert predicted is not None, "there is a calibration"
        return work.model_copy(update={"stages": _stages(_run(tiny, results), predicted)})


def _prepare_cost(few: ActivationSource, many: ActivationSource, cache: Path) -> tuple[float, float]:
    """Seconds of checking a model and opening its text, and of tokenising a token.

    Args:
        few, many: the same model and text, with two numbers of tokens.
        cache: where those of `few` are kept.
    """
    first = _seconds(lambda: (few.check(), few.prepare(cache)))
    with tempfile.TemporaryDirectory() as again:  # nothing is left to import and to check
        of_few = _seconds(lambda: few.prepare(Path(again) / "few"))
        of_many = _seconds(lambda: many.prepare(Path(again) / "many"))
    n_few, n_many = (source.config.train_tokens + source.config.eval_tokens for source in (few, many))
    tokenise = max(0.0, of_many - of_few) / (n_many - n_few)
    return max(0.0, first - n_few * tokenise), tokenise


def _in_slots(n_slots: int, activations: dict[str, Any], cache: Path) -> list[SlotMeasurements]:
    """`measure_slot` in each slot at the same time, in processes like those that train."""
    os.environ.update(WORKER_ENVIRONMENT)
    with ProcessPoolExecutor(n_slots, mp_context=multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(measure_slot, [activations] * n_slots, [str(cache)] * n_slots))


def _step_costs(slots: Sequence[dict[tuple[str, str], Measured]]) -> dict[str, dict[str, StepCost]]:
    """Fitted to what all slots measured."""
    costs: dict[str, dict[str, StepCost]] = {}
    for architecture, precision in slots[0]:
        together = Measured()
        for slot in slots:
            together.add(slot[architecture, precision])
        calibration = together.calibration_seconds / max(together.calibration_products, 1.0)
        costs.setdefault(architecture, {})[precision] = StepCost.fit(together.steps, together.seconds, calibration)
    return costs


def _model_cost(slots: Sequence[ModelSeconds], prepare: tuple[float, float], work: ModelWork, d_in: int) -> ModelCost:
    """The parts of what was measured: what is left of an evaluation beside its matrix products is put down to logits.

    Args:
        prepare: what `_prepare_cost` returns.
    """
    load, harvest, evaluate, sae = (statistics.median(getattr(slot, name) for slot in slots) for name in ModelSeconds.__slots__)
    product = harvest / (work.n_below * work.block)
    logits = evaluate - product * (work.n_above * work.block + work.unembedding) - sae * d_in * EVAL_D_SAE
    logit = max(0.0, logits) / work.d_vocab
    check, tokenise = prepare
    return ModelCost(check=check, tokenise=tokenise, load=load, product=product, logit=logit, sae=sae)


def _run(tiny: Sweep, results: Path) -> StageCost:
    """Launch the tiny sweep as a user would. Returns what its stages took.

    Raises:
        ConfigError: it failed.
    """
    settings = [part for setting in TINY_SWEEP for part in ("--set", setting)]
    command = [sys.executable, "-m", "sweeps.cli", "run", "demo", *settings, "--results", str(results)]
    began = time.perf_counter()
    done = subprocess.run(command, cwd=Path(__file__).resolve().parents[2], capture_output=True, text=True, check=False)
    total = time.perf_counter() - began
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [""])[-1]
        raise ConfigError(f"the demo must run for a calibration, but got exit code {done.returncode}: {reason} Try `sae-sweep run demo`.")
    seconds = {one["stage"]: float(one["seconds"]) for one in Store(results / tiny.name).facts()["stages"]}
    return StageCost(**seconds, rest=total - sum(seconds.values()))


def _stages(measured: StageCost, predicted: Forecast) -> StageCost:
    """What the stages took beside the work that was predicted."""
    left = {name: max(0.0, seconds - getattr(predicted, name)) for name, seconds in measured}
    return StageCost(**left)


def _seconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
