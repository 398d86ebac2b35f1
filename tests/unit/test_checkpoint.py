import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_runs import D_IN, D_SAE, run_of, stream_of, tokens

from sae_core.activations.files import load_tensors, save_tensors
from sae_core.config.run import RunConfig
from sae_core.layout import RunPaths
from sae_core.records import RunRecord
from sae_core.sae.base import SparseAutoencoder
from sae_core.sae.normalization import Affine
from sae_core.training.checkpoint import read_checkpoint, write_checkpoint
from sae_core.training.export import write_result
from sae_core.training.loop import Learner, TrainResult, train_run

FACTS = {"activations_hash": "abc", "versions": {"torch": "2.13.0"}, "hardware": "a CPU", "finished_at": "2026-01-01T00:00:00+00:00"}


def trained(name: str = "batchtopk") -> TrainResult:
    return train_run(run_of(name, n_steps=3), stream_of(run_of(name)))


def learner(name: str = "jumprelu", n_steps: int = 0) -> Learner:
    run = run_of(name)
    started = Learner.start(run, D_IN, torch.device("cpu"))
    for x, _ in zip(stream_of(run).batches(), range(n_steps), strict=False):
        started.train_step(x)
    return started


def paths(directory: Path, of: TrainResult | Learner) -> RunPaths:
    return RunPaths(directory / of.run.run_id)


def write(directory: Path, part: Learner) -> None:
    write_checkpoint(paths(directory, part).checkpoint, *part.state())


def resume(directory: Path, fresh: Learner) -> None:
    if found := read_checkpoint(paths(directory, fresh).checkpoint, like=fresh.state()[0]):
        fresh.restore(*found)


def test_a_finished_run_leaves_its_config_history_sae_and_record(tmp_path: Path) -> None:
    result = trained()
    folder = tmp_path / result.run.run_id
    record = write_result(result, paths(tmp_path, result), metadata={"hook_name": "blocks.2.hook_resid_post"}, facts=FACTS)
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert found == ["config.json", "history.jsonl", "record.json", "sae/cfg.json", "sae/sae_weights.safetensors"]
    assert RunRecord.read(folder / "record.json") == record
    assert RunConfig.model_validate(json.loads((folder / "config.json").read_text())) == result.run
    assert [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()] == result.history


def test_the_record_says_what_was_asked_and_what_came_out(tmp_path: Path) -> None:
    result = replace(trained(), seconds=2.0)
    record = write_result(result, paths(tmp_path, result), metadata={}, facts=FACTS)
    assert record == RunRecord(
        run_id=result.run.run_id,
        status="trained",
        config=result.run.model_dump(mode="json"),
        architecture="batchtopk",
        sparsity_parameter="k",
        sparsity_value=8.0,
        seed=0,
        d_in=D_IN,
        train_tokens=3 * 64,
        train_seconds=2.0,
        tokens_per_second=96.0,
        activations_hash="abc",
        versions={"torch": "2.13.0"},
        hardware="a CPU",
        finished_at="2026-01-01T00:00:00+00:00",
        history_checksum=record.history_checksum,
    )


def test_the_exported_sae_takes_unscaled_activations(tmp_path: Path) -> None:
    result = trained()
    assert result.sae is not None
    write_result(result, paths(tmp_path, result), metadata={"model_name": "demo"}, facts=FACTS)
    loaded = SparseAutoencoder.from_pretrained(tmp_path / result.run.run_id / "sae")
    x = tokens(64)
    scale = result.normalization(x)[0, 0] / x[0, 0]
    torch.testing.assert_close(loaded(x), result.sae(x * scale) / scale, rtol=1e-4, atol=1e-5)
    cfg = json.loads((tmp_path / result.run.run_id / "sae" / "cfg.json").read_text())
    assert cfg["metadata"]["model_name"] == "demo" and cfg["metadata"]["training_architecture"] == "batchtopk"
    assert cfg["metadata"]["run_id"] == result.run.run_id and cfg["metadata"]["training_config"]["seed"] == 0


def test_a_failed_run_leaves_its_reason_and_no_sae(tmp_path: Path) -> None:
    error = {"type": "DivergedError", "message": "it did", "traceback": "..."}
    result = replace(trained(), sae=None, error=error)
    record = write_result(result, paths(tmp_path, result), metadata={}, facts=FACTS)
    assert record.status == "failed" and record.error == error
    assert record.train_tokens is None and record.tokens_per_second is None and record.metrics == {}
    assert not (tmp_path / result.run.run_id / "sae").exists()


def test_weights_that_overflow_in_the_units_of_the_activations_fail_the_run(tmp_path: Path) -> None:
    result = trained("topk")
    assert result.sae is not None
    with torch.no_grad():
        result.sae.W_dec.fill_(1e38)
    record = write_result(replace(result, normalization=Affine("none", 0.01, 100.0)), paths(tmp_path, result), metadata={}, facts=FACTS)
    assert record.status == "failed" and record.error is not None and record.error["type"] == "DivergedError"
    assert f"those of run {result.run.run_id} are not: weights of an SAE must be finite, but got {{'" in record.error["message"]
    assert not (tmp_path / result.run.run_id / "sae").exists()


