import functools
import json
import shutil

import pytest
import torch
import yaml
from fake_results import metrics_at, record_of, write_run, write_sweep
from fake_transcoders import D_SAE, N_LAYERS, D, record, run_id, tensors_of, write_results, write_transcoder
from safetensors.torch import load_file
from typer.testing import CliRunner

from analysis.export.circuit_tracer import TENSORS
from sae_core.activations.language_model.model_spec import model_spec
from sae_core.errors import ConfigError
from sae_core.files import check_tensors
from sae_core.sae.saelens_files import TRANSCODERS
from sweeps.cli import app
from sweeps.exporting import export

pytestmark = pytest.mark.slow  # the model's hook points are read off the model: about two seconds
SPEC = functools.cache(model_spec)


@pytest.fixture(autouse=True)
def _model_built_once(monkeypatch):
    monkeypatch.setattr("sae_core.activations.language_model.model_spec.model_spec", SPEC)


@pytest.fixture
def results(tmp_path):
    return write_results(tmp_path / "results")


def add(results, number, *, k=8, tensors=None, cfg=None, **changes):
    """One more run with its SAE; its id."""
    made = record(number, k, **changes)
    write_run(results, made)
    write_transcoder(results / "runs" / made.run_id / "sae", tensors or tensors_of(number), **(cfg or {}))
    return made.run_id


@pytest.mark.parametrize(("has_skip", "has_threshold"), [(True, True), (False, False)])
def test_a_set_computes_what_saelens_computes(tmp_path, has_skip, has_threshold):
    """circuit-tracer's formulas on the files against SAELens' formulas on the SAEs; with its own code: tests/conformance."""
    results = write_results(tmp_path / "results", has_skip=has_skip, has_threshold=has_threshold)
    runs, (config, *layers) = export(results, tmp_path / "set", form="circuit-tracer", l0=16)
    assert [run.run_id for run in runs] == [run_id(layer, 16) for layer in range(N_LAYERS)]
    content = yaml.safe_load(config.read_text())
    assert (content["model_kind"], content["feature_input_hook"], content["feature_output_hook"]) == (
        "transcoder_set",
        "mlp.hook_in",
        "hook_mlp_out",
    )
    assert [entry["run_id"] for entry in content["runs"]] == [run.run_id for run in runs]
    assert sorted(file.name for file in (tmp_path / "set").iterdir()) == [
        "config.yaml",
        *(f"layer_{layer}.safetensors" for layer in range(4)),
    ]
    x = torch.randn(50, D)
    for number, file in enumerate(layers):
        theirs, ours = load_file(file), tensors_of(number, has_skip=has_skip, has_threshold=has_threshold)
        assert check_tensors(file)
        assert theirs["W_enc"].shape == (D_SAE, D)
        z = x @ theirs["W_enc"].T + theirs["b_enc"]
        threshold = theirs.get("activation_function.threshold")
        latents = z.relu() if threshold is None else z * (z > threshold)
        expected = (x @ ours["W_enc"] + ours["b_enc"]).relu()
        expected = expected * (expected > ours["threshold"]) if has_threshold else expected
        torch.testing.assert_close(latents, expected)
        skip = x @ theirs["W_skip"].T if has_skip else 0
        torch.testing.assert_close(
            latents @ theirs["W_dec"] + theirs["b_dec"] + skip,
            expected @ ours["W_dec"] + ours["b_dec"] + (x @ ours["W_skip"].T if has_skip else 0),
        )


def test_hook_points_may_be_paths_of_modules(tmp_path):
    made = [record(layer, 8, hooks=("transformer.h.{layer}.mlp@input", "transformer.h.{layer}.mlp")) for layer in range(N_LAYERS)]
    results = write_sweep(tmp_path / "results", made)
    for layer in range(N_LAYERS):
        write_transcoder(results / "runs" / run_id(layer, 8) / "sae", tensors_of(layer))
    export(results, tmp_path / "set", form="circuit-tracer", l0=8)
    content = yaml.safe_load((tmp_path / "set" / "config.yaml").read_text())
    assert (content["feature_input_hook"], content["feature_output_hook"]) == ("mlp.hook_in", "hook_mlp_out")


