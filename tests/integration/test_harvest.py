"""`sae-sweep harvest`: the caches of a definition alone, which `run` then uses, and an exit code that says whether they are sound."""

import json

import pytest
import torch
import yaml
from safetensors.torch import load_file
from small_sweep import DEFINITION, small_sweep, times_written
from typer.testing import CliRunner

from sae_core.activations import comparison
from sae_core.activations.files import save_tensors
from sweeps.cli import app
from sweeps.execution.harvesting import harvest
from sweeps.execution.launcher import launch


def command(directory, *options):
    definition = directory / "small.yaml"
    definition.write_text(yaml.safe_dump(DEFINITION))
    done = CliRunner().invoke(app, ["harvest", str(definition), "--results", str(directory), "--executor", "inline", "--json", *options])
    return done.exit_code, json.loads(done.stdout)


@pytest.mark.slow
def test_a_run_uses_what_was_harvested(tmp_path):
    done = harvest(small_sweep(), results=tmp_path, executor="inline")
    (cache,) = done.caches
    assert (done.interrupted, done.stopped, cache.problem, cache.difference) == (False, "", "", 0.0)
    assert cache.n_stored == len(cache.manifest.shard_tokens) and 0 < cache.compared_rows <= cache.manifest.n_tokens == 20_000
    written = times_written(cache.path)
    harvest(small_sweep(), results=tmp_path, executor="inline")
    launched = launch(small_sweep(architectures={"topk": {"k": 2}}), results=tmp_path, executor="inline")
    assert (launched.finished, launched.failed) == (1, {})
    again = times_written(cache.path)
    assert {path: again[path] for path in written if path.name.startswith("train-")} == {
        path: time for path, time in written.items() if path.name.startswith("train-")
    }


def test_damage_is_repaired_before_and_reported_after(tmp_path, monkeypatch):
    code, data = command(tmp_path)
    assert (code, data["problems"], len(data["caches"])) == (0, [], 1)
    shard = next(tmp_path.glob(".activations/*/train-00001.safetensors"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    code, data = command(tmp_path)
    assert (code, data["problems"]) == (0, [])  # made again
    changed = load_file(shard)["x"]
    changed[3] += changed.norm(dim=1).median()
    save_tensors(shard, {"x": changed})
    code, data = command(tmp_path)
    assert code == 1 and data["caches"][0]["largest_difference"] > comparison.SAME_ROW
    assert "a shard made again differs by" in data["problems"][0] and "sae-sweep cache rm" in data["problems"][0]
    monkeypatch.setattr("sweeps.execution.harvesting.damaged_files", lambda cache: [cache / "train-00000.safetensors"])
    code, data = command(tmp_path)
    assert code == 1 and "files of the cache are damaged: train-00000.safetensors" in data["problems"][0]


def test_a_part_that_was_asked_for_is_no_problem(tmp_path):
    code, data = command(tmp_path, "--cache-limit", "0")
    (cache,) = data["caches"]
    assert (code, cache["shards"], cache["compared_rows"], cache["largest_difference"]) == (0, 0, 0, None)


def test_a_full_disk_is_a_problem(tmp_path, monkeypatch):
    monkeypatch.setattr("sweeps.planning.caches.SPARE_BYTES", 2**60)
    code, data = command(tmp_path)
    assert code == 1 and "the disk has room for 0 of 2 shards" in data["problems"][0]


def test_what_cannot_be_harvested_is_refused(tmp_path):
    code, data = command(tmp_path, "--set", "activations.d_in=-3")
    assert code == 2 and "-3" in data["error"]["message"]
    assert not list(tmp_path.glob(".activations/*"))


def test_other_rows_differ_without_end(tmp_path):
    save_tensors(path := tmp_path / "x.safetensors", {"x": torch.ones(3, 2)})
    assert comparison._difference(path, torch.ones(3, 2)) == 0.0
    assert comparison._difference(path, torch.ones(2, 2)) == float("inf")
    assert comparison._difference(path, torch.tensor([[1.0, 1.0], [1.0, 1.0], [0.0, 0.0]])) == pytest.approx(1.0)
