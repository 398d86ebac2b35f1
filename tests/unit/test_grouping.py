import pytest

from sae_core.config.run import ARCHITECTURES
from sae_core.errors import ConfigError
from sweeps.definition.sweep import Sweep
from sweeps.planning.grouping import GROUPS_PER_SLOT, group_runs, lone_runs, training_cost, training_flops
from sweeps.planning.memory import check_fits, group_bytes, weights_bytes


def runs(**changes):
    definition = {
        "name": "small",
        "activations": {"source": "synthetic", "train_tokens": 10_000, "eval_tokens": 1000},
        "sae": {"d_sae": 64},
        "train": {"batch_size": 512},
        "architectures": {"topk": {"k": [1, 2, 4, 8, 16, 32]}},
    }
    return Sweep(**{**definition, **changes}).runs()


def width(_):
    return 32


def test_lone_runs_come_in_a_random_order_that_is_always_the_same():
    groups = lone_runs(runs())
    assert sorted(run.sae.k for (run,) in groups) == [1, 2, 4, 8, 16, 32]
    assert [run.sae.k for (run,) in groups] != [1, 2, 4, 8, 16, 32]
    assert groups == lone_runs(runs()[::-1])


def test_estimates():
    run = runs()[0]
    assert weights_bytes(run, 32) == 4 * (2 * 32 * 64 + 64 + 32)
    # 10,000 tokens are 19 whole batches of 512.
    assert training_flops(run, 32) == 12 * 32 * 64 * 19 * 512
    # k is 1: 64 latents and 1 active one, which counts as ten.
    assert training_cost(run, 32) == 19 * 512 * 32 * (64 + 10) * ARCHITECTURES["topk"].relative_cost
    # 4,192 parameters in three copies; a step has two more, 5 tensors of 512 x 32, and lists 1 + 32 / 2 latents per token, 64 bytes each.
    assert group_bytes([run], width) == int(4 * 3 * 4_192 + 1.75 * (4 * (2 * 4_192 + 5 * 512 * 32) + 64 * 512 * (1 + 16)))


def test_a_few_groups_per_slot():
    groups = group_runs(runs(seeds=[0, 1]), n_slots=2, d_in=width)
    assert len(groups) == 2 * GROUPS_PER_SLOT
    assert sorted(len(group) for group in groups) == [2] * 6


def test_denser_runs_cost_more_until_whole_matrices_are_multiplied():
    costs = [training_cost(run, 32) for run in runs()]
    assert costs[0] < costs[1] < costs[2] < costs[3] < costs[4] == costs[5]


def test_costly_runs_are_spread_over_the_groups():
    several = runs(architectures={"topk": {"k": [1, 2, 10, 11, 12]}})
    groups = group_runs(several, n_slots=1, d_in=width)
    assert [sum(run.sae.k >= 10 for run in group) for group in groups] == [1, 1, 1]


def test_equal_runs_are_dealt_back_and_forth():
    several = runs(architectures={"topk": {"k": 4}}, seeds=[0, 1, 2, 3, 4, 5, 6])
    assert sorted(len(group) for group in group_runs(several, n_slots=1, d_in=width)) == [2, 2, 3]


def test_fewer_runs_than_slots_train_alone():
    assert [len(group) for group in group_runs(runs(), n_slots=50, d_in=width)] == [1] * 6


def test_no_runs_no_groups():
    assert group_runs([], n_slots=2, d_in=width) == []


def test_the_costliest_group_comes_first():
    groups = group_runs(runs(sae={"d_sae": [32, 512]}, architectures={"topk": {"k": 4}}), n_slots=2, d_in=width)
    assert [group[0].sae.d_sae for group in groups] == [512, 32]


def test_runs_on_different_streams_are_not_grouped():
    mixed = runs(train={"batch_size": [256, 512]}, data_seed=[0, 1], seeds=[0, 1], architectures={"topk": {"k": 4}})
    groups = group_runs(mixed, n_slots=1, d_in=width)
    assert sorted(len(group) for group in groups) == [2, 2, 2, 2]  # seeds share a stream
    assert all(len({(run.train.batch_size, run.data_seed) for run in group}) == 1 for group in groups)


def test_runs_with_other_normalisations_are_not_grouped():
    mixed = runs(train={"normalize_activations": ["none", "layer_norm"]}, architectures={"topk": {"k": [4, 8]}})
    groups = group_runs(mixed, n_slots=1, d_in=width)
    assert all(len({run.train.normalize_activations for run in group}) == 1 for group in groups)
    assert {group[0].train.normalize_activations for group in groups} == {"layer_norm", "none"}


def test_a_group_stays_within_memory():
    several = runs(architectures={"topk": {"k": 4}}, seeds=list(range(8)))
    limit = group_bytes(several[:2], width)
    groups = group_runs(several, n_slots=1, d_in=width, slot_bytes=limit)
    assert [len(group) for group in groups] == [2, 2, 2, 2]


def test_a_run_that_does_not_fit():
    message = r"a run must fit into a slot's memory of 0\.00 GiB, but 6 of 6 do not: topk-\w+ needs 0\.00 GiB \(d_sae=64, batch_size=512\)"
    with pytest.raises(ConfigError, match=message + ". Lower one of them"):
        check_fits([(run, 32) for run in runs()], slot_bytes=1000, live_bytes=0)
    with pytest.raises(ConfigError, match=r"batch_size=512\), 1\.00 GiB of it for what makes activations"):
        check_fits([(run, 32) for run in runs()], slot_bytes=2**30, live_bytes=2**30)
    check_fits([(run, 32) for run in runs()], slot_bytes=2**21, live_bytes=0)


def test_the_work_grows_with_the_number_of_runs_not_with_its_square():
    many = runs(train={"lr": [1e-4 * (i + 1) for i in range(100)]}, architectures={"topk": {"k": [2, 4]}})
    asked = []

    def counted(run):
        asked.append(run)
        return width(run)

    # Room for one: as many groups as runs, each of which is full at once.
    groups = group_runs(many, n_slots=2, d_in=counted, slot_bytes=group_bytes(many[:1], width))
    assert [len(group) for group in groups] == [1] * 200
    assert len(asked) <= 3 * 200
