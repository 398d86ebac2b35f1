"""What bad input gets, from the command line to the real checks: exit code 2, the rule, the value and the remedy, and no results."""

import pytest
import yaml
from tiny_model import write_text
from typer.testing import CliRunner

from sae_core import provenance
from sweeps.cli import app
from sweeps.execution.cluster import Cluster
from sweeps.execution.local_ray import LOOPBACK
from sweeps.storage.lock import locked

SYNTHETIC = {"source": "synthetic", "train_tokens": 5_000, "eval_tokens": 1_000}
LANGUAGE_MODEL = {
    "model": {"name": "demo", "hook_point": "blocks.2.hook_resid_post"},
    "data": {"dataset": "text.jsonl", "train_tokens": 2_000, "eval_tokens": 1_000},
}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs a definition that is right but for `settings`, in a directory of its own."""
    monkeypatch.setattr(Cluster, "__enter__", lambda self: pytest.fail("Ray was started"))
    monkeypatch.setattr(provenance, "n_cores", lambda: 2)
    monkeypatch.setattr(provenance, "gpu_names", list)
    monkeypatch.chdir(tmp_path)

    def run(source, *arguments, **sections):
        fields = {"sae": {"d_sae": 64}, "train": {"batch_size": 512}, "architectures": {"topk": {"k": [4]}}}
        definition = {"name": "bad", **source, **fields, **sections}
        (tmp_path / "bad.yaml").write_text(yaml.safe_dump(definition))
        if "data" in source:
            write_text(tmp_path / "text.jsonl")
        return CliRunner().invoke(app, ["run", "bad.yaml", *arguments])

    return run


def refused(done, tmp_path, *parts):
    """Exit code 2, `parts` in the message, and nothing in the results but the cache of activations."""
    assert done.exit_code == 2, done.output
    for part in parts:
        assert part in done.stderr
    assert "Traceback" not in done.output
    assert done.stdout == ""
    results = tmp_path / "results"
    assert not results.exists() or [path.name for path in results.iterdir()] == [".activations"]


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        (["optimizer=adam"], ["unknown key 'optimizer'.", "Known keys here: ["]),
        (["train.learning_rate=1"], ["train: unknown key 'learning_rate'.", "'lr'"]),
        (["sae.dsae=64"], ["sae: unknown key 'dsae'. Did you mean 'd_sae'?"]),
        (["activations.train_token=1"], ["activations: unknown key 'train_token'. Did you mean 'train_tokens'?"]),
        (["architectures.topk.ks=4"], ["architectures.topk: unknown key 'ks'. Did you mean 'k'?"]),
        (["architectures.top_k.k=4"], ["architecture must be one of", "but got 'top_k'. Did you mean 'topk'?"]),
        (["activations.source=synthetc"], ["activation source must be one of", "but got 'synthetc'. Did you mean 'synthetic'?"]),
        (["architectures.topk.k=[4, 65]"], ["`k` must satisfy 0 < k <= d_sae, but got k=65 and d_sae=64. Lower"]),
        (["activations.train_tokens=-5"], ["`train_tokens` must be greater than or equal to 1, but got train_tokens=-5. Raise it."]),
        (["activations.eval_tokens=0"], ["`eval_tokens` must be greater than or equal to 1, but got eval_tokens=0. Raise it."]),
        (["architectures.topk.l1_coefficient=[1, 2]"], ["unknown key 'l1_coefficient'.", "The sparsity of 'topk' is set by `k`."]),
        (["architectures.topk.k=[4, 4]"], ["architectures.topk.k: an axis must list each value once, but got 4 twice. Remove one."]),
        (["seeds=[0, 0]"], ["seeds: an axis must list each value once, but got 0 twice. Remove one."]),
        (["train.lr=[]"], ["train.lr: an axis must list at least one value, but got lr=[]. Add one"]),
        (["name=../up"], ["and start with a letter or digit", "but got name='../up'."]),
    ],
)
def test_definitions(run, tmp_path, settings, parts):
    arguments = [argument for setting in settings for argument in ("--set", setting)]
    refused(run({"activations": SYNTHETIC}, *arguments), tmp_path, *parts)


def test_runs_that_mean_the_same(run, tmp_path):
    done = run({"activations": SYNTHETIC}, "--set", "train.lr=[1, 1.0]")
    refused(done, tmp_path, "but got 1")
    assert "twice. Remove one" in done.stderr


def test_all_problems_are_told_at_once(run, tmp_path):
    done = run({"activations": SYNTHETIC}, "--set", "train.lr=-1", "--set", "architectures.topk.k=0", "--set", "seeds=[-1]")
    refused(done, tmp_path, "lr=-1", "k=0", "seeds=-1")
    assert len(done.stderr.strip().splitlines()) == 3


@pytest.mark.parametrize(
    ("setting", "parts"),
    [
        ("model.hook_point=blocks.2.hook_resid_pots", ["but got 'blocks.2.hook_resid_pots'.", "Did you mean 'blocks.2.hook_resid_post'?"]),
        ("model.hook_point=blocks.9.hook_resid_post", ["but got 'blocks.9.hook_resid_post'.", "Did you mean 'blocks."]),
        ("model.name=./nothing", ["model.name: a local path must exist, but './nothing' is missing", "Correct it"]),
        ("data.dataset=nothing.parquet", ["data.dataset: a local path must exist, but 'nothing.parquet' is missing", "Correct it"]),
        ("data.text_column=txt", ["'txt'", "'text'"]),
        ("data.eval_split=heldot", ["but got 'heldot'", "'heldout'"]),
        ("data.train_tokens=50_000", ["`data.train_tokens` must be at most the ", "but got 50000. Lower `data.train_tokens`"]),
        ("data.eval_tokens=50_000", ["`data.eval_tokens` must be at most the ", "but got 50000. Lower `data.eval_tokens`"]),
        ("model.context_size=1000", ["`model.context_size` must be <= 128", "but got 1000. Lower"]),
    ],
)
def test_models_and_text(run, tmp_path, setting, parts):
    refused(run(LANGUAGE_MODEL, "--executor", "inline", "--set", setting), tmp_path, *parts)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpus-per-trial", "1"], "`--gpus-per-trial` must be at most the 0 GPUs there are, but got 1. Lower it, or use a GPU machine."),
        (["--cpus-per-trial", "3"], "`--cpus-per-trial` must be at most the 2 cores there are, but got 3. Lower it."),
        (["--address", "127.0.0.1:9"], "`--address` must be that of a running Ray cluster, but got '127.0.0.1:9'"),
    ],
)
def test_machines(run, tmp_path, monkeypatch, arguments, message):
    monkeypatch.delenv(LOOPBACK)  # the suite's environment is that of a process that has started Ray
    refused(run({"activations": SYNTHETIC}, *arguments), tmp_path, message)


@pytest.mark.parametrize(
    ("results", "message"),
    [
        (
            "bad.yaml",
            "`--results` must be the path of a directory, but got 'bad.yaml': '{here}/bad.yaml' is not a directory. Choose another.",
        ),
        ("bad.yaml/below", "but got 'bad.yaml/below': '{here}/bad.yaml' is not a directory"),
        ("x" * 300, "': [Errno 36] File name too long"),
    ],
)
def test_results_that_cannot_be(run, tmp_path, results, message):
    refused(run({"activations": SYNTHETIC}, "--results", results), tmp_path, message.format(here=tmp_path))


def test_a_second_launch_is_refused_before_ray_starts(run, tmp_path):
    with locked(tmp_path / "results" / "bad"):
        done = run({"activations": SYNTHETIC})
    assert done.exit_code == 2
    assert "only one launch at a time may write to a sweep, but process " in done.stderr
    assert not (tmp_path / "results").exists()


def test_results_of_another_sweep(run, tmp_path):
    theirs = tmp_path / "results" / "bad" / "notes.txt"
    theirs.parent.mkdir(parents=True)
    theirs.touch()
    done = run({"activations": SYNTHETIC})
    assert done.exit_code == 2
    assert f"must be empty or a sweep's, but '{theirs.parent}' holds ['notes.txt']. Choose another directory" in done.stderr
    assert list(theirs.parent.iterdir()) == [theirs]


def test_no_api_key_for_wandb(run, tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    done = run({"activations": SYNTHETIC}, wandb={"mode": "online"})
    refused(done, tmp_path, "`wandb.mode` must be offline where there is no API key, but got mode='online'. Run `wandb login`")
