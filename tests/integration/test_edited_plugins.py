"""Plugins in a launch: edited ones make new runs or new measurements, and nothing is mixed."""

from plain_sae import PLUGIN

from analysis.table import load_table
from sweeps import Sweep, launch

METRIC = """
from sae_core.metrics.metric import METRICS, Metric
from sae_core.records import MetricSpec

@METRICS.register("answer")
class Answer(Metric):
    spec = MetricSpec("answer", "The answer", "", "none")
    def sums(self, seen):
        return {"tokens": seen.x_hat.new_tensor(len(seen.x_hat)).double()}
    def value(self, sums, n_tokens):
        return VALUE
"""


def sweep(tmp_path, **plugins):
    for name, text in plugins.items():
        (tmp_path / f"{name}.py").write_text(text)
    return Sweep(
        name="with-plugins",
        plugins=[str(tmp_path / f"{name}.py") for name in plugins],
        activations={"source": "synthetic", "train_tokens": 4_000, "eval_tokens": 1_000},
        sae={"d_sae": 32},
        train={"batch_size": 256},
        architectures={"topk": {"k": 4}} | ({"plain": {"l1_coefficient": 0.5}} if "architecture" in plugins else {}),
    )


def table_of(sweep, tmp_path):
    done = launch(sweep, results=tmp_path / "results", executor="inline")
    assert (done.failed, done.missing) == ({}, [])
    return load_table(done.directory)


def test_a_metric_that_is_added_or_edited_is_measured_on_the_saes_that_are_there(tmp_path):
    before = table_of(sweep(tmp_path), tmp_path)
    added = table_of(sweep(tmp_path, metric=METRIC.replace("VALUE", "42.0")), tmp_path)
    edited = table_of(sweep(tmp_path, metric=METRIC.replace("VALUE", "43.0")), tmp_path)
    assert "answer" not in before
    assert (list(added.answer), list(edited.answer)) == ([42.0], [43.0])
    assert list(before.run_id) == list(added.run_id) == list(edited.run_id), "nothing is trained again"
    assert list(before.fvu) == list(edited.fvu)


def test_an_edited_architecture_makes_new_runs_and_leaves_the_others(tmp_path):
    first = table_of(sweep(tmp_path, architecture=PLUGIN), tmp_path)
    edited = table_of(sweep(tmp_path, architecture=PLUGIN.replace(": l1}", ": 2 * l1}")), tmp_path)
    assert (len(first), len(edited)) == (2, 3), "the run of the plugin before it was edited stays"
    assert edited[edited.architecture == "topk"].run_id.tolist() == first[first.architecture == "topk"].run_id.tolist()
    plain = edited[edited.architecture == "plain"]
    assert plain.l0.nunique() == 2
