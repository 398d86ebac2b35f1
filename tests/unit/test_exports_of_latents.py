"""Files for Neuronpedia and delphi, field by field, and read back."""

import gzip
import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from learned_runs import of_known_features, of_language_model
from safetensors.numpy import load_file

from analysis.features.delphi import export_delphi
from analysis.features.neuronpedia import export_neuronpedia
from sae_core.errors import ConfigError

pytestmark = pytest.mark.slow  # a language model is loaded

# What SAEDashboard's `neuronpedia_export.py` writes (db4839a): the fields of its dataclasses, in their order.
RELEASE = (
    "name description creatorName creatorId visibility isNewUi featured descriptionShort urls creatorEmail creatorNameShort "
    "defaultSourceSetName defaultSourceId defaultUmapSourceIds createdAt"
)
MODEL = (
    "id instruct creatorId displayNameShort displayName tlensId dimension visibility defaultSourceSetName defaultSourceId inferenceEnabled "
    "layers neuronsPerLayer createdAt owner updatedAt website"
)
SOURCE_SET = (
    "modelId name creatorId hasDashboards visibility description type creatorName urls creatorEmail releaseName defaultOfModelId "
    "defaultRange defaultShowBreaks showDfa showCorrelated showHeadAttribution showUmap createdAt"
)
SOURCE = (
    "id modelId setName creatorId hasDashboards inferenceEnabled inferenceHosts saelensConfig saelensRelease saelensSaeId hfRepoId "
    "hfFolderId visibility defaultOfModelId hasUmap hasUmapLogSparsity hasUmapClusters num_prompts num_tokens_in_prompt dataset "
    "notes createdAt"
)
FEATURE = (
    "modelId layer index creatorId createdAt maxActApprox hasVector vector vectorLabel vectorDefaultSteerStrength "
    "hookName topkCosSimIndices topkCosSimValues neuron_alignment_indices neuron_alignment_values neuron_alignment_l1 "
    "correlated_neurons_indices correlated_neurons_pearson correlated_neurons_l1 correlated_features_indices "
    "correlated_features_pearson correlated_features_l1 neg_str neg_values pos_str pos_values frac_nonzero "
    "freq_hist_data_bar_heights freq_hist_data_bar_values logits_hist_data_bar_heights logits_hist_data_bar_values "
    "decoder_weights_dist sourceSetName"
)
ACTIVATION = (
    "id tokens index layer modelId maxValue maxValueTokenIndex minValue values creatorId dataSource dataIndex dfaValues dfaTargetIndex "
    "dfaMaxValue createdAt lossValues logitContributions binMin binMax binContains qualifyingTokenIndex zIndices zValues"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return of_language_model(tmp_path_factory.mktemp("exports"))


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    return export_neuronpedia(run, tmp_path_factory.mktemp("neuronpedia"))


def rows(file):
    text = gzip.decompress(file.read_bytes()).decode() if file.suffix == ".gz" else file.read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_every_row_has_every_column(exported, run):
    assert sorted(str(file.relative_to(exported)) for file in exported.rglob("*") if file.is_file()) == [
        "activations/batch-0.jsonl.gz",
        "features/batch-0.jsonl.gz",
        "model.jsonl",
        "release.jsonl",
        "source.jsonl",
        "sourceset.jsonl",
    ]
    assert exported.parts[-2:] == ("code-4l", f"2-test__{run.run_id}")
    for name, columns in (
        ("release.jsonl", RELEASE),
        ("model.jsonl", MODEL),
        ("sourceset.jsonl", SOURCE_SET),
        ("source.jsonl", SOURCE),
        ("features/batch-0.jsonl.gz", FEATURE),
        ("activations/batch-0.jsonl.gz", ACTIVATION),
    ):
        for row in rows(exported / name):
            assert list(row) == columns.split(), name


def test_names_agree_between_the_tables(exported, run):
    release, model, source_set, source = (rows(exported / f"{name}.jsonl")[0] for name in ("release", "model", "sourceset", "source"))
    windows = run.activations.windows
    assert model["id"] == source_set["modelId"] == source["modelId"] == "code-4l"
    assert source_set["name"] == source["setName"] == source_set["releaseName"] == release["name"] == "test"
    assert (source["num_prompts"], source["num_tokens_in_prompt"]) == windows.shape
    assert {row["layer"] for row in rows(exported / "features/batch-0.jsonl.gz")} == {source["id"]}
    assert all(release[name] for name in ("name", "description", "creatorName", "creatorId"))


def test_a_feature_is_a_latent(exported, run):
    features = rows(exported / "features/batch-0.jsonl.gz")
    assert [row["index"] for row in features] == np.flatnonzero(run.activations.counts).tolist()
    for row in features:
        latent = row["index"]
        _, values = run.activations.of(latent)
        assert row["frac_nonzero"] == pytest.approx(run.activations.density[latent], abs=1e-5)
        assert row["maxActApprox"] == pytest.approx(values.max(), abs=1e-5)
        assert sum(row["freq_hist_data_bar_heights"]) == len(values)
        assert sum(row["logits_hist_data_bar_heights"]) == run.model.d_vocab
        assert row["neuron_alignment_indices"][0] == int(run.sae.W_dec[latent].argmax())
        assert (len(row["pos_str"]), len(row["neg_str"]), row["hookName"]) == (10, 10, "blocks.2.hook_resid_post")
        assert row["pos_values"] == sorted(row["pos_values"], reverse=True) and row["neg_values"] == sorted(row["neg_values"])


def test_an_activation_is_a_window_without_its_first_token(exported, run):
    activations = rows(exported / "activations/batch-0.jsonl.gz")
    length = run.activations.windows.shape[1] - 1
    assert len({row["id"] for row in activations}) == len(activations) and {len(row["id"]) for row in activations} == {25}
    for row in activations:
        assert len(row["tokens"]) == len(row["values"]) == length
        assert row["values"][row["maxValueTokenIndex"]] == row["maxValue"] == max(row["values"]) and row["minValue"] == min(row["values"])
        value = row["values"][row["qualifyingTokenIndex"]]
        assert value > 0
        if row["binMin"] >= 0:
            assert row["binMin"] - 2e-5 <= value <= row["binMax"] + 2e-5 and 0 <= row["binContains"] <= 1
    busiest = int(run.activations.counts.argmax())
    mine = [row for row in activations if row["index"] == busiest]
    _, values = run.activations.of(busiest)
    top = [row for row in mine if row["binContains"] == -1]
    assert all((row["binMin"], row["binMax"]) == (-1, pytest.approx(values.max(), abs=1e-5)) for row in top)
    assert top[0]["values"][top[0]["qualifyingTokenIndex"]] == pytest.approx(values.max(), abs=1e-5)
    lowest = [row for row in activations if row["binMin"] == 0]
    assert lowest
    for row in lowest:  # as SAEDashboard: with the tokens that the latent is not active on
        assert row["binContains"] > 1 - run.activations.density[row["index"]] - 1e-6


def test_names_that_were_edited_stay(run, tmp_path):
    directory = export_neuronpedia(run, tmp_path, [0])
    (directory / "release.jsonl").write_text('{"name": "mine"}\n')
    export_neuronpedia(run, tmp_path, [0])
    assert rows(directory / "release.jsonl") == [{"name": "mine"}]


def delphi_reads(directory):
    """Location and activation of every latent, as delphi's `TensorBuffer.load` (0.1.3) computes them."""
    locations, activations, tokens = [], [], None
    for file in sorted(directory.glob("*.safetensors"), key=lambda file: int(file.stem.split("_")[0])):
        data = load_file(file)
        assert set(data) == {"locations", "activations", "tokens"}
        assert data["locations"].dtype in (np.uint16, np.uint32) and data["activations"].dtype == np.float16
        first, last = map(int, file.stem.split("_"))
        some = torch.tensor(data["locations"].astype(np.int64))
        some[:, 2] += first
        assert first <= some[:, 2].min() and some[:, 2].max() <= last
        locations.append(some)
        activations.append(torch.tensor(data["activations"]))
        assert tokens is None or np.array_equal(tokens, data["tokens"])
        tokens = data["tokens"]
    return torch.cat(locations), torch.cat(activations), tokens


def test_delphi_reads_every_activation(run, tmp_path):
    directory = export_delphi(run, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [directory.name] == ["blocks.2.hook_resid_post"]
    locations, activations, tokens = delphi_reads(directory)
    windows = run.activations.windows
    assert np.array_equal(tokens, windows)
    expected = {
        (*divmod(int(run.activations.positions[token]), windows.shape[1]), latent): value
        for latent in range(run.sae.d_sae)
        for token, value in zip(*run.activations.of(latent), strict=True)
        if abs(value) > 1e-5
    }
    found = {tuple(place): value for place, value in zip(locations.tolist(), activations.tolist(), strict=True)}
    assert found.keys() == expected.keys()
    assert all(value == pytest.approx(float(expected[place]), rel=1e-3) for place, value in found.items())
    bounds = torch.linspace(0, run.sae.d_sae, 6).long().tolist()
    assert {file.stem for file in directory.glob("*.safetensors")} <= {f"{a}_{b - 1}" for a, b in pairwise(bounds)}


def test_delphi_finds_its_settings(run, tmp_path):
    config = json.loads((export_delphi(run, tmp_path) / "config.json").read_text())
    expected = "dataset_repo dataset_split dataset_name dataset_column batch_size cache_ctx_len n_tokens n_splits model_name"
    assert list(config) == expected.split()
    assert (config["cache_ctx_len"], config["n_tokens"]) == (128, run.activations.windows.size)


def test_wide_saes_make_more_files_for_delphi(run, tmp_path, monkeypatch):
    monkeypatch.setattr("analysis.features.delphi.MOST_ENTRIES", 500)
    whole, parts = (delphi_reads(export_delphi(run, tmp_path / name)) for name in ("a", "b"))
    monkeypatch.undo()
    assert len(list((tmp_path / "a" / "blocks.2.hook_resid_post").glob("*.safetensors"))) > 5
    for mine, theirs in zip(whole[:2], parts[:2], strict=True):
        assert torch.equal(mine, theirs)


def test_some_latents_are_exported_alone(run, tmp_path):
    locations, _, _ = delphi_reads(export_delphi(run, tmp_path, [int(run.activations.counts.argmax())]))
    assert set(locations[:, 2].tolist()) == {int(run.activations.counts.argmax())}


def test_without_a_language_model_nothing_is_exported(tmp_path):
    run = of_known_features(tmp_path)
    for export in (export_delphi, export_neuronpedia):
        with pytest.raises(ConfigError, match="got activations of source 'synthetic'"):
            export(run, tmp_path / "out")
        assert not (tmp_path / "out").exists()
