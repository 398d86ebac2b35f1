import pytest

from sae_core.errors import ConfigError
from sweeps.definition.sweep import Sweep

BASE = {
    "name": "small",
    "model": {"name": "demo", "hook_point": "blocks.2.hook_resid_post"},
    "data": {"dataset": "demo", "train_tokens": 100_000, "eval_tokens": 1000},
    "sae": {"d_sae": 64},
    "architectures": {"topk": {"k": 8}, "standard": {"l1_coefficient": 1}},
}
WHATEVER = {"topk": {"k": 8}, "batchtopk": {"k": 8}}


def problems(**changes):
    with pytest.raises(ConfigError) as error:
        Sweep(**{**BASE, **changes}).runs()
    return str(error.value).splitlines()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"target_l0": [4, 8], "sae": {"d_sae": 64, "target_l0": 16}, "architectures": {"topk": {}}},
            "sae.target_l0: `target_l0` must be given once for all architectures, but got 16 beside "
            "`target_l0: [4, 8]`. Remove one of them.",
        ),
        (
            {"target_l0": 4, "architectures": {"topk": {"target_l0": 8}, "gated": {"target_l0": 16}}},
            "target_l0: `target_l0` must be that of some architecture, but got target_l0=4 and every one gives its own. "
            "Remove it here, or there.",
        ),
        (
            {"sae": {"d_sae": 32}, "architectures": {"topk": {"k": 8, "d_sae": 64}}},
            "sae.d_sae: `d_sae` must be that of some architecture, but got d_sae=32 and every one gives its own. Remove it here, or there.",
        ),
        (
            {"train": {"lr": 1e-3}, "architectures": {"topk": {"k": 8, "lr": 2e-3}, "gated": {"lr": [1e-3, 2e-3]}}},
            "train.lr: `lr` must be that of some architecture, but got lr=0.001 and every one gives its own.",
        ),
        (
            {"train": {"lr_min_factor": 0.05}},
            "train.lr_min_factor: `lr_min_factor` must come with a cosine `lr_schedule`, or nothing reads it, but got lr_min_factor=0.05 "
            "and lr_schedule='constant'. Remove it, or change `lr_schedule`.",
        ),
        (
            {"train": {"n_restarts": 3, "lr_schedule": "cosine"}},
            "but got n_restarts=3 and lr_schedule='cosine'. Remove it, or change `lr_schedule`.",
        ),
        (
            {"train": {"n_restarts": [1, 2], "lr_schedule": ["cosine", "cosine_restarts"]}},
            "train.n_restarts: `n_restarts` must come with `lr_schedule: cosine_restarts`, or nothing reads it, but got n_restarts=[1, 2]",
        ),
        (
            {"architectures": {"topk": {"k": 8, "sparsity_warm_up": 0.1}, "gated": {}}},
            "architectures.topk.sparsity_warm_up: `sparsity_warm_up` must come with an architecture with a sparsity coefficient",
        ),
        ({"train": {"sparsity_warm_up": 0.1}, "architectures": WHATEVER}, "but got sparsity_warm_up=0.1 and architecture='topk'."),
        (
            {"data": {**BASE["data"], "text_column": "body", "tokens_column": "ids"}},
            "data.text_column: `text_column` must come with text, and not with `tokens_column`, or nothing reads it, "
            "but got text_column='body' and tokens_column='ids'.",
        ),
        (
            {"data": {**BASE["data"], "subset": "en"}},
            "data.subset: `subset` must come with a dataset that has subsets, or nothing reads it, but got subset='en' and dataset='demo'.",
        ),
    ],
)
def test_what_nothing_reads(changes, message):
    (line,) = problems(**changes)
    assert message in line


@pytest.mark.parametrize(
    "changes",
    [
        {"train": {"lr": 1e-3}, "architectures": {"topk": {"k": 8, "lr": 2e-3}, "gated": {}}},
        {"train": {"lr_min_factor": 0.05, "lr_schedule": ["constant", "cosine"]}},  # the cosine reads it
        {"train": {"lr_min_factor": 0.1}},  # what it would be anyway
        {"train": {"sparsity_warm_up": 0.1}},  # standard reads it
        {"train": {"sparsity_warm_up": 0.1}, "architectures": WHATEVER, "early_stopping": {"rungs": [0.2]}},  # rungs lie after it
        {"data": {**BASE["data"], "text_column": "text", "tokens_column": "ids"}},
        {"target_l0": 4, "architectures": {"topk": {"target_l0": 8}, "gated": {}}},
        {"target_l0": 4, "sae": {"d_sae": 64, "target_l0": None}, "architectures": {"topk": {}}},
    ],
)
def test_what_something_reads(changes):
    assert Sweep(**{**BASE, **changes}).runs()


def test_a_search_has_no_unread_fields_either():
    search = {"search": {"trials": 2}, "architectures": {"topk": {"k": [8, 16]}}, "train": {"n_restarts": 5}}
    with pytest.raises(ConfigError, match=r"train\.n_restarts: .* but got n_restarts=5 and lr_schedule='constant'"):
        Sweep(**{**BASE, **search}).space()
