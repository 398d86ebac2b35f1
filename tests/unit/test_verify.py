import json
import shutil

import numpy as np
import pytest
import torch
from small_runs import activations_config, random_sae, run_of

from sae_core.activations.files import save_tensors
from sae_core.activations.shards import write_shard
from sae_core.documents import StoredDocuments, write_documents
from sae_core.errors import ConfigError
from sae_core.files import checksum_of, write_json, write_json_lines, write_text
from sae_core.latents import write_latents
from sae_core.records import RunRecord
from sweeps.storage.verify import verify

ACTIVATIONS = activations_config(100)


@pytest.fixture
def results(tmp_path):
    """A sweep with one run of each kind of file, and a cache."""
    write_shard(tmp_path / ".activations" / "abc", 0, torch.randn(64, 4), "float32")
    run = run_of("topk")
    directory = tmp_path / "demo" / "runs" / run.run_id
    write_json(tmp_path / "demo" / "sweep.json", {"name": "demo", "runs": []})
    write_json(directory / "config.json", run.model_dump(mode="json"), checksum=False)
    checksum = write_json_lines(directory / "history.jsonl", [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}])
    documents = write_documents(directory / "documents.parquet", StoredDocuments(np.arange(2), {"n_tokens": np.ones(2)}, {}))
    write_latents(directory / "latents.safetensors", {"times_active": torch.ones(64)})
    record = RunRecord(status="finished", history_checksum=checksum, documents_checksum=documents, **run.identity)
    record.write(directory / "record.json")
    save_tensors(directory / "checkpoint.safetensors", {"x": torch.randn(8)})
    random_sae("topk").eval().save_pretrained(directory / "sae")
    return tmp_path


def test_all_is_well(results):
    verified = verify(results)
    assert (verified.n_read, verified.files) == (11, [])
    assert verify(results / "demo").n_read == 9


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        (".activations/abc/train-00000.safetensors", "The next launch that needs it creates it again."),
        (".activations/abc/train-00000.json", "The next launch that needs it creates it again."),
        ("demo/sweep.json", "The next launch creates it again."),
        ("demo/runs/*/config.json", "It is for readers only; the record has the same config."),
        ("demo/runs/*/history.jsonl", "Delete the directory of the run: the same command trains it again."),
        ("demo/runs/*/documents.parquet", "The same command measures the run again."),
        ("demo/runs/*/latents.safetensors", "The same command measures the run again."),
        ("demo/runs/*/record.json", "Delete the directory of the run: the same command trains it again."),
        ("demo/runs/*/checkpoint.safetensors", "The next launch starts this run again from its first step."),
        ("demo/runs/*/sae/sae_weights.safetensors", "Delete the directory of the run: the same command trains it again."),
        ("demo/runs/*/sae/cfg.json", "Delete the directory of the run: the same command trains it again."),
    ],
)
def test_one_changed_digit_or_byte_is_found(results, name, remedy):
    (file,) = results.glob(name)
    content = bytearray(file.read_bytes())
    digits = [place for place, byte in enumerate(content) if byte in b"0123456789"] if file.suffix != ".safetensors" else [len(content) - 3]
    content[digits[-1]] ^= 1
    file.write_bytes(content)
    (damage,) = verify(results).files
    assert (damage.path, damage.remedy) == (file, remedy)
    assert damage.reason


def test_a_file_that_is_empty(results):
    (file,) = results.glob("demo/runs/*/record.json")
    file.write_text("")
    assert [damage.path for damage in verify(results).files] == [file]


def test_a_directory_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"`--results` must be a directory that can be read, but got '.*/nothing': .*No such file"):
        verify(tmp_path / "nothing")


def test_what_is_no_sweep_is_not_read(results):
    (results / "notes").mkdir()
    (results / "notes" / "x.json").write_text("{")
    (results / "file").touch()
    shutil.rmtree(results / ".activations")
    assert json.loads((results / "demo" / "sweep.json").read_text())["name"] == "demo"
    assert verify(results).n_read == 9


def test_changed_definitions_and_studies_are_found(results):
    write_text(results / "demo" / "definitions" / "1.yaml", "name: demo\n")
    launch = {"definition": "definitions/1.yaml", "definition_checksum": checksum_of(b"name: demo\n")}
    write_json(results / "demo" / "sweep.json", {"name": "demo", "runs": [], "launches": [launch]})
    assert verify(results).files == []
    (results / "demo" / "definitions" / "1.yaml").write_text("name: Demo\n")
    write_text(results / "demo" / "search" / "l0-fvu-abc.json", '{"points": [], "checksum": "0"}')
    found = {damage.path.name: damage.reason for damage in verify(results).files}
    assert found == {
        "1.yaml": "ValueError: its checksum does not match its content",
        "l0-fvu-abc.json": "ValueError: its checksum does not match its content",
    }
