import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_core.activations.synthetic import SyntheticActivations
from sae_core.architectures.topk import TopKConfig
from sae_core.config.run import RunConfig, TrainConfig
from sweeps.planning.grouping import group_runs, stream_key, training_cost
from sweeps.planning.memory import group_bytes

ACTIVATIONS = SyntheticActivations(train_tokens=10_000, eval_tokens=1000)


def make(d_sae, batch_size, data_seed, seed):
    sae = TopKConfig(d_sae=d_sae, k=4)
    return RunConfig(activations=ACTIVATIONS, sae=sae, train=TrainConfig(batch_size=batch_size), seed=seed, data_seed=data_seed)


def many(batch_sizes, data_seeds, max_size):
    parts = st.tuples(st.integers(8, 4096), st.sampled_from(batch_sizes), st.sampled_from(data_seeds))
    return st.lists(parts, min_size=1, max_size=max_size).map(lambda found: [make(*part, seed) for seed, part in enumerate(found)])


def width(_):
    return 32


def cost(group):
    return sum(training_cost(run, 32) for run in group)


@settings(deadline=None)
@given(many([256, 512], [0, 1], max_size=30), st.integers(1, 8), st.floats(1, 4))
@pytest.mark.slow
def test_every_run_is_in_one_group_of_its_stream_and_fits(runs, n_slots, room):
    memory = int(max(group_bytes([run], width) for run in runs) * room)
    groups = group_runs(runs, n_slots=n_slots, d_in=width, slot_bytes=memory)
    assert sorted(run.run_id for group in groups for run in group) == sorted(run.run_id for run in runs)
    assert all(len({stream_key(run) for run in group}) == 1 for group in groups)
    assert all(group_bytes(group, width) <= memory for group in groups)
    assert [cost(group) for group in groups] == sorted((cost(group) for group in groups), reverse=True)


@settings(deadline=None)
@given(many([256], [0], max_size=30), st.integers(1, 8))
@pytest.mark.slow
def test_grouping_does_not_depend_on_the_order_of_different_runs(runs, n_slots):
    distinct = list({run.sae.d_sae: run for run in runs}.values())
    groups = group_runs(distinct, n_slots=n_slots, d_in=width)
    assert groups == group_runs(distinct[::-1], n_slots=n_slots, d_in=width)


@pytest.mark.slow
@settings(deadline=None, max_examples=40)
@given(many([256], [0], max_size=7))
def test_balance_is_within_four_thirds_of_the_best(runs):
    groups = group_runs(runs, n_slots=1, d_in=width)
    n_groups, costs = len(groups), [cost([run]) for run in runs]
    best = min(
        max(sum(each for each, place in zip(costs, places, strict=True) if place == group) for group in range(n_groups))
        for places in itertools.product(range(n_groups), repeat=len(runs))
    )
    assert cost(groups[0]) <= best * (4 / 3 - 1 / (3 * n_groups)) * (1 + 1e-9)
