import dataclasses

import pytest
from machine_costs import STEP_SECONDS, calibration

from sae_core.activations.language_model.model_work import ModelWork
from sweeps.definition.sweep import Sweep
from sweeps.planning.calibration import StageCost
from sweeps.planning.forecast import Forecast, Text, forecast, forecast_search, makespan

MODEL = ModelWork(block=1000.0, n_below=3, n_above=1, unembedding=500.0, d_vocab=50)


def runs():
    definition = {
        "name": "small",
        "activations": {"source": "synthetic", "d_in": 32, "train_tokens": 10_000, "eval_tokens": 1000},
        "sae": {"d_sae": 64},
        "train": {"batch_size": 1000},
        "architectures": {"topk": {"k": [2, 4, 8, 16]}},
    }
    return Sweep(**definition).runs()


def text(**changes):
    fields = {"d_in": 32, "train_tokens": 10_000, "eval_tokens": 1000, "n_shards": 4, "n_chunks": 1, "cached": False, "model": None}
    return Text(**{**fields, "saes": tuple(runs()), **changes})


def of(groups, texts, n_slots=2, **options):
    return forecast(groups, texts, lambda run: 32, calibration(), n_slots, **options)


def test_the_slot_that_is_free_first_takes_the_next_job():
    assert makespan([3, 2, 2, 1], 2) == 4  # 3 + 1 and 2 + 2
    assert makespan([5, 1], 4) == 5
    assert makespan([], 2) == 0


def test_a_grid_without_a_language_model():
    made = of([runs()[:3], runs()[3:]], [text()])
    # Three runs of ten steps in the first group, beside one in the other; no model is checked and loaded.
    assert made.train == 2.0 + 3 * 10 * STEP_SECONDS
    assert (made.harvest, made.rest) == (1.0 - 0.5, 4.0 - 1.5)
    # One chunk, so one slot: 4 SAEs.
    assert made.evaluate == pytest.approx(3.0 - 0.5 + 1000 * 4 * 1e-8 * 32 * 64)
    assert made.total == made.harvest + made.train + made.evaluate + made.rest


def test_a_language_model():
    made = of([runs()], [text(model=MODEL, n_chunks=8)])
    assert made.harvest == pytest.approx(1.0 + 10_000 * 3 * 1000 * 1e-6 / 2)
    assert made.rest == pytest.approx(4.0 + 11_000 * 1e-3)
    logits = 500 * 1e-6 + 50 * 1e-7
    baselines = 6 * 1000 * 1e-6 + 3 * logits  # blocks: 4 in the unchanged run, 1 above the hook point in each of two ablations
    per_sae = 1000 * 1e-6 + logits + 32 * 64 * 1e-8
    assert made.evaluate == pytest.approx(3.0 + 1000 * (baselines + 4 * per_sae) / 2)


def test_what_is_there_takes_no_time():
    made = of([], [text(model=MODEL, cached=True, saes=())])
    assert (made.harvest, made.train, made.evaluate, made.rest) == (0.0, 0.0, 0.0, 4.0)


def test_workers_that_have_nothing_to_harvest_start_for_the_evaluation():
    slow = calibration(stages=StageCost(harvest=9.0, train=2.0, evaluate=3.0, rest=4.0))
    first, later = (forecast([], [text(cached=cached)], lambda run: 32, slow, 2).evaluate for cached in (False, True))
    assert later - first == pytest.approx(9.0 - 3.0)


def test_a_search_makes_trials_of_mean_cost():
    one, two = [runs()[0]], runs()[:2]
    made = forecast_search([one, two], 4, text(), calibration(), 2)
    own = 1000 * 32 * 64 * 1e-8
    mean = 1.5 * (10 * STEP_SECONDS + own)
    assert made.train == pytest.approx(2.0 + 2 * mean)
    assert (made.harvest, made.evaluate, made.rest) == (0.5, 0.0, 2.5)
    assert forecast_search([one], 0, text(), calibration(), 2).train == 0.0


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(2.0, "5 s"), (47.0, "45 s"), (200.0, "3 min 20 s"), (3601.0, "1 h"), (180.0, "3 min"), (7500.0, "2 h 5 min"), (59.0, "1 min")],
)
def test_in_words(seconds, words):
    made = Forecast(harvest=seconds, train=0.0, evaluate=0.0, rest=0.0, n_slots=2, made_at="2026-11-20")
    assert made.line().startswith(f"about {words} on 2 slots: harvest ")


def test_the_parts_are_told_and_what_is_only_an_upper_bound():
    made = Forecast(harvest=18.0, train=140.0, evaluate=25.0, rest=17.0, n_slots=2, made_at="2026-11-20")
    assert made.line() == (
        "about 3 min 20 s on 2 slots: harvest 0:18, training 2:20, evaluation 0:25, start-up and report 0:17 "
        "(calibrated 2026-11-20 on this machine)"
    )
    assert dataclasses.replace(made, at_most=True).line().startswith("at most about 3 min 20 s")