def test_layers_may_come_from_several_sweeps(results, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(results, other)
    for layer, directory in ((0, results), (1, other), (2, other), (3, other)):
        for k in (8, 16):
            shutil.rmtree(directory / "runs" / run_id(layer, k))
    for directory in (results, other):
        (directory / "sweep.json").unlink()
    with pytest.raises(ConfigError, match=r"one transcoder of each of the 4 layers .* but got none of layers \[0\]\. Train those"):
        export(results, tmp_path / "set", form="circuit-tracer", l0=8)
    runs, _ = export([results, other], tmp_path / "set", form="circuit-tracer", l0=8)
    assert len(runs) == N_LAYERS


def test_ambiguous_layers_are_named_and_solved_by_run_ids(results, tmp_path):
    other = add(results, 2, hooks=("hook_resid_mid", "hook_mlp_out"), run_id="topk-other")
    with pytest.raises(
        ConfigError, match=r"2 of layer 2 \((topk-l2-k8, topk-other|topk-other, topk-l2-k8)\)\. Name one run per layer with `--run`"
    ):
        export(results, tmp_path / "set", form="circuit-tracer", l0=8)
    with pytest.raises(ConfigError, match=r"must have the same hook points .* hook_resid_mid -> hook_mlp_out of topk-other"):
        export(results, tmp_path / "set", form="circuit-tracer", run_ids=[*(run_id(layer, 8) for layer in (0, 1, 3)), other])
    ids = [run_id(layer, 8) for layer in (3, 2, 1, 0)]
    runs, _ = export(results, tmp_path / "set", form="circuit-tracer", run_ids=ids)
    assert [run.run_id for run in runs] == ids[::-1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hooks": ("hook_resid_pre", None)}, "must be transcoders, but got SAEs: wrong. Train with a `hook_out`"),
        ({"hooks": ("hook_resid_pre", "hook_mlp_out")}, "must be 'blocks.*.mlp.hook_in' or .* but got 'blocks.1.hook_resid_pre'"),
        ({"hooks": ("mlp.hook_in", "hook_attn_out")}, "must be 'blocks.*.hook_mlp_out' or .* but got 'blocks.1.hook_attn_out'"),
        ({"hooks": ("mlp.hook_in", "transformer.h.2.mlp")}, "in one layer, but got blocks.1.mlp.hook_in -> transformer.h.2.mlp"),
        ({"cfg": {"architecture": "jumprelu"}}, r"architecture must be one of .* but got 'jumprelu' for layer 1, run wrong"),
        ({"cfg": {"d_out": 64}}, "must be as wide, but got d_in=128 and d_out=64 for layer 1"),
        ({"cfg": {"apply_b_dec_to_input": True}}, "nothing may be done to the input .* apply_b_dec_to_input=True"),
        ({"cfg": {"normalize_activations": "layer_norm"}}, "normalize_activations='layer_norm'"),
        ({"cfg": {"d_sae": 12}}, r"d_sae must be the same in all layers, but got 24 for layer 0 \(run topk-l0-k8\), 12 for layer 1"),
        ({"tensors": tensors_of(1, has_skip=True)}, "skip connection must be the same in all layers, but got False for layer 0"),
        ({"tensors": {**tensors_of(1), "W_enc": torch.zeros(D_SAE, D)}}, r"has tensors .* not .*'W_enc': \(24, 128\)"),
    ],
)  # fmt: skip
def test_what_circuit_tracer_would_load_and_compute_wrongly_is_refused(results, tmp_path, changes, message):
    wrong = add(results, 1, run_id="wrong", **changes)
    with pytest.raises(ConfigError, match=message):
        export(results, tmp_path / "set", form="circuit-tracer", run_ids=[run_id(0, 8), wrong, run_id(2, 8), run_id(3, 8)])
    assert not (tmp_path / "set").exists()
    assert not list(tmp_path.glob(".set*"))


def test_folders_are_copies(results, tmp_path):
    runs, folders = export(results, tmp_path / "saes", l0=8)
    assert [folder.name for folder in folders] == [run_id(layer, 8) for layer in range(N_LAYERS)]
    for run, folder in zip(runs, folders, strict=True):
        for file in ("cfg.json", "sae_weights.safetensors"):
            assert (folder / file).read_bytes() == (run.directory / file).read_bytes()


@pytest.mark.parametrize("options", [{}, {"l0": 8, "run_ids": ["x"]}, {"architecture": "topk", "run_ids": ["x"]}])
def test_options_that_contradict_each_other(results, tmp_path, options):
    with pytest.raises(ConfigError, match="`--run`"):
        export(results, tmp_path / "to", **options)


def test_what_cannot_be_chosen(results, tmp_path):
    with pytest.raises(ConfigError, match=r"run id must be one of .* but got 'topk-l0-k9'\. Did you mean 'topk-l0-k8'"):
        export(results, tmp_path / "to", run_ids=["topk-l0-k9"])
    with pytest.raises(ConfigError, match=r"(?s)blocks\.0\.mlp\.hook_in -> blocks\.0\.hook_mlp_out: .* but got 100.*blocks\.3"):
        export(results, tmp_path / "to", l0=100)
    shutil.rmtree(results / "runs" / run_id(2, 8) / "sae")
    with pytest.raises(ConfigError, match=r"must have their SAEs to be exported, but got none of topk-l2-k8 \(finished\)"):
        export(results, tmp_path / "to", l0=8)
    saes = write_sweep(tmp_path / "saes", [record_of("topk", 8, metrics_at(8, 0.1, 0.1))])
    with pytest.raises(ConfigError, match="results must have finished transcoders, which a `hook_out`"):
        export(saes, tmp_path / "to", form="circuit-tracer", l0=8)
    (tmp_path / "to").mkdir()
    (tmp_path / "to" / "layer_4.safetensors").touch()
    with pytest.raises(ConfigError, match=r"must be a new or empty directory, .* but got '.*to'"):
        export(results, tmp_path / "to", run_ids=[run_id(0, 8)])


def test_the_command_says_what_it_wrote_and_how_to_load_it(results, tmp_path):
    arguments = ["export", str(results), "--l0", "8", "--to", str(tmp_path / "set"), "--format", "circuit-tracer"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert f"layer_3.safetensors: {run_id(3, 8)}, blocks.3.mlp.hook_in -> blocks.3.hook_mlp_out, L0 8, FVU 0.125" in done.stdout
    assert f'"{tmp_path / "set"}")' in done.stdout
    again = CliRunner().invoke(app, [*arguments, "--json"])
    assert again.exit_code == 2
    assert "must be a new or empty directory" in json.loads(again.stdout)["error"]["message"]


def test_every_transcoder_has_its_tensors():
    assert set(TENSORS) == set(TRANSCODERS)
