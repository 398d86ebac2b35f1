"""`plan --cluster`: what a sweep takes on GPUs that are not at hand."""

import time

import pytest
from small_sweep import small_sweep

from sae_core.errors import ConfigError
from sweeps.definition.sweep import Sweep
from sweeps.planning.plan import plan
from sweeps.planning.rented import RentedCluster, rates

GEMMA_SCOPE = {
    "name": "large",
    "activations": {
        "source": "synthetic",
        "d_in": 2304,
        "n_features": 4096,
        "n_active": 30.0,
        "train_tokens": 4_000_000_000,
        "eval_tokens": 2_000_000,
    },
    "sae": {"d_sae": [16_384, 131_072]},
    "train": {"batch_size": 4096, "lr": [7e-5, 1e-4, 2e-4, 3e-4, 5e-4]},
    "target_l0": [10, 15, 20, 30, 40, 50, 60, 80, 100, 150],
    "architectures": {"jumprelu": {}, "topk": {}, "batchtopk": {}, "gated": {}},
    "seeds": [0, 1, 2, 3, 4],
}
"""2,000 SAEs of 4 G tokens each."""


@pytest.mark.slow
def test_a_sweep_of_the_size_of_gemma_scope_is_planned_within_seconds(tmp_path):
    began = time.process_time()
    cluster = RentedCluster.parse("gpus=256,gpu=h200,price=3.5")
    planned = plan(Sweep(**GEMMA_SCOPE), tmp_path, cluster.gpus, slot_bytes=cluster.slot_bytes, cluster=cluster)
    data, lines = planned.data(), planned.lines()
    assert time.process_time() - began < 15  # 2 s (benchmarks/scale.py) without the checks of shapes, on a machine that is idle
    assert len(data["runs"]) == 2_000
    bill = data["cluster"]
    # 12 d_in d_sae per token, 4 G tokens, half of the 2,000 runs per width, the mean of the four architectures' relative costs.
    flops = 12 * 2304 * 1000 * (16_384 + 131_072) * 4096 * (4_000_000_000 // 4096) * (1.2 + 1.1 + 1.05 + 1.35) / 4
    hours = flops / (67e12 * 0.3) / 3600
    assert bill["gpu_hours"] == pytest.approx(hours, rel=0.1)  # slots do not end together
    assert bill["cost"] == pytest.approx(3.5 * bill["gpu_hours"])
    assert data["memory_bytes"] <= cluster.slot_bytes
    # The cache is written once and read by every group.
    cache = 4_000_000_000 * 2304 * 4
    assert data["activations_bytes"] == cache
    assert bill["network_bytes"] == pytest.approx(cache * (1 + data["groups"]) + data["results_bytes"], rel=1e-4)
    text = "\n".join(lines)
    for part in ("cluster     256 x h200", "at 3.5 per GPU-hour", "GiB/s to groups in training", "(assumed:", "data sheet"):
        assert part in text


def test_a_model_is_counted_and_bfloat16_is_faster(tmp_path):
    cluster = RentedCluster(1, "h100")
    (shared,) = plan(small_sweep(), tmp_path, 1).inputs
    shared.model_bytes = 4_000_000
    costs, run = cluster.costs([shared]), shared.runs[0]
    # Synthetic activations have no model, and are in float32: two operations per weight.
    assert costs.evaluate_seconds(shared, 1) == pytest.approx(6_000 * (1 + 3) * 2 * 1_000_000 / (67e12 * 0.3))
    fast = run.model_copy(update={"train": run.train.model_copy(update={"autocast": "bfloat16"})})
    assert costs.train(run, 16) / costs.train(fast, 16) == pytest.approx(989 / 67)
    assert cluster.bill({"training": 3600.0, "harvest": float("nan")}, 0, 0)["cost"] is None


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("", ["unknown key ''", "`gpus` must be a whole number from 1 on, but got None", "`gpu` must be one of"]),
        ("gpus=1.5,gpu=h20", ["but got '1.5'", "but got 'h20'"]),
        ("gpus=4,gpus=5,gpu=h200", ["'gpus' is there more than once"]),
        ("gpus=4,gpu=h200,prices=1", ["unknown key 'prices'"]),
        ("gpus=4,gpu=h200,price=-1", ["`price` must be a number from 0 on, per GPU and hour, but got '-1'"]),
        ("gpus=inf,gpu=h200,price=nan", ["but got 'inf'", "but got 'nan'"]),
    ],
)
def test_every_problem_of_a_cluster_is_told(text, problems):
    with pytest.raises(ConfigError) as error:
        RentedCluster.parse(text)
    for problem in problems:
        assert problem in str(error.value)


def test_every_number_of_the_table_says_where_it_is_from():
    table = rates()
    for entry in [*table["cards"].values(), *table["utilization"].values(), *table["references"]]:
        assert entry["kind"] in ("data sheet", "assumed", "measured", "published")
        assert entry["source"]
