import json
import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError
from small_runs import run_of

from sae_core.config.run import ARCHITECTURES, RunConfig, TrainConfig
from sae_core.errors import ConfigError
from sweeps import Sweep

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


def test_only_plugins_that_there_are_change_the_run_id() -> None:
    run = RunConfig.model_validate(RAW)
    assert "plugins" not in run.model_dump(mode="json")
    edited = [RunConfig.model_validate(RAW | {"plugins": {"my_sae.py": checksum}}) for checksum in "ab"]
    assert len({config.run_id for config in [run, *edited]}) == 3
    assert RunConfig.model_validate(edited[0].model_dump(mode="json")) == edited[0]


@pytest.mark.slow
def test_the_run_id_is_the_same_in_another_process() -> None:
    script = (
        "import json, sys; from sae_core.config import RunConfig; sys.stdout.write(RunConfig.model_validate(json.load(sys.stdin)).run_id)"
    )
    done = subprocess.run([sys.executable, "-c", script], input=json.dumps(RAW), capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == RunConfig.model_validate(RAW).run_id


def test_a_copy_has_a_run_id_of_its_own() -> None:
    run = run_of("topk")
    assert run.run_id != run.model_copy(update={"seed": 7}).run_id
    assert run.run_id == run.model_copy().run_id


def test_unknown_names_and_keys_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"architecture must be one of .* but got 'tpok'\. Did you mean 'topk'\?"):
        RunConfig.model_validate(RAW | {"sae": {"architecture": "tpok", "d_sae": 64}})
    with pytest.raises(ValidationError, match=r"activation source must be one of .* but got 'sintetic'"):
        RunConfig.model_validate(RAW | {"activations": {"source": "sintetic"}})
    with pytest.raises(ValidationError, match=r"`architecture` must be a registered name, but got None\. Choose one of \['abstopk'"):
        RunConfig.model_validate(RAW | {"sae": {"d_sae": 64}})
    with pytest.raises(ValidationError, match="learning_rate"):
        RunConfig.model_validate(RAW | {"train": {"learning_rate": 1e-3}})


def test_too_few_tokens_for_one_step_are_refused() -> None:
    with pytest.raises(ValidationError, match="`train_tokens` must be >= `batch_size`, but got train_tokens=10000 and batch_size=20000"):
        RunConfig.model_validate(RAW | {"train": {"batch_size": 20_000}})


@pytest.mark.parametrize(
    ("first", "second"), [(0.6, 0.5), (0.6, "17 steps"), ("24 steps", "4096 tokens"), ("6400 tokens", 0.5), ("40 steps", 0.0)]
)
@pytest.mark.parametrize("kind", ["lr", "sparsity"])
def test_phases_must_fit_into_the_run(kind: str, first: float | str, second: float | str) -> None:
    # 39 steps of 256 tokens.
    sae = {"architecture": "standard", "d_sae": 64}
    rule = rf"`{kind}_warm_up` \+ `{kind}_decay` must be <= 1 \(fractions of the run's 39 steps\), but got {first!r} \+ {second!r}"
    with pytest.raises(ValidationError, match=rule):
        RunConfig.model_validate(RAW | {"sae": sae, "train": {"batch_size": 256, f"{kind}_warm_up": first, f"{kind}_decay": second}})


@pytest.mark.parametrize(
    ("first", "second"), [(0.3, 0.7), (0.1, 0.9), ("13 steps", "26 steps"), (0.0, "39 steps"), ("2560 tokens", "29 steps")]
)
def test_phases_may_fill_the_run(first: float | str, second: float | str) -> None:
    RunConfig.model_validate(RAW | {"train": {"batch_size": 256, "lr_warm_up": first, "lr_decay": second}})


def test_a_span_in_two_spellings_is_one_run() -> None:
    def run_id(span: str) -> str:
        return RunConfig.model_validate(RAW | {"train": {"batch_size": 256, "lr_warm_up": span}}).run_id

    assert run_id("1_000 tokens") == run_id("1k tokens") != run_id("2k tokens")


def test_sparsity_decays_where_there_is_a_coefficient_that_stays() -> None:
    train = {"batch_size": 256, "sparsity_decay": 0.25}
    standard = {"architecture": "standard", "d_sae": 64}
    RunConfig.model_validate(RAW | {"sae": standard, "train": train})
    with pytest.raises(ValidationError, match=r"`sparsity_decay` must be left to .* but got sparsity_decay=0\.25 for 'topk'"):
        RunConfig.model_validate(RAW | {"train": train})
    with pytest.raises(ValidationError, match=r"`sparsity_decay` must be 0 where .* but got sparsity_decay=0\.25 and target_l0=16\.0"):
        RunConfig.model_validate(RAW | {"sae": standard | {"target_l0": 16}, "train": train})
    quadratic = {"architecture": "jumprelu", "d_sae": 64, "sparsity_loss": "quadratic", "target_l0": 16}
    RunConfig.model_validate(RAW | {"sae": quadratic, "train": train})  # the loss aims, not the coefficient