@pytest.mark.slow
def test_finishing_drops_the_checkpoint(tmp_path: Path) -> None:
    part = learner("topk", n_steps=2)
    write(tmp_path, part)
    assert (tmp_path / part.run.run_id / "checkpoint.safetensors").exists()
    write_result(train_run(part.run, stream_of(part.run)), paths(tmp_path, part), metadata={}, facts=FACTS)
    assert not (tmp_path / part.run.run_id / "checkpoint.safetensors").exists()


def test_a_checkpoint_holds_all_that_changes(tmp_path: Path) -> None:
    old, new = learner(n_steps=4), learner()
    old.sum_of_norms.fill_(float("nan"))
    write(tmp_path, old)
    resume(tmp_path, new)
    assert (new.step, new.history, new.seconds) == (4, old.history, old.seconds)
    assert bool(new.sum_of_norms.isnan()) and torch.equal(new.tokens_since_active, old.tokens_since_active)
    assert all(torch.equal(value, new.sae.state_dict()[key]) for key, value in old.sae.state_dict().items())
    assert torch.equal(new.optimizer.n_steps, torch.tensor(4.0))
    for moment in ("exp_avg", "exp_avg_sq"):
        before, after = getattr(old.optimizer, moment), getattr(new.optimizer, moment)
        assert before.keys() == after.keys() and all(value.any() and torch.equal(value, after[name]) for name, value in before.items())


def test_without_a_checkpoint_a_run_starts_at_the_beginning(tmp_path: Path) -> None:
    fresh = learner()
    resume(tmp_path, fresh)
    assert fresh.step == 0 and not fresh.history
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", [-40, 40, 400])
def test_a_damaged_checkpoint_costs_its_progress_and_no_more(tmp_path: Path, place: int, caplog: pytest.LogCaptureFixture) -> None:
    part, fresh, untouched = learner(n_steps=2), learner(), learner()
    write(tmp_path, part)
    path = tmp_path / part.run.run_id / "checkpoint.safetensors"
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    resume(tmp_path, fresh)
    assert fresh.step == 0 and all(torch.equal(value, fresh.sae.state_dict()[key]) for key, value in untouched.sae.state_dict().items())
    assert not path.exists() and "starts again from step 0" in caplog.text


def foreign(path: Path, change: str) -> None:
    """A checkpoint with a right checksum that is not one of its run."""
    tensors, metadata = load_tensors(path)
    if change == "a tensor less":
        tensors.pop("optimizer/exp_avg/W_dec")
    elif change == "another shape":
        tensors["optimizer/exp_avg/W_dec"] = torch.zeros(3)
    elif change == "another type":
        tensors["tokens_since_active"] = tensors["tokens_since_active"].float()
    elif change == "another controller":
        tensors["controller/log_factor"] = torch.zeros(())
    else:
        del metadata["facts"]
    save_tensors(path, tensors, metadata)


CHANGES = [
    "a tensor less",
    "another shape",
    "another type",
    "another controller",
    "no facts",
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_checkpoint_of_another_run_changes_nothing(tmp_path: Path, change: str, caplog: pytest.LogCaptureFixture) -> None:
    part, fresh, untouched = learner(n_steps=2), learner(), learner()
    write(tmp_path, part)
    path = tmp_path / part.run.run_id / "checkpoint.safetensors"
    foreign(path, change)
    resume(tmp_path, fresh)
    for old, new in ((untouched.sae.state_dict(), fresh.sae.state_dict()), (untouched.optimizer.exp_avg, fresh.optimizer.exp_avg)):
        assert all(torch.equal(value, new[name]) for name, value in old.items())
    assert (fresh.step, fresh.history) == (0, [])
    assert not path.exists() and "starts again from step 0" in caplog.text


def test_a_directory_in_the_place_of_a_checkpoint_is_removed(tmp_path: Path) -> None:
    fresh = learner()
    path = tmp_path / fresh.run.run_id / "checkpoint.safetensors"
    path.mkdir(parents=True)
    (path / "file").touch()
    resume(tmp_path, fresh)
    assert fresh.step == 0 and not path.exists()


def test_an_interrupted_checkpoint_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = learner(n_steps=2)
    write(tmp_path, part)

    def full_disk(tensors: object, path: Path, metadata: object = None) -> None:
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("sae_core.activations.files.save_file", full_disk)
    part.step = 3
    with pytest.raises(OSError, match="disk full"):
        write(tmp_path, part)
    resumed = learner()
    resume(tmp_path, resumed)
    assert resumed.step == 2 and resumed.sae.d_sae == D_SAE
    assert [path.name for path in (tmp_path / part.run.run_id).iterdir()] == ["checkpoint.safetensors"]
