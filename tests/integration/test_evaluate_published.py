"""`sae-sweep evaluate`: published SAEs in the table and report of a sweep, measured as its own."""

import json
from pathlib import Path

import pytest
import torch
from hub_stand_in import hub_stand_in
from inline import launch
from saelens_folders import V5, V6, weights, write
from small_sweep import small_sweep, times_written
from told import Told

from analysis.results import read_sweeps
from analysis.table import load_table
from sae_core.errors import ConfigError
from sae_core.records import RunRecord
from sae_core.sae.base import SparseAutoencoder
from sweeps.definition.sweep import Sweep
from sweeps.execution.evaluating import EvaluationResult, evaluate
from sweeps.exporting import export
from sweeps.opening import open_run

SWEEP = small_sweep(architectures={"topk": {"k": [2, 4]}}, seeds=[0, 1])


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("published") / "results"
    launch(SWEEP, results=directory, progress=Told())
    return directory


def measured(sweep: Sweep, saes: list[str], results: Path) -> EvaluationResult:
    return evaluate(sweep, saes, results=results, executor="inline", progress=Told())


def records(directory: Path) -> dict[str, RunRecord]:
    return {path.parent.name: RunRecord.read(path) for path in directory.glob("runs/*/record.json")}


def published_of(results: Path, to: Path) -> dict[str, str]:
    """The sweep's SAEs in the formats of other programs: folder -> run id."""
    folders: dict[str, str] = {}
    for run_id in records(results / "small"):
        sae = SparseAutoencoder.from_pretrained(results / "small" / "runs" / run_id / "sae")
        folder, t = to / run_id, sae.state_dict()
        folder.mkdir(parents=True)
        tensors = {"encoder.weight": t["W_enc"].T, "encoder.bias": t["b_enc"], "decoder.weight": t["W_dec"].T, "b_dec": t["b_dec"]}
        scalars = {"k": torch.tensor(sae.saelens_fields()["k"]), "threshold": torch.tensor(-1.0)}
        torch.save({name: tensor.contiguous() for name, tensor in tensors.items()} | scalars, folder / "ae.pt")
        trainer = {"dict_class": "AutoEncoderTopK", "activation_dim": sae.d_in, "dict_size": sae.d_sae}
        (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {}}))
        folders[str(folder)] = run_id
    return folders


def test_a_published_sae_is_measured_as_the_sweeps_own(results: Path, tmp_path: Path) -> None:
    own = records(results / "small")
    folders = published_of(results, tmp_path)
    done = measured(SWEEP, list(folders), results)
    assert len(done.records) == len(folders) == len(records(results / "small")) - len(own)
    for sae in done.saes:
        record, of_run = done.records[sae.run_id], own[folders[sae.name]]
        assert record.metrics == of_run.metrics and record.latent_densities == of_run.latent_densities
        assert (record.eval_hash, record.d_in, record.published) == (of_run.eval_hash, of_run.d_in, sae.name)
        assert record.train_tokens is None and record.seed is None
        assert open_run(results / "small", sae.run_id).run_id == sae.run_id
    with pytest.raises(ConfigError, match=f"trained here.*{done.saes[0].run_id}"):
        export(results / "small", tmp_path / "exported", run_ids=[done.saes[0].run_id])
    assert export(results / "small", tmp_path / "best", l0=2)[0][0].run_id in own
    before = times_written(results / "small" / "runs")
    assert measured(SWEEP, list(folders), results).records == done.records
    launch(SWEEP, results=results, progress=Told())
    assert times_written(results / "small" / "runs") == before

    table = load_table(results / "small")
    rows = table[table["published"].notna()]
    assert set(rows["architecture"]) == {"topk (published)"} and rows["seed"].isna().all() and rows["lr"].isna().all()
    assert set(rows["comparison_hash"]) == set(table["comparison_hash"])
    assert rows["setting_hash"].nunique() == len(rows)
    assert not set(rows["setting_hash"]) & set(table.loc[table["published"].isna(), "setting_hash"])
    report = (results / "small" / "report" / "report.md").read_text()
    assert "4 of 4 runs finished, 4 published SAEs beside them; 2 seeds" in report and "TopK (published)" in report
    assert str(tmp_path) in report


def test_a_definition_that_was_never_run_and_names_of_the_hub(tmp_path: Path) -> None:
    folder = write(tmp_path / "sae", V5 | {"model_name": "gpt2", "d_in": 16}, {
        "W_enc": torch.randn(16, 40), "W_dec": torch.randn(40, 16), "b_enc": torch.randn(40), "b_dec": torch.zeros(16),
    })  # fmt: skip
    with hub_stand_in(tmp_path / "cache") as hub:
        commit = hub.add("user/saes", folder, "layer_1")
        done = measured(SWEEP, ["hub:user/saes/layer_1"], tmp_path / "results")
    (sae,) = done.saes
    assert sae.origin == done.records[sae.run_id].published == f"hub:user/saes/layer_1@{commit}"
    assert not list((tmp_path / "results" / ".activations").glob("*/train-*.safetensors"))
    (sweep,) = read_sweeps(tmp_path / "results" / "small")
    table = load_table(tmp_path / "results" / "small")
    assert list(table["architecture"]) == ["standard (published, user/saes)"] and len(sweep.runs) == 1
    report = (tmp_path / "results" / "small" / "report" / "report.md").read_text()
    assert "0 of 0 runs finished, 1 published SAE beside them" in report and "training tokens ·" not in report.splitlines()[4]
    launch(SWEEP, results=tmp_path / "results", progress=Told())
    assert len(load_table(tmp_path / "results" / "small")) == 5


def problems_of(sweep: Sweep, saes: list[str], results: Path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        measured(sweep, saes, results)
    return str(caught.value).splitlines()


def test_everything_that_does_not_fit_is_said_at_once_and_before_any_work(tmp_path: Path) -> None:
    wrong_width = write(tmp_path / "width", V6 | {"architecture": "standard"}, weights("standard"))
    cfg = {"architecture": "transcoder", "apply_b_dec_to_input": False, "d_out": 9}
    transcoder = write(tmp_path / "transcoder", V6 | cfg, weights("transcoder"))
    damaged = write(tmp_path / "damaged", V6 | {"architecture": "standard"}, weights("standard"))
    (damaged / "sae_weights.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    names = [*map(str, (wrong_width, transcoder, damaged)), "nowhere", "hub:a"]
    problems = problems_of(SWEEP, names, tmp_path / "results")
    assert len(problems) == len(names)
    for name, said in zip(names, ("d_in=12", "d_out=9", "damaged", "existing directory", "hub:user/repo"), strict=True):
        assert any(name in problem and said in problem for problem in problems), (name, problems)
    assert not (tmp_path / "results").exists()
