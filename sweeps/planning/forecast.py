"""How long a sweep will take on a calibrated machine: the work of its stages, divided over slots, and what they cost beside it."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from sae_core.activations.language_model.model_work import ModelWork
from sae_core.config.run import RunConfig
from sae_core.training.loop import CALIBRATION_TOKENS
from sweeps.planning.calibration import Calibration
from sweeps.planning.grouping import Width
from sweeps.planning.step_cost import run_seconds

_BASELINES = 3
"""Times that logits are computed for each held-out token beside those of the SAEs: unchanged, zero- and mean-ablated."""


@dataclass(frozen=True, slots=True)
class Text:
    """The activations that runs of a sweep share, as far as time goes."""

    d_in: int
    train_tokens: int
    eval_tokens: int
    n_shards: int
    n_chunks: int
    cached: bool
    """Whether the training activations are there already."""
    model: ModelWork | None
    """None for sources without a language model."""
    saes: tuple[RunConfig, ...]
    """Runs to evaluate."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """Seconds, by stage."""

    harvest: float
    train: float
    """Of a search: its trials, evaluation included."""
    evaluate: float
    rest: float
    """Start-up, tokenising and report."""
    n_slots: int
    made_at: str
    """Date of the calibration, ISO."""
    at_most: bool = False
    """Whether runs may be stopped early."""

    @property
    def total(self) -> float:
        return self.harvest + self.train + self.evaluate + self.rest

    def line(self) -> str:
        """The forecast in words."""
        parts = {"harvest": self.harvest, "training": self.train, "evaluation": self.evaluate, "start-up and report": self.rest}
        shown = ", ".join(f"{name} {_clock(seconds)}" for name, seconds in parts.items())
        about = "at most about" if self.at_most else "about"
        return f"{about} {_duration(self.total)} on {self.n_slots} slots: {shown} (calibrated {self.made_at} on this machine)"


def forecast(
    groups: Sequence[Sequence[RunConfig]],
    texts: Sequence[Text],
    d_in: Width,
    calibration: Calibration,
    n_slots: int,
    *,
    at_most: bool = False,
) -> Forecast:
    """How long a grid will take.

    Args:
        groups: what is left to train, in the order in which it starts.
        texts: the activations with something left to do.
        d_in: width of a run's activations.
        n_slots: groups that train at the same time.
        at_most: whether runs may be stopped early.
    """
    costs = [sum(_run_seconds(run, d_in(run), calibration) for run in group) for group in groups]
    return Forecast(
        harvest=sum(_harvest(text, calibration, n_slots) for text in texts),
        train=makespan(costs, n_slots) + calibration.stages.train if groups else 0.0,
        evaluate=sum(_evaluate(text, calibration, n_slots) for text in texts),
        rest=_rest(texts, calibration),
        n_slots=n_slots,
        made_at=calibration.made_at,
        at_most=at_most,
    )


def forecast_search(
    trials: Sequence[Sequence[RunConfig]], n_trials: int, text: Text, calibration: Calibration, n_slots: int, *, at_most: bool = False
) -> Forecast:
    """How long a search will take: as many trials as are left, each of the mean cost of some that it might make.

    Args:
        trials: runs of such trials, one list each.
        at_most: whether runs may be stopped early.
    """
    per_token = [_baseline_seconds(text, calibration) + sum(_sae_seconds(run, text, calibration) for run in runs) for runs in trials]
    training = [sum(_run_seconds(run, text.d_in, calibration) for run in runs) for runs in trials]
    mean = (sum(training) + text.eval_tokens * sum(per_token)) / len(trials)
    load = calibration.model.load if text.model else 0.0
    return Forecast(
        harvest=_harvest(text, calibration, n_slots) if n_trials else 0.0,
        train=calibration.stages.train + load + makespan([mean] * n_trials, n_slots) if n_trials else 0.0,
        evaluate=0.0,
        rest=_rest([text], calibration),
        n_slots=n_slots,
        made_at=calibration.made_at,
        at_most=at_most,
    )


def makespan(costs: Sequence[float], n_slots: int) -> float:
    """When the last of some jobs ends, each begun in the order given by the first slot that is free."""
    slots = [0.0] * n_slots
    for cost in costs:
        heapq.heapreplace(slots, slots[0] + cost)
    return max(slots)


def _run_seconds(run: RunConfig, d_in: int, calibration: Calibration) -> float:
    return run_seconds(run, d_in, calibration.steps[run.sae.architecture][run.train.autocast], CALIBRATION_TOKENS)


def _harvest(text: Text, calibration: Calibration, n_slots: int) -> float:
    if text.cached:
        return 0.0
    blocks = text.model.n_below * text.model.block if text.model else 0.0
    work = text.train_tokens * blocks * calibration.model.product
    return _start(text, calibration.stages.harvest, calibration) + work / min(n_slots, text.n_shards)


def _evaluate(text: Text, calibration: Calibration, n_slots: int) -> float:
    if not text.saes:
        return 0.0
    per_token = _baseline_seconds(text, calibration) + sum(_sae_seconds(run, text, calibration) for run in text.saes)
    stages = calibration.stages
    start = max(stages.harvest, stages.evaluate) if text.cached else stages.evaluate  # workers that harvested are there already
    return _start(text, start, calibration) + text.eval_tokens * per_token / min(n_slots, text.n_chunks)


def _start(text: Text, seconds: float, calibration: Calibration) -> float:
    """Of a stage; its calibration loaded a language model."""
    return seconds if text.model else max(0.0, seconds - calibration.model.load)


def _rest(texts: Sequence[Text], calibration: Calibration) -> float:
    """Start-up and report; the calibration checked a language model, which is also done where nothing is left."""
    of_model = [text for text in texts if text.model]
    tokens = sum(text.train_tokens + text.eval_tokens for text in of_model if not text.cached)
    unneeded = calibration.model.check if texts and not of_model else 0.0
    return max(0.0, calibration.stages.rest - unneeded) + tokens * calibration.model.tokenise


def _baseline_seconds(text: Text, calibration: Calibration) -> float:
    """Per held-out token, what all SAEs share."""
    if text.model is None:
        return 0.0
    n_blocks = text.model.n_below + _BASELINES * text.model.n_above
    return n_blocks * text.model.block * calibration.model.product + _BASELINES * _logit_seconds(text.model, calibration)


def _sae_seconds(run: RunConfig, text: Text, calibration: Calibration) -> float:
    """Per held-out token, what an SAE adds."""
    own = text.d_in * run.sae.d_sae * calibration.model.sae
    if text.model is None:
        return own
    blocks = text.model.n_above * text.model.block * calibration.model.product
    return own + blocks + _logit_seconds(text.model, calibration)


def _logit_seconds(model: ModelWork, calibration: Calibration) -> float:
    """Of a token."""
    return model.unembedding * calibration.model.product + model.d_vocab * calibration.model.logit


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


def _duration(seconds: float) -> str:
    """In words, as exactly as a forecast may be."""
    step = 5 if seconds < 3600 else 60
    hours, rest = divmod(max(step, step * round(seconds / step)), 3600)
    counts = {"h": hours, "min": rest // 60, "s": rest % 60}
    return " ".join(f"{count} {unit}" for unit, count in counts.items() if count)
