"""How long a launch takes: from finished runs on the same hardware, or from a few steps of each setting, taken now.

Start-up and report, some ten seconds, are not counted. A time that is not known is NaN.
"""

import heapq
import json
import math
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from sae_core import provenance
from sae_core.config.run import RunConfig
from sae_core.costs import training_flops
from sae_core.errors import ConfigError
from sae_core.layout import SweepPaths
from sae_core.records import RunRecord
from sae_core.validation import at
from sweeps.planning.inputs import SharedActivations
from sweeps.storage.store import Store

BASELINES = 3
"""Passes over held-out text beside those of the SAEs: unchanged, zero- and mean-ablated."""
_NEAREST = 3
"""Finished runs whose median is taken."""
_TOKENS, _FLOPS, _LEAST_STEPS, _MOST_STEPS = 8_192, 1e13, 4, 24
"""What is measured: tokens harvested, and steps of each setting, as many as these floating-point operations allow."""
_SETTLING = {"lr": 3e-2, "lr_warm_up": 0.0, "lr_decay": 0.0, "sparsity_warm_up": 0.0}
"""Where a coefficient sets the sparsity, most latents are active at first: with a high learning rate few steps show the rest."""


@dataclass(slots=True)
class Costs:
    """Seconds of the parts of a launch."""

    origin: str
    """What they are taken from."""
    train: Callable[[RunConfig, int], float]
    """Seconds of a run, with its `SharedActivations.mean_width`, in a slot."""
    harvest: dict[str, float] = field(default_factory=dict)
    """Model -> seconds per training token, on all slots."""
    evaluate: dict[str, float] = field(default_factory=dict)
    """Model -> seconds per held-out token and pass, on all slots. An SAE takes one pass, the baselines `BASELINES`."""

    def harvest_seconds(self, shared: SharedActivations) -> float:
        """All training activations."""
        return shared.source.config.train_tokens * self.harvest.get(model_key(shared.config), math.nan)

    def evaluate_seconds(self, shared: SharedActivations, n_saes: int) -> float:
        """All held-out text, for some SAEs."""
        return shared.source.config.eval_tokens * self.evaluate.get(model_key(shared.config), math.nan) * (n_saes + BASELINES)

    def in_words(self, parts: Mapping[str, float]) -> str:
        """The sum of the known parts, each of them, and where they come from."""
        shown = {name: "not known" if math.isnan(part) else str(timedelta(seconds=round(part))) for name, part in parts.items()}
        total = timedelta(seconds=round(sum(part for part in parts.values() if not math.isnan(part))))
        return f"about {total} ({', '.join(f'{name} {part}' for name, part in shown.items())}), predicted from {self.origin}"


def makespan(costs: Sequence[float], n_slots: int) -> float:
    """When the last of some jobs ends, each begun in the order given by the first slot that is free."""
    if math.isnan(sum(costs)):
        return math.nan
    slots = [0.0] * n_slots
    for cost in costs:
        heapq.heapreplace(slots, slots[0] + cost)
    return max(slots)


def of_finished_runs(results: Path) -> Costs | None:
    """Costs of what ran on this hardware before; None if nothing did.

    Args:
        results: a directory of sweeps.
    """
    runs: list[RunRecord] = []
    costs, hardware, names = Costs("", lambda run, width: _train_seconds(run, width, runs)), provenance.hardware(), []
    for directory in sorted(results.iterdir()) if results.is_dir() else []:
        if not SweepPaths(directory).facts.is_file():
            continue
        store, launches = Store(directory), defaultdict(list)
        try:
            records = store.records().values()
        except ConfigError:  # a newer version wrote them
            continue
        for record in records:
            if record.hardware == hardware and record.status == "finished" and _is_complete(record):
                runs.append(record)
                launches[record.launch].append(record)
        names += [directory.name] if launches else []
        for launch, made in launches.items():
            n_saes = sum(1 + len(store.paths.variant_ids(record.run_id)) for record in made)
            _add_stages(costs, store.facts(), launch, made, n_saes)
    costs.origin = f"{len(runs)} finished runs on this hardware ({', '.join(names)})"
    return costs if runs else None


def _is_complete(record: RunRecord) -> bool:
    """Whether a record has what a prediction needs: earlier versions wrote less."""
    fields = ("activations.train_tokens", "activations.eval_tokens", "sae.d_sae", "train.batch_size")
    return bool(record.d_in and record.train_seconds and record.train_tokens) and all(at(record.config, field) for field in fields)


def _add_stages(costs: Costs, facts: Mapping[str, Any], launch: int | None, records: Sequence[RunRecord], n_saes: int) -> None:
    """Add what the stages of a launch took, if it used one kind of activations."""
    config = records[0].config["activations"]
    if launch is None or any(record.config["activations"] != config for record in records):
        return
    seconds = {stage["stage"]: stage["seconds"] or 0.0 for stage in facts.get("stages") or [] if stage.get("launch") == launch - 1}
    key = model_key(config)
    if seconds.get("harvest"):  # one that was cached takes next to nothing
        costs.harvest[key] = max(costs.harvest.get(key, 0.0), seconds["harvest"] / config["train_tokens"])
    if seconds.get("evaluate"):
        costs.evaluate[key] = seconds["evaluate"] / config["eval_tokens"] / (n_saes + BASELINES)


