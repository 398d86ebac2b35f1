"""Every architecture reaches the L0 it is asked for: run from the registry, so a new one is tested without a line here."""

from functools import cache
from pathlib import Path

import pytest
import torch
from small_runs import D_IN, D_SAE, heldout, run_of, stream_of

from sae_core.config.run import ARCHITECTURES, ArchitectureConfig, RunConfig
from sae_core.training.loop import TrainResult, train_group

NAMES = list(ARCHITECTURES)
TARGETS = (4.0, 8.0)


def aimed(name: str, target: float, **fields: object) -> ArchitectureConfig:
    """The architecture's example, asked for an L0 as a definition does it."""
    cls = ARCHITECTURES[name].Config
    config: ArchitectureConfig = cls.model_validate(cls.example(D_IN, D_SAE).model_dump() | fields | cls.aimed_at(target, fields))
    return config


def replayed(result: TrainResult) -> RunConfig:
    """The run with what its target led to, fixed."""
    sae = result.run.sae
    fields = sae.model_dump() | {"target_l0": None}
    if sae.controls_l0:
        fields |= {sae.sparsity_parameter: result.sparsity_value}
    return result.run.model_copy(update={"sae": type(sae).model_validate(fields)})


@cache
def trained() -> dict[tuple[str, float], TrainResult]:
    pairs = [(name, target) for name in NAMES for target in TARGETS]
    runs = [run_of(aimed(name, target), n_steps=300, batch_size=128, lr=8e-3) for name, target in pairs]
    return dict(zip(pairs, train_group(runs, stream_of(runs[0], 16_384)), strict=True))


@torch.no_grad()
def inference_l0(result: TrainResult) -> float:
    assert result.sae is not None
    sae = result.sae.to_inference()
    return float((sae.encode(result.normalization(heldout(4096))) != 0).sum() / 4096)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", NAMES)
def test_heldout_l0_ends_within_ten_percent(name: str, target: float) -> None:
    assert inference_l0(trained()[name, target]) == pytest.approx(target, rel=0.1)


@pytest.mark.slow
def test_the_outcome_is_a_run_of_its_own() -> None:
    originals = [trained()[name, TARGETS[0]] for name in NAMES]
    runs = [replayed(one) for one in originals]
    for original, result in zip(originals, train_group(runs, stream_of(runs[0], 16_384)), strict=True):
        assert result.error is None and result.run.sae.target_l0 is None
        assert result.run.run_id != original.run.run_id
        assert result.sparsity_value == original.sparsity_value


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_resumed_is_uninterrupted(name: str, tmp_path: Path) -> None:
    run = run_of(aimed(name, 4.0), n_steps=30, lr=8e-3)

    class Interrupted(BaseException):
        pass

    def interrupt(learners: object) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise Interrupted

    left = 17
    with pytest.raises(Interrupted):
        train_group([run], stream_of(run), directory=tmp_path, checkpoint_seconds=0, on_step=interrupt)
    (resumed,), (whole,) = train_group([run], stream_of(run), directory=tmp_path), train_group([run], stream_of(run))
    assert resumed.history == whole.history and resumed.sparsity_value == whole.sparsity_value
