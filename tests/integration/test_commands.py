"""`sae-sweep run`, `status`, `plan` and `report` on a real language model, in this process."""

import json
import math

import pandas as pd
import pytest
import yaml
from small_sweep import DIVERGING
from tiny_model import write_text
from typer.testing import CliRunner

from sae_core.config.run import ARCHITECTURES
from sweeps.cli import app


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A directory with a definition of every architecture and one run that diverges, its results, and what `run` said."""
    here = tmp_path_factory.mktemp("swept")
    definition = {
        "name": "all",
        "model": {"name": "demo", "hook_point": "blocks.2.hook_resid_post"},
        "data": {"dataset": str(write_text(here / "text.jsonl")), "train_tokens": 4_000, "eval_tokens": 1_000},
        "sae": {"d_sae": 256},
        "train": {"batch_size": 256, "lr": 3e-3},
        "architectures": {name: {ARCHITECTURES[name].Config.sparsity_parameter: 8} for name in ARCHITECTURES},
    }
    definition["architectures"]["gated"] = DIVERGING
    (here / "all.yaml").write_text(yaml.safe_dump(definition))
    return here, call("run", "--executor", "inline", here / "all.yaml", "--results", here / "results")


def test_run(swept):
    here, done = swept
    assert done.exit_code == 1
    assert f"Report: {here / 'results' / 'all' / 'report' / 'report.html'}" in done.stdout
    assert "Pareto frontier" in done.stdout
    assert "failed: gated-" in done.stderr
    assert "DivergedError: gradients must stay finite" in done.stderr
    assert "Traceback" not in done.output


def test_the_table_has_every_metric(swept):
    here, _ = swept
    table = pd.read_csv(here / "results" / "all" / "table.csv").set_index("architecture")
    assert set(table.index) == set(ARCHITECTURES)
    assert set(table.status[table.variant_of.notna()]) == {"form"}
    good = table[table.variant_of.isna()].drop(index="gated")
    assert set(good.status) == {"finished"}
    assert set(good.eval_tokens) == {1013}  # 8 windows of 127 tokens and BOS, less 3 BOS between documents
    for column in ("l0", "mse", "fvu", "cosine", "ce_loss_clean", "ce_loss_spliced", "delta_ce", "ce_loss_recovered", "kl"):
        assert good[column].map(math.isfinite).all(), column
    assert good.ce_loss_clean.nunique() == 1
    assert ((good.ce_loss_spliced - good.ce_loss_clean - good.delta_ce).abs() < 1e-5).all()
    assert good.l0.topk == pytest.approx(8, abs=0.01)


def test_exported_files_say_where_they_belong(swept):
    here, _ = swept
    (run,) = (here / "results" / "all" / "runs").glob("topk-*")
    exported = json.loads((run / "sae" / "cfg.json").read_text())
    assert exported["d_in"] == 128
    expected = {"run_id": run.name, "model_name": "demo", "hook_name": "blocks.2.hook_resid_post", "dataset_path": str(here / "text.jsonl")}
    assert exported["metadata"] | expected == exported["metadata"]


def test_status(swept):
    here, _ = swept
    done = call("status", here / "results" / "all")
    assert done.exit_code == 0
    n = len(ARCHITECTURES)
    assert done.stdout.splitlines()[-1] == f"{n - 1} finished, 0 trained, 0 pruned, 1 failed, 0 missing"
    assert "failed    DivergedError: gradients must stay finite" in done.stdout


def test_plan_says_that_nothing_is_left(swept):
    here, _ = swept
    done = call("plan", here / "all.yaml", "--results", here / "results")
    assert done.exit_code == 0, done.output
    assert f"Sweep all: {len(ARCHITECTURES)} runs, 0 to train" in done.stdout


def test_report_again(swept, tmp_path):
    here, _ = swept
    done = call("report", here / "results" / "all", "--out", tmp_path)
    assert done.stdout == f"Report: {tmp_path / 'report.html'}\n"
    assert 'src="http' not in (tmp_path / "report.html").read_text()


def test_other_text_is_another_sweep(swept):
    here, _ = swept
    before = (here / "results" / "all" / "sweep.json").read_text()
    done = call("run", "--executor", "inline", here / "all.yaml", "--results", here / "results", "--set", "data.train_tokens=3000")
    assert done.exit_code == 2
    assert "a results directory must hold one sweep" in done.stderr
    assert "train_tokens is 4000 there and 3000 here. Choose another directory with `--results DIR`" in done.stderr
    assert (here / "results" / "all" / "sweep.json").read_text() == before


def test_changed_text_under_the_same_name_is_refused(swept):
    here, _ = swept
    original = (here / "text.jsonl").read_text()
    try:
        write_text(here / "text.jsonl", n_train=13)
        done = call("run", "--executor", "inline", here / "all.yaml", "--results", here / "results")
    finally:
        (here / "text.jsonl").write_text(original)
    assert done.exit_code == 2
    assert "the model or the text changed under the same name. Start a new sweep with `--set name=NAME` or `--results DIR`." in done.stderr