def _train_seconds(run: RunConfig, width: int, records: Sequence[RunRecord]) -> float:
    """From the finished runs of the same architecture that are nearest in size, scaled by floating-point operations."""

    def sizes(record: RunRecord) -> list[tuple[float, float]]:
        sae, train = record.config["sae"], record.config["train"]
        ours = width, run.sae.d_sae, run.n_tokens, run.train.batch_size, run.sae.expected_l0
        theirs = _mean_width(record.d_in, record.d_out), sae["d_sae"], record.train_tokens, train["batch_size"], record.metrics.get("l0")
        return [(one, float(other or one)) for one, other in zip(ours, theirs, strict=True)]

    same = [record for record in records if record.architecture == run.sae.architecture]
    nearest = sorted(same, key=lambda record: sum(abs(math.log(one / other)) for one, other in sizes(record)))[:_NEAREST]
    seconds = [(record.train_seconds or 0.0) * math.prod(one / other for one, other in sizes(record)[:3]) for record in nearest]
    return statistics.median(seconds) if seconds else math.nan


def measured(inputs: Sequence[SharedActivations], n_slots: int, device: str) -> Costs:
    """Costs of a few steps of each setting, a part of a shard and a held-out chunk, in this process on one core, or on a GPU.

    Args:
        device: of a slot, as torch names it.

    Raises:
        ConfigError: the source cannot make activations.
    """
    import torch

    torch.set_num_threads(1)
    steps: dict[Hashable, float] = {}
    costs = Costs("steps of each setting taken now", lambda run, width: run.n_steps * steps[_setting(run, width)])
    for shared in inputs:
        with tempfile.TemporaryDirectory() as cache:
            _measure(shared, Path(cache), device, n_slots, costs, steps)
    return costs


def _measure(shared: SharedActivations, cache: Path, device: str, n_slots: int, costs: Costs, steps: dict[Hashable, float]) -> None:
    from sae_core.activations.source import source_of
    from sae_core.evaluation import evaluate_chunk

    source, config = shared.source, shared.source.config
    n_shards, n_chunks = -(-config.train_tokens // source.shard_tokens), -(-config.eval_tokens // source.chunk_tokens)
    few = {"train_tokens": min(config.train_tokens, _TOKENS), "eval_tokens": min(config.eval_tokens, source.chunk_tokens)}
    source = source_of({**config.model_dump(mode="json"), **few}, device)
    source.prepare(cache)
    x = source.shard(cache, 0)  # loads what it needs, too
    settings: dict[Hashable, list[RunConfig]] = defaultdict(list)
    for run in shared.runs:
        settings[_setting(run, shared.mean_width)].append(run)
    began = _now(device)
    source.shard(cache, 0)
    costs.harvest[model_key(shared.config)] = (_now(device) - began) / len(x) / min(n_slots, n_shards)
    saes: dict[str, Any] = {}
    for setting, runs in settings.items():
        steps[setting], sae = _step_seconds(sorted(runs, key=lambda run: run.sae.expected_l0)[len(runs) // 2], (x, source.d_in), device)
        saes |= {str(setting): sae} if sae else {}
    began = _now(device)
    mean = x.mean(dim=0)[-(source.d_out or source.d_in) :]
    chunk = source.eval_chunk(cache, 0, mean)
    evaluate_chunk(chunk, saes, mean=mean)
    costs.evaluate[model_key(shared.config)] = (_now(device) - began) / len(chunk.x) / (len(saes) + BASELINES) / min(n_slots, n_chunks)


def _step_seconds(run: RunConfig, rows: tuple[Any, int], device: str) -> tuple[float, Any]:
    """Seconds of a training step, and the SAE after some of them; None if it diverged.

    Args:
        rows: of a shard, and their first values that are the input.
    """
    from sae_core.activations.stream import TensorStream
    from sae_core.training.loop import train_run

    (x, d_in), pairs = rows, {}
    if x.shape[1] > d_in:
        x, pairs = x[:, :d_in], {"target": x[:, d_in:]}
    train = run.train.model_copy(update=_SETTLING if run.sae.has_coefficient else {})
    per_step = training_flops(run.sae.architecture, x.shape[1], run.sae.d_sae, train.batch_size)
    n_steps = int(min(max(_FLOPS / per_step, _LEAST_STEPS), _MOST_STEPS))
    stream = TensorStream(x, **pairs, batch_size=train.batch_size, normalize_activations=train.normalize_activations, device=device)
    times = [_now(device)]
    few = run.model_copy(update={"train": train.model_copy(update={"tokens": n_steps * train.batch_size, "kl_stage": None})})
    result = train_run(few, stream, device=device, on_step=lambda _: times.append(_now(device)))
    counted = times[-(len(times) // 2 + 1) :]
    return (counted[-1] - counted[0]) / (len(counted) - 1), result.exported() if result.sae else None


def _now(device: str) -> float:
    """Seconds on a clock, once the device has done what it was given."""
    if device != "cpu":
        import torch

        torch.cuda.synchronize(device)
    return time.perf_counter()


def _mean_width(d_in: int | None, d_out: int | None) -> float:
    """As `SharedActivations.mean_width`."""
    return ((d_in or 0) + (d_out or d_in or 0)) / 2


def _setting(run: RunConfig, width: int) -> Hashable:
    """What the time of a step depends on."""
    return run.sae.architecture, width, run.sae.d_sae, run.train.batch_size, run.train.autocast


def model_key(activations: Mapping[str, Any]) -> str:
    """A config of activations in JSON, without its text."""
    kept = {name: value for name, value in activations.items() if name not in ("data", "train_tokens", "eval_tokens")}
    return json.dumps(kept, sort_keys=True)
