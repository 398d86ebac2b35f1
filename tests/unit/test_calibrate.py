import subprocess
from types import SimpleNamespace

import pytest
from machine_costs import calibration
from tiny_model import language_model_config

from sae_core.activations.language_model.model_work import ModelWork
from sae_core.config.run import ARCHITECTURES
from sae_core.errors import ConfigError
from sweeps.definition.sweep import Sweep
from sweeps.planning import calibrate as module
from sweeps.planning.calibrate import TINY_SWEEP, _model_cost, _prepare_cost, _run, _stages, _step_costs, calibrate
from sweeps.planning.calibration import Calibration, StageCost
from sweeps.planning.forecast import Forecast
from sweeps.planning.measuring import EVAL_D_SAE, PRECISIONS, SIZES, Measured, ModelSeconds
from sweeps.planning.step_cost import Step

WORK = ModelWork(block=1000.0, n_below=3, n_above=1, unembedding=500.0, d_vocab=50)
# 1e-6 s per multiply-add, 1e-5 s per logit, 1e-9 s per d_in d_sae with d_in = 10.
MODEL = ModelSeconds(load=2.0, harvest=3e-3, evaluate=1000e-6 + 500e-6 + 50e-5 + 1e-9 * 10 * EVAL_D_SAE, sae=1e-9)


def measured(seconds=0.01):
    steps = [Step(*size, l0=float(l0), dead=False) for size in SIZES for l0 in (1, 4, 16)]
    one = Measured(steps, [seconds] * len(steps), calibration_seconds=2.0, calibration_products=1e3)
    return {(name, precision): one for name in ARCHITECTURES for precision in PRECISIONS}


def test_the_parts_of_a_language_models_time():
    cost = _model_cost([MODEL], (3.0, 1e-4), WORK, d_in=10)
    assert (cost.check, cost.tokenise, cost.load, cost.sae) == (3.0, 1e-4, 2.0, 1e-9)
    assert cost.product == pytest.approx(1e-6)
    assert cost.logit == pytest.approx(1e-5)


def test_what_is_the_same_for_any_text_is_not_put_down_to_tokens(tmp_path, monkeypatch):
    clock = 0.0

    def source(tokens):
        def take(seconds):
            nonlocal clock
            clock += seconds

        config = SimpleNamespace(train_tokens=tokens, eval_tokens=100)
        return SimpleNamespace(config=config, check=lambda: take(5.0), prepare=lambda cache: take(2.0 + 1e-3 * (tokens + 100)))

    monkeypatch.setattr(module.time, "perf_counter", lambda: clock)
    check, tokenise = _prepare_cost(source(900), source(4900), tmp_path)
    assert (check, tokenise) == (pytest.approx(7.0), pytest.approx(1e-3))


def test_steps_of_all_slots_are_fitted_together():
    costs = _step_costs([measured(0.01), measured(0.03)])
    assert costs.keys() == set(ARCHITECTURES)
    cost = costs["topk"]["off"]
    assert 0.0099 <= cost.seconds(Step(128, 1024, 1024, 8.0, False)) <= 0.0301
    assert cost.calibration == pytest.approx(2e-3)


def test_stages_are_what_is_left_beside_the_work():
    predicted = Forecast(harvest=1.0, train=7.0, evaluate=2.0, rest=0.5, n_slots=2, made_at="2026-11-20")
    left = _stages(StageCost(harvest=5.0, train=6.0, evaluate=4.0, rest=10.0), predicted)
    assert left == StageCost(harvest=4.0, train=0.0, evaluate=2.0, rest=9.5)


def test_a_machine(tmp_path, monkeypatch):
    def small(config, cache):
        return language_model_config(tmp_path, train_tokens=config.train_tokens // 200)

    def prepare_cost(few, many, cache):  # not by the clock: of so short texts the longer may take less
        assert few.config.train_tokens < many.config.train_tokens
        return 3.0, 1e-4

    monkeypatch.setattr(module, "locate", small)
    monkeypatch.setattr(module, "_prepare_cost", prepare_cost)
    monkeypatch.setattr("sweeps.planning.plan.locate", small)
    monkeypatch.setattr(module, "_in_slots", lambda n_slots, activations, cache: [(measured(), MODEL)])
    monkeypatch.setattr(module, "_run", lambda tiny, results: StageCost(harvest=1e3, train=2e3, evaluate=3e3, rest=4e3))
    told = []
    made = calibrate(told.append)
    assert len(told) == 2
    assert made.steps.keys() == set(ARCHITECTURES)
    assert 900 < made.stages.harvest < 1e3 and 3e3 < made.stages.rest < 4e3
    assert Calibration.model_validate_json(made.model_dump_json()) == made
    assert made.machine == calibration().machine


def test_a_tiny_sweep_that_fails_is_told(tmp_path, monkeypatch):
    def failed(command, **options):
        assert command[-2:] == ["--results", str(tmp_path)]
        return subprocess.CompletedProcess(command, 2, stdout="", stderr="first\nno room")

    monkeypatch.setattr(subprocess, "run", failed)
    with pytest.raises(ConfigError, match="but got exit code 2: no room"):
        _run(Sweep.from_yaml("demo", list(TINY_SWEEP)), tmp_path)


def test_the_tiny_sweep_has_every_architecture():
    assert {run.sae.architecture for run in Sweep.from_yaml("demo", list(TINY_SWEEP)).runs()} == set(ARCHITECTURES)
