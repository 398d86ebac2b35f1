import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

from sae_core.activations.language_model.data_config import DataConfig
from sae_core.activations.language_model.loading import ModelConfig
from sae_core.activations.synthetic import SyntheticActivations
from sae_core.architectures.topk import TopKConfig
from sae_core.config.kl_stage import KlStageConfig
from sae_core.config.run import ARCHITECTURES, RunConfig, TrainConfig
from sae_core.errors import ConfigError, DamagedFileError
from sae_core.files import finite_or_none, write_json, write_text
from sae_core.records import LEFT_OUT, SCHEMA_VERSION, RunRecord, field_name


def record(**changes: object) -> RunRecord:
    fields = {"run_id": "topk-1", "status": "finished", "config": {"seed": 0}, "architecture": "topk", "sparsity_parameter": "k"}
    return RunRecord(**{**fields, "sparsity_value": 8.0, "seed": 0, **changes})  # type: ignore[arg-type]


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = record(metrics={"fvu": 0.25, "kl": None}, versions={"torch": "2.13.0"}, error={"type": "E", "message": "m", "traceback": ""})
    written.write(tmp_path / "deep" / "record.json")
    assert RunRecord.read(tmp_path / "deep" / "record.json") == written


def test_nan_and_infinity_are_never_written_as_numbers(tmp_path: Path) -> None:
    record(metrics={"fvu": math.nan, "kl": math.inf}).write(tmp_path / "record.json")
    text = (tmp_path / "record.json").read_text()
    assert "NaN" not in text and "Infinity" not in text
    assert RunRecord.read(tmp_path / "record.json").metrics == {"fvu": None, "kl": None}


def test_finite_or_none_looks_inside() -> None:
    assert finite_or_none({"a": [1.5, math.nan, (math.inf, "x")], "b": 2}) == {"a": [1.5, None, [None, "x"]], "b": 2}


def test_fields_of_a_later_minor_version_are_ignored(tmp_path: Path) -> None:
    write_json(tmp_path / "record.json", dataclasses.asdict(record()) | {"colour": "red"})
    assert RunRecord.read(tmp_path / "record.json") == record()


def test_a_record_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text(json.dumps({"schema_version": 99}))
    with pytest.raises(ConfigError, match=rf"schema_version must be <= {SCHEMA_VERSION}, but .*record\.json' has 99\."):
        RunRecord.read(tmp_path / "record.json")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"seed": "0"}, r"`seed` cannot be '0'"),
        ({"metrics": {"fvu": "low"}}, r"`metrics.fvu` cannot be 'low'"),
        ({"config": {"sae": 3}}, r"`config.sae` cannot be 3"),
        ({"status": "done"}, r"`status` cannot be 'done'"),
        ({"metric_specs": [{"name": "fvu"}]}, r"`metric_specs.0.label` cannot be \{'name': 'fvu'\}"),
    ],
)
def test_fields_of_the_wrong_type_are_damage(tmp_path: Path, changes: dict[str, Any], problem: str) -> None:
    write_json(tmp_path / "record.json", dataclasses.asdict(record()) | changes)
    with pytest.raises(DamagedFileError, match=problem):
        RunRecord.read(tmp_path / "record.json")


@pytest.mark.parametrize("content", ["", "[]", "{}", "null", "{", "[" * 100_000])
def test_what_is_not_a_record_is_damage(tmp_path: Path, content: str) -> None:
    (tmp_path / "record.json").write_text(content)
    with pytest.raises(DamagedFileError, match=r"record\.json' is damaged: "):
        RunRecord.read(tmp_path / "record.json")


def test_an_interrupted_write_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "record.json"
    write_text(path, "old")

    def full_disk(_: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="disk full"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_configs_leave_out_is_listed() -> None:
    configs = {
        "sae": [cls.Config.example(8, 16) for cls in ARCHITECTURES.values()],
        "activations.model": [ModelConfig(name="a", hook_point="b")],
        "activations.data": [DataConfig(dataset="a")],
        "train": [TrainConfig()],
        "": [RunConfig(activations=SyntheticActivations.example(), sae=TopKConfig.example(8, 16), plugins={"my_sae.py": "0"})],
    }
    found = {
        f"{section}.{name}".strip("."): getattr(config, name)
        for section, some in configs.items()
        for config in some
        for name in type(config).model_fields.keys() - config.model_dump().keys()
    }
    del found["train.kl_stage"]  # a section, whose fields are left out with it
    found |= {f"train.kl_stage.{name}": None for name in KlStageConfig.model_fields}
    assert found == LEFT_OUT


def test_fields_are_called_by_what_tells_them_apart() -> None:
    names = {
        "train.lr": "lr",
        "train.kl_stage.tokens": "kl_stage.tokens",
        "train.tokens": "tokens",
        "activations.model.hook_point": "hook_point",
    }
    assert {path: field_name(path) for path in names} == names
