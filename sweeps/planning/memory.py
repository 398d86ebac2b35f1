"""Memory of training, on a CPU or a GPU: what a group keeps, and what one of its steps takes on top. Arithmetic, from configs alone.

A group keeps, of each run, the parameters and Adam's two moments. Only one run steps at a time: its step takes its gradients, the batch and
what its architecture says (`SparseAutoencoder.step_memory`). The measurements behind: docs/performance.md.
"""

from collections.abc import Callable, Sequence

from sae_core import provenance
from sae_core.config.run import ARCHITECTURES, RunConfig
from sae_core.devices import tensor_bytes
from sae_core.errors import ConfigError
from sae_core.training.initialization import SAMPLE_TOKENS, needs_sample

Width = Callable[[RunConfig], int]
"""Width of a run's activations: a sweep may have an axis over models. Of transcoders the mean of what they read and what they write."""

_FLOAT_BYTES = 4
_KEPT_COPIES = 3
"""The parameters, and Adam's two moments. A gradient lives for a step."""
SAVED_COPIES = 1 + _KEPT_COPIES
"""Of the parameters, at most, on the disk: a checkpoint, and the SAE that takes its place."""
_BATCH_COPIES = 3
"""A batch as it is stored, the next one on its way, and the normalized one."""
_ENTRY_BYTES = 64
"""Per active latent: its numbers in the order of tokens and of latents, its value, and their gradients."""
_SAMPLE_COPIES = 6
"""Tensors of the size of the sample while its geometric median is searched for in float64."""
_MEMORY_SHARE = 0.7
"""Part of this machine's memory that training may plan with; the rest is for programs, file cache and everything else."""
_SLACK = 1.75
"""What is allocated for a step per byte in its tensors: freed memory lies in pieces that the next tensor may not fit."""


def weights_bytes(run: RunConfig, d_in: int) -> int:
    """Size of the SAE's parameters: two matrices and their biases, and a skip connection; what an architecture adds is small. Tied, there
    is one matrix and b_dec."""
    skip = d_in * d_in if run.sae.skips else 0
    encoder = 0 if run.sae.is_tied else d_in * run.sae.d_sae + run.sae.d_sae
    return (encoder + d_in * run.sae.d_sae + d_in + skip) * _FLOAT_BYTES


def kept_bytes(run: RunConfig, d_in: int) -> int:
    """Memory of a run between its steps."""
    return weights_bytes(run, d_in) * _KEPT_COPIES


def step_bytes(run: RunConfig, d_in: int) -> int:
    """Most memory in tensors at once during a step of a run, beside what is kept."""
    step = ARCHITECTURES[run.sae.architecture].step_memory(run.sae, d_in)
    batch, autocasts = run.train.batch_size, run.train.autocast != "off"
    latents = batch * run.sae.d_sae * _FLOAT_BYTES * (step.latents_in_bfloat16 if autocasts else step.latents)
    selected = batch * step.listed_latents * _ENTRY_BYTES
    weights = weights_bytes(run, d_in) * (step.weights + (0.5 if autocasts else 0))  # bfloat16 copies of the matrices
    inputs = batch * d_in * _FLOAT_BYTES * (step.inputs + _BATCH_COPIES)
    sample = SAMPLE_TOKENS * d_in * _FLOAT_BYTES * _SAMPLE_COPIES if needs_sample(run.sae) else 0
    return int(weights + max(inputs + max(latents, selected), sample))


def group_bytes(group: Sequence[RunConfig], d_in: Width) -> int:
    """Memory to plan with for a group while it trains."""
    return planned_bytes(sum(kept_bytes(run, d_in(run)) for run in group), max(step_bytes(run, d_in(run)) for run in group))


def planned_bytes(kept: int, step: int) -> int:
    """Memory to plan with for what is kept and the largest step."""
    return kept + int(_SLACK * step)


def check_fits(runs: Sequence[tuple[RunConfig, int]], slot_bytes: int, live_bytes: int) -> None:
    """Make sure that each run can train alone in a slot.

    Args:
        runs: with the widths of their activations.
        live_bytes: of the slot, what makes activations there.

    Raises:
        ConfigError: it cannot.
    """
    needs = [(kept_bytes(run, d_in) + step_bytes(run, d_in) + live_bytes, run) for run, d_in in runs]
    too_large = [(needed, run) for needed, run in needs if needed > slot_bytes]
    if too_large:
        needed, run = max(too_large, key=lambda pair: pair[0])
        live = f", {live_bytes / 2**30:.2f} GiB of it for what makes activations" if live_bytes else ""
        raise ConfigError(
            f"a run must fit into a slot's memory of {slot_bytes / 2**30:.2f} GiB, but {len(too_large)} of {len(needs)} do not: "
            f"{run.run_id} needs {needed / 2**30:.2f} GiB (d_sae={run.sae.d_sae}, batch_size={run.train.batch_size}){live}. Lower one of "
            "them, or use fewer slots."
        )


def local_slot_bytes(n_slots: int, gpus: float) -> int | None:
    """Memory for training in each slot of this machine; None where it is not known.

    Args:
        gpus: of a slot.
    """
    if not gpus:
        return int(_MEMORY_SHARE * provenance.memory_bytes() / n_slots)
    on_gpus = provenance.gpu_memory_bytes()
    return tensor_bytes(min(on_gpus), gpus) if on_gpus else None
