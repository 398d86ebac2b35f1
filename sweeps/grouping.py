"""Runs -> groups that train on one stream, each group a Ray trial. Pure functions of the configs.

Largest first into the least loaded group (LPT: at most 4/3 of the best possible balance), with a few groups per slot, so that
slots finish together although costs are estimates.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from sae_core.config import ARCHITECTURES, RunConfig
from sae_core.errors import ConfigError

Width = Callable[[RunConfig], int]
"""Width of a run's activations: a sweep may have an axis over models."""

GROUPS_PER_SLOT = 3
"""Groups each slot gets, when there are enough runs: fewer share a stream better, more balance better."""
_ENTRY_COST = 10
"""Time of an active latent relative to one that is not, for which only the encoder product is made; measured on the demo's sizes."""
_DENSE_SHARE = 0.2
"""Share of active latents above which more cost nothing: whole matrices are multiplied then."""
_FLOPS_PER_WEIGHT = 12
"""Per token: 2 for the forward pass and 4 for the backward pass, in each of encoder and decoder."""
_COPIES_OF_PARAMETERS = 4
"""The parameters, their gradients, and Adam's two moments."""
_LATENTS_ALIVE = 6
"""Tensors of the size of a batch's latents that a training step holds at its peak."""
_FLOAT_BYTES = 4


def n_parameters(run: RunConfig, d_in: int) -> int:
    """Parameters of the SAE: two matrices and their biases; what an architecture adds is small."""
    return 2 * d_in * run.sae.d_sae + run.sae.d_sae + d_in


def training_flops(run: RunConfig, d_in: int) -> float:
    """Floating-point operations of a run's training, as if all matrix products were dense: 12 d_in d_sae per token."""
    return float(_FLOPS_PER_WEIGHT * d_in * run.sae.d_sae * run.n_steps * run.train.batch_size)


def training_cost(run: RunConfig, d_in: int) -> float:
    """Relative time of a run's training: the encoder product and the work at active latents, times what the architecture adds."""
    latents = run.sae.d_sae + _ENTRY_COST * min(run.sae.expected_l0, _DENSE_SHARE * run.sae.d_sae)
    return run.n_steps * run.train.batch_size * d_in * latents * float(ARCHITECTURES[run.sae.architecture].relative_cost)


def group_bytes(group: Sequence[RunConfig], d_in: Width) -> int:
    """Memory a group needs while it trains: every run keeps its parameters and moments, but only one steps at a time."""
    kept = sum(n_parameters(run, d_in(run)) * _COPIES_OF_PARAMETERS * _FLOAT_BYTES for run in group)
    step = max(run.train.batch_size * run.sae.d_sae * _LATENTS_ALIVE * _FLOAT_BYTES for run in group)
    return kept + step


StreamKey = tuple[str, int, int, str]


def stream_key(run: RunConfig) -> StreamKey:
    """Runs with the same key read the same batches in the same order."""
    return run.activations.model_dump_json(), run.train.batch_size, run.data_seed, run.train.normalize_activations


def group_runs(runs: Sequence[RunConfig], *, n_slots: int, d_in: Width, memory_bytes: int | None = None) -> list[list[RunConfig]]:
    """Divide runs into groups that share a stream, the costliest group first.

    Args:
        n_slots: groups that train at the same time.
        d_in: width of a run's activations.
        memory_bytes: most memory a group may need; None for no limit.

    Raises:
        ConfigError: a single run needs more than `memory_bytes`.
    """
    cost = {run.run_id: training_cost(run, d_in(run)) for run in runs}
    streams: dict[StreamKey, list[RunConfig]] = {}
    for run in sorted(runs, key=lambda run: -cost[run.run_id]):
        _check_fits(run, d_in, memory_bytes)
        streams.setdefault(stream_key(run), []).append(run)
    groups: list[_Group] = []
    for members in streams.values():
        share = sum(cost[run.run_id] for run in members) / sum(cost.values())
        # A share of exactly a third must not be rounded up by an error in the last digit.
        wanted = max(1, math.ceil(share * n_slots * GROUPS_PER_SLOT - 1e-9))
        groups += _balanced(members, cost, min(len(members), wanted), d_in, memory_bytes)
    return [group.runs for group in sorted(groups, key=lambda group: -group.cost)]


def lone_runs(runs: Sequence[RunConfig], *, d_in: Width, memory_bytes: int | None = None) -> list[list[RunConfig]]:
    """Groups of one, so that each can be stopped by itself, in an order that is random but always the same: no learning rate comes first.

    Args:
        d_in: width of a run's activations.
        memory_bytes: most memory a group may need; None for no limit.

    Raises:
        ConfigError: a run needs more than `memory_bytes`.
    """
    for run in runs:
        _check_fits(run, d_in, memory_bytes)
    return [[run] for run in sorted(runs, key=lambda run: run.run_id.rpartition("-")[2])]  # a hash is as good as a die


@dataclass(slots=True, eq=False)
class _Group:
    runs: list[RunConfig] = field(default_factory=list)
    cost: float = 0.0


def _balanced(runs: Sequence[RunConfig], cost: Mapping[str, float], n_groups: int, d_in: Width, memory_bytes: int | None) -> list[_Group]:
    """LPT: runs, costliest first, each into the least loaded group that has room, or into a new one."""
    groups = [_Group() for _ in range(n_groups)]
    for run in runs:
        room = [group for group in groups if memory_bytes is None or group_bytes([*group.runs, run], d_in) <= memory_bytes]
        if not room:
            groups += (room := [_Group()])
        least = min(room, key=lambda group: group.cost)
        least.runs.append(run)
        least.cost += cost[run.run_id]
        # Among equals the last one filled comes first: back and forth, so that no group gets every architecture's largest k.
        groups.remove(least)
        groups.insert(0, least)
    return [group for group in groups if group.runs]


def _check_fits(run: RunConfig, d_in: Width, memory_bytes: int | None) -> None:
    needed = group_bytes([run], d_in)
    if memory_bytes is not None and needed > memory_bytes:
        raise ConfigError(
            f"a run must fit into a slot's memory, but {run.run_id} needs {needed / 2**30:.2f} GiB (d_sae={run.sae.d_sae}, "
            f"batch_size={run.train.batch_size}) and the slot has {memory_bytes / 2**30:.2f} GiB. Lower one of them, or use fewer slots."
        )
