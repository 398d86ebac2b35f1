"""A sweep on known features, from `launch` to the report: the TopK family finds them."""

import pandas as pd
import pytest
from inline import launch
from small_sweep import small_sweep

GROUND_TRUTH = ["mcc", "uniqueness", "feature_precision", "feature_recall", "feature_f1"]


def test_the_topk_family_recovers_the_features(tmp_path):
    sweep = small_sweep(
        activations={"source": "synthetic", "d_in": 32, "n_features": 48, "n_active": 3.0, "train_tokens": 100_000, "eval_tokens": 6_000},
        sae={"d_sae": 48},
        train={"batch_size": 256, "lr": 1e-2, "dead_after_tokens": 5_000},
        target_l0=3,
        architectures={"topk": {}, "batchtopk": {}, "matryoshka_batchtopk": {}},
    )
    done = launch(sweep, results=tmp_path)
    assert (done.finished, done.failed) == (3, {})
    table = pd.read_csv(done.directory / "table.csv").set_index("architecture")
    assert (table.mcc > 0.8).all(), table[GROUND_TRUTH]  # measured: 0.90 to 0.93
    assert table[GROUND_TRUTH].gt(0.6).all(axis=None)
    assert table[GROUND_TRUTH].le(1).all(axis=None)
    assert table.true_l0.to_list() == pytest.approx([3.0] * 3, abs=0.1)
    assert (done.directory / "report" / "plots" / "ground_truth.png").is_file()
