import json
import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError
from small_runs import run_of

from sae_core.config import RunConfig, TrainConfig
from sae_core.errors import ConfigError

RAW: dict[str, Any] = {
    "activations": {"source": "synthetic", "train_tokens": 10_000, "eval_tokens": 100},
    "sae": {"architecture": "topk", "d_sae": 64, "k": 4},
    "train": {"batch_size": 256},
}


def test_names_choose_the_config_classes() -> None:
    run = RunConfig.model_validate(RAW)
    assert type(run.sae).__name__ == "TopKConfig" and type(run.activations).__name__ == "SyntheticActivations"
    assert run.seed == run.data_seed == 0


def test_round_trip() -> None:
    run = run_of("matryoshka_batchtopk", lr=3e-4, autocast="bfloat16", max_grad_norm=None)
    assert RunConfig.model_validate(run.model_dump()) == run
    assert RunConfig.model_validate(json.loads(json.dumps(run.model_dump(mode="json")))) == run


def test_steps_are_whole_batches() -> None:
    assert RunConfig.model_validate(RAW).n_steps == 39  # 10 000 = 39 * 256 + 16


def test_every_field_decides_the_run_id() -> None:
    def run_id(**changes: Any) -> str:
        return RunConfig.model_validate(RAW | changes).run_id

    ids = [run_id(), run_id(seed=1), run_id(data_seed=1), run_id(train={"batch_size": 128}), run_id(sae=RAW["sae"] | {"k": 8})]
    assert len(set(ids)) == len(ids)
    assert all(found.startswith("topk-") and len(found) == len("topk-") + 12 for found in ids)
    assert run_id() == run_id(seed=0)  # a default is a value


def test_the_run_id_is_the_same_in_another_process() -> None:
    script = (
        "import json, sys; from sae_core.config import RunConfig; sys.stdout.write(RunConfig.model_validate(json.load(sys.stdin)).run_id)"
    )
    done = subprocess.run([sys.executable, "-c", script], input=json.dumps(RAW), capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == RunConfig.model_validate(RAW).run_id


def test_unknown_names_and_keys_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"architecture must be one of .* but got 'tpok'\. Did you mean 'topk'\?"):
        RunConfig.model_validate(RAW | {"sae": {"architecture": "tpok", "d_sae": 64}})
    with pytest.raises(ValidationError, match=r"activation source must be one of .* but got 'sintetic'"):
        RunConfig.model_validate(RAW | {"activations": {"source": "sintetic"}})
    with pytest.raises(ValidationError, match=r"`architecture` must be the name of one, but got None\. Choose one of \['batchtopk'"):
        RunConfig.model_validate(RAW | {"sae": {"d_sae": 64}})
    with pytest.raises(ValidationError, match="learning_rate"):
        RunConfig.model_validate(RAW | {"train": {"learning_rate": 1e-3}})


def test_too_few_tokens_for_one_step_are_refused() -> None:
    with pytest.raises(ValidationError, match="`train_tokens` must be >= `batch_size`, but got train_tokens=10000 and batch_size=20000"):
        RunConfig.model_validate(RAW | {"train": {"batch_size": 20_000}})


def test_phases_must_fit_into_the_run() -> None:
    with pytest.raises(ValidationError, match=r"`lr_warm_up` \+ `lr_decay` must be <= 1 .* but got 0\.6 \+ 0\.5"):
        TrainConfig(lr_warm_up=0.6, lr_decay=0.5)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("lr", 0.0),
        ("lr", float("inf")),
        ("batch_size", 0),
        ("batch_size", 2.5),
        ("lr_warm_up", 1.1),
        ("adam_beta2", 1.0),
        ("max_grad_norm", -1.0),
    ],
)
def test_values_out_of_range_are_refused(field: str, value: object) -> None:
    with pytest.raises(ValidationError, match=rf"{field}\n.*input_value={value}"):
        TrainConfig(**{field: value})  # type: ignore[arg-type]


def test_a_mistake_in_a_config_is_a_config_error() -> None:
    assert issubclass(ConfigError, ValueError)  # so that pydantic reports it with the others