def test_a_decay_needs_a_span() -> None:
    with pytest.raises(ValidationError, match=r"`sparsity_decay_to` must come with .* but got sparsity_decay_to=0\.5 and sparsity_decay=0"):
        TrainConfig(sparsity_decay_to=0.5)
    assert TrainConfig.model_validate_json(TrainConfig().model_dump_json()) == TrainConfig()


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ({"W_dce": 0.5}, r"`lr_factors`: a parameter of 'topk' must be one of \['W_dec', .* but got 'W_dce'\. Did you mean 'W_dec'"),
        ({"threshold": 2.0}, "a parameter of 'topk' must be one of .* but got 'threshold'"),
        ({"W_dec": 1.0}, "`lr_factors` must differ from 1, but got W_dec=1"),
        ({"W_dec": 0.0}, r"lr_factors.W_dec\n.*input_value=0\.0"),
    ],
)
def test_lr_factors_name_parameters_and_change_rates(factors: dict[str, float], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        RunConfig.model_validate(RAW | {"train": {"batch_size": 256, "lr_factors": factors}})


@pytest.mark.parametrize(
    ("given", "expected"),
    [({"W_dec": 0.5}, [{"W_dec": 0.5}]), ([{}, {"W_dec": 0.5}, {"W_dec": 2, "b_enc": 3}], [{}, {"W_dec": 0.5}, {"W_dec": 2, "b_enc": 3}])],
)
@pytest.mark.parametrize("own", [False, True])
def test_a_definition_gives_lr_factors_as_a_mapping_or_as_an_axis_of_mappings(
    given: Any, expected: list[dict[str, float]], own: bool
) -> None:
    sections = {
        "architectures": {"topk": {"k": 4, **({"lr_factors": given} if own else {})}},
        "train": {} if own else {"lr_factors": given},
    }
    activations = {"source": "synthetic", "train_tokens": 10_000, "eval_tokens": 100}
    runs = Sweep(name="factors", activations=activations, sae={"d_sae": 64}, **sections).runs()
    assert [run.train.lr_factors for run in runs] == expected


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


def test_resampling_must_be_able_to_happen() -> None:
    # 20 steps of 64 tokens; the last multiple of 4 up to half of them is step 8, after 512 tokens.
    assert run_of("topk", resample_every_steps=4, dead_after_tokens=512).last_resampling == 8
    with pytest.raises(ValidationError, match=r"dead_after_tokens=513, .* the last resampling is at step 8 of 20, after 512 tokens"):
        run_of("topk", resample_every_steps=4, dead_after_tokens=513)
    with pytest.raises(ValidationError, match=r"resample_every_steps=11 and resample_until=0\.5: the last resampling is at step 0 of 20"):
        run_of("topk", resample_every_steps=11, dead_after_tokens=1)
    with pytest.raises(ValidationError, match=r"`resample_until` must come with `resample_every_steps`, but got {'resample_until': 0\.7}"):
        run_of("topk", resample_until=0.7)


def test_no_latent_is_resampled_after_the_last_step() -> None:
    assert run_of("topk", resample_every_steps=5, resample_until=1.0, dead_after_tokens=64).last_resampling == 15
    assert run_of("topk").last_resampling == 0


@pytest.mark.parametrize("norm", [0.0, "serach"])
def test_the_initial_norm_is_positive_or_searched_for(norm: object) -> None:
    with pytest.raises(ValidationError, match=rf"decoder_init_norm.*\n.*input_value='?{norm}"):
        RunConfig.model_validate(RAW | {"sae": RAW["sae"] | {"decoder_init_norm": norm}})


@pytest.mark.parametrize(
    ("sae", "expected"),
    [
        ({"architecture": "topk", "k": 8}, 8),
        ({"architecture": "standard", "target_l0": 24.0}, 24),
        ({"architecture": "standard", "l1_coefficient": 0.5}, 44),  # its coefficient times L0 is about 22
        ({"architecture": "standard", "l1_coefficient": 1e-9}, 64),
        ({"architecture": "standard", "l1_coefficient": 0.0}, 64),
    ],
)
def test_expected_l0_is_what_is_asked_for_or_what_the_coefficient_leads_to(sae: dict[str, Any], expected: float) -> None:
    run = RunConfig.model_validate(RAW | {"sae": {"d_sae": 64} | sae})
    assert run.sae.expected_l0 == pytest.approx(expected)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_target_l0_is_at_most_the_number_of_latents(name):
    example = ARCHITECTURES[name].Config.example(8, 64)
    fields = example.model_dump() | {"target_l0": 64.5}
    with pytest.raises(ValidationError, match=r"`target_l0` must be <= d_sae, but got target_l0=64\.5 and d_sae=64\. Lower it or raise"):
        type(example).model_validate(fields)
    config = type(example)
    assert config.model_validate(fields | config.aimed_at(64.0, fields)).expected_l0 == 64


def test_tokens_have_a_bound():
    with pytest.raises(ValidationError, match="less than or equal to 10000000000000"):
        RunConfig.model_validate(RAW | {"activations": RAW["activations"] | {"train_tokens": 10**13 + 1}})
