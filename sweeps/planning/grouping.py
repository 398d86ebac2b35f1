"""Runs -> groups that train on one stream, each group a Ray trial. Pure functions of the configs.

Largest first into the least loaded group (LPT: at most 4/3 of the best possible balance), with a few groups per slot, so that
slots finish together although costs are estimates.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sae_core.config.run import ARCHITECTURES, RunConfig
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
    return sum(_kept_bytes(run, d_in(run)) for run in group) + max(_step_bytes(run) for run in group)


def _kept_bytes(run: RunConfig, d_in: int) -> int:
    return n_parameters(run, d_in) * _COPIES_OF_PARAMETERS * _FLOAT_BYTES


def _step_bytes(run: RunConfig) -> int:
    return run.train.batch_size * run.sae.d_sae * _LATENTS_ALIVE * _FLOAT_BYTES


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
    costed = [(run, training_cost(run, d_in(run))) for run in runs]
    total = sum(cost for _, cost in costed)
    streams: dict[StreamKey, list[tuple[RunConfig, float]]] = {}
    for run, cost in sorted(costed, key=lambda pair: -pair[1]):
        _check_fits(run, d_in, memory_bytes)
        streams.setdefault(stream_key(run), []).append((run, cost))
    groups: list[_Group] = []
    for members in streams.values():
        share = sum(cost for _, cost in members) / total
        # A share of exactly a third must not be rounded up by an error in the last digit.
        wanted = max(1, math.ceil(share * n_slots * GROUPS_PER_SLOT - 1e-9))
        groups += _balanced(members, min(len(members), wanted), d_in(members[0][0]), memory_bytes)
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
    kept_bytes: int = 0
    step_bytes: int = 0
    filled: int = 0
    """Number of the last run it got."""

    def bytes_with(self, run: RunConfig, d_in: int) -> int:
        """`group_bytes` of its runs and another."""
        return self.kept_bytes + _kept_bytes(run, d_in) + max(self.step_bytes, _step_bytes(run))

    def add(self, run: RunConfig, cost: float, d_in: int, number: int) -> None:
        self.runs.append(run)
        self.cost += cost
        self.kept_bytes += _kept_bytes(run, d_in)
        self.step_bytes = max(self.step_bytes, _step_bytes(run))
        self.filled = number


def _balanced(members: Sequence[tuple[RunConfig, float]], n_groups: int, d_in: int, memory_bytes: int | None) -> list[_Group]:
    """LPT: runs of one stream, costliest first, each into the least loaded group that has room, or into a new one."""
    groups = [_Group() for _ in range(n_groups)]
    open_groups = list(groups)
    smallest = min((run for run, _ in members), key=lambda run: run.sae.d_sae)
    for number, (run, cost) in enumerate(members, start=1):
        room = [group for group in open_groups if memory_bytes is None or group.bytes_with(run, d_in) <= memory_bytes]
        if room:
            least = min(room, key=lambda group: group.cost)
            open_groups.remove(least)
        else:
            groups.append(least := _Group())
        least.add(run, cost, d_in, number)
        if memory_bytes is None or least.bytes_with(smallest, d_in) <= memory_bytes:
            # Among equals the last one filled comes first: back and forth, so that no group gets every architecture's largest k.
            open_groups.insert(0, least)
    return sorted((group for group in groups if group.runs), key=lambda group: -group.filled)


def _check_fits(run: RunConfig, d_in: Width, memory_bytes: int | None) -> None:
    needed = group_bytes([run], d_in)
    if memory_bytes is not None and needed > memory_bytes:
        raise ConfigError(
            f"a run must fit into a slot's memory, but {run.run_id} needs {needed / 2**30:.2f} GiB (d_sae={run.sae.d_sae}, "
            f"batch_size={run.train.batch_size}) and the slot has {memory_bytes / 2**30:.2f} GiB. Lower one of them, or use fewer slots."
        )
