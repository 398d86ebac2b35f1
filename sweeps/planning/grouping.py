"""Runs -> groups that train on one stream, each group a Ray trial. Pure functions of the configs.

Largest first into the least loaded group (LPT: at most 4/3 of the best possible balance), with a few groups per slot, so that
slots finish together although costs are estimates.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from sae_core import costs
from sae_core.config.run import ARCHITECTURES, RunConfig
from sweeps.planning.memory import Width, kept_bytes, planned_bytes, step_bytes

GROUPS_PER_SLOT = 3
"""Groups each slot gets, when there are enough runs: fewer share a stream better, more balance better. One where each makes activations."""
_ENTRY_COST = 10
"""Time of an active latent relative to one that is not, for which only the encoder product is made; measured on the demo's sizes."""
_DENSE_SHARE = 0.2
"""Share of active latents above which more cost nothing: whole matrices are multiplied then."""


def training_flops(run: RunConfig, d_in: int) -> float:
    """Floating-point operations of a run's training."""
    return costs.training_flops(run.sae.architecture, d_in, run.sae.d_sae, run.n_tokens)


def training_cost(run: RunConfig, d_in: int) -> float:
    """Relative time of a run's training: the encoder product and the work at active latents, times what the architecture adds."""
    latents = run.sae.d_sae + _ENTRY_COST * min(run.sae.expected_l0, _DENSE_SHARE * run.sae.d_sae)
    return run.n_tokens * d_in * latents * float(ARCHITECTURES[run.sae.architecture].relative_cost)


StreamKey = tuple[str, int, int, str]


def stream_key(run: RunConfig) -> StreamKey:
    """Runs with the same key read the same batches in the same order."""
    return run.activations.model_dump_json(), run.train.batch_size, run.data_seed, run.train.normalize_activations


def group_runs(
    runs: Sequence[RunConfig], *, n_slots: int, d_in: Width, slot_bytes: int | None = None, live_bytes: int = 0
) -> list[list[RunConfig]]:
    """Divide runs into groups that share a stream, the costliest group first.

    Args:
        n_slots: groups that train at the same time.
        d_in: width of a run's activations.
        slot_bytes: memory for training in each slot, which a group of several runs keeps to; None for no limit.
        live_bytes: of it, what makes activations in each slot.
    """
    memory_bytes, per_slot = None if slot_bytes is None else slot_bytes - live_bytes, 1 if live_bytes else GROUPS_PER_SLOT
    streams: dict[StreamKey, list[_Member]] = {}
    for member in sorted((_Member.of(run, d_in(run)) for run in runs), key=lambda member: -member.cost):
        streams.setdefault(stream_key(member.run), []).append(member)
    total = sum(member.cost for members in streams.values() for member in members)
    groups: list[_Group] = []
    for members in streams.values():
        share = sum(member.cost for member in members) / total
        # A share of exactly a third must not be rounded up by an error in the last digit.
        wanted = max(1, math.ceil(share * n_slots * per_slot - 1e-9))
        groups += _balanced(members, min(len(members), wanted), memory_bytes)
    return [[member.run for member in group.members] for group in sorted(groups, key=lambda group: -group.cost)]


def lone_runs(runs: Sequence[RunConfig]) -> list[list[RunConfig]]:
    """Groups of one, so that each can be stopped by itself, in a random order that is always the same: no learning rate comes first."""
    return [[run] for run in sorted(runs, key=lambda run: run.run_id.rpartition("-")[2])]  # a hash is as good as a die


@dataclass(frozen=True, slots=True, eq=False)
class _Member:
    """A run, and what it takes."""

    run: RunConfig
    cost: float
    kept_bytes: int
    step_bytes: int

    @classmethod
    def of(cls, run: RunConfig, d_in: int) -> "_Member":
        return cls(run, training_cost(run, d_in), kept_bytes(run, d_in), step_bytes(run, d_in))


@dataclass(slots=True, eq=False)
class _Group:
    members: list[_Member] = field(default_factory=list)
    cost: float = 0.0
    kept_bytes: int = 0
    step_bytes: int = 0
    filled: int = 0
    """Number of the last run it got."""

    def bytes_with(self, member: _Member) -> int:
        """Memory of its runs and another."""
        return planned_bytes(self.kept_bytes + member.kept_bytes, max(self.step_bytes, member.step_bytes))

    def add(self, member: _Member, number: int) -> None:
        self.members.append(member)
        self.cost += member.cost
        self.kept_bytes += member.kept_bytes
        self.step_bytes = max(self.step_bytes, member.step_bytes)
        self.filled = number


def _balanced(members: Sequence[_Member], n_groups: int, memory_bytes: int | None) -> list[_Group]:
    """LPT: runs of one stream, costliest first, each into the least loaded group that has room, or into a new one."""
    groups = [_Group() for _ in range(n_groups)]
    open_groups = list(groups)
    smallest = min(members, key=lambda member: planned_bytes(member.kept_bytes, member.step_bytes))
    for number, member in enumerate(members, start=1):
        room = [group for group in open_groups if memory_bytes is None or group.bytes_with(member) <= memory_bytes]
        if room:
            least = min(room, key=lambda group: group.cost)
            open_groups.remove(least)
        else:
            groups.append(least := _Group())
        least.add(member, number)
        if memory_bytes is None or least.bytes_with(smallest) <= memory_bytes:
            # Among equals the last one filled comes first: back and forth, so that no group gets every architecture's largest k.
            open_groups.insert(0, least)
    return sorted((group for group in groups if group.members), key=lambda group: -group.filled)
