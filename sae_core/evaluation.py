"""Evaluation: one pass over held-out text for any number of SAEs; baselines are computed once per chunk, not per SAE.

The text is cut into fixed chunks. A worker takes some chunks and returns additive sums; adding them in chunk order gives the
same metrics whatever the number of workers. SAEs are those of the exported files: what is measured is what anyone loads.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from sae_core import plugins
from sae_core.activations.source import ActivationSource, EvalChunk
from sae_core.errors import ConfigError
from sae_core.metrics import METRICS, Observation
from sae_core.metrics.metric import Sums
from sae_core.records import RunRecord
from sae_core.sae.base import SparseAutoencoder
from sae_core.sparse.active import ActiveLatents, joined
from sae_core.watchdog import beat

ROWS = {"cpu": 2**9, "cuda": 2**15}
"""Tokens an SAE encodes at a time."""
SPLICED_TOGETHER = 8
"""SAEs whose reconstructions of a chunk are spliced in at a time: what they share is read from memory once."""


@dataclass(frozen=True, slots=True)
class ChunkSums:
    """What one chunk contributes to the metrics of every SAE."""

    index: int
    n_tokens: int
    by_sae: dict[str, dict[str, Sums]]
    """SAE name -> metric name -> sums."""


@torch.no_grad()
def evaluate_chunk(chunk: EvalChunk, saes: Mapping[str, SparseAutoencoder], index: int = 0) -> ChunkSums:
    """Measure SAEs (inference form, for activations that are not normalised) on one chunk.

    Raises:
        ConfigError: an activation of the chunk or a weight of an SAE is not finite, or an SAE is for activations of another width.
    """
    _check(chunk, saes, index)
    metrics = {name: METRICS[name]() for name in METRICS}
    by_sae = {}
    for first in range(0, len(saes), SPLICED_TOGETHER):
        some = list(saes.items())[first : first + SPLICED_TOGETHER]
        found = [_reconstruct(sae, chunk.x) for _, sae in some]
        spliced = chunk.splice([x_hat for _, x_hat in found]) if chunk.splice else [None] * len(some)
        for (run_id, sae), (active, x_hat), scores in zip(some, found, spliced, strict=True):
            beat()
            seen = Observation(chunk, active, x_hat, scores, sae.W_dec, index)
            by_sae[run_id] = {name: {key: value.cpu() for key, value in metric.sums(seen).items()} for name, metric in metrics.items()}
    return ChunkSums(index, chunk.x.shape[0], by_sae)


def _check(chunk: EvalChunk, saes: Mapping[str, SparseAutoencoder], index: int) -> None:
    """A metric of numbers that are not finite is no number, and kernels pass over them."""
    broken = (~chunk.x.isfinite().all(dim=1)).nonzero().flatten()
    if len(broken):
        raise ConfigError(
            f"held-out activations must be finite, but got {len(broken)} of {len(chunk.x)} rows that are not in chunk {index}, the first "
            f"of them row {int(broken[0])}. Correct their source, or compute them in another precision."
        )
    for name, sae in saes.items():
        if sae.d_in != chunk.x.shape[1]:
            raise ConfigError(
                f"an SAE must be for activations of the width that it is measured on, but got d_in={sae.d_in} of SAE {name!r} and "
                f"activations of {chunk.x.shape[1]}. Give it those of the hook point that it was trained on."
            )
        try:
            sae.check_finite()
        except ConfigError as error:
            raise ConfigError(f"SAE {name!r} cannot be measured: {error}") from error


def _reconstruct(sae: SparseAutoencoder, x: Float[Tensor, "N d_in"]) -> tuple[ActiveLatents, Float[Tensor, "N d_in"]]:
    """Which latents are active, and the reconstruction: some rows at a time, so that latents stay in a CPU's cache."""
    parts, x_hat = zip(*(sae.reconstruct_sparse(rows) for rows in x.split(ROWS[x.device.type])), strict=True)
    return joined(parts), torch.cat(x_hat)


def combine(chunks: Iterable[ChunkSums]) -> tuple[dict[str, dict[str, float | None]], int]:
    """Add chunks up, in order of their index.

    Returns:
        SAE name -> metric name -> value, None where it is not finite, and the number of tokens. Metrics that do not apply, because
        the source lacks what they need, are left out.

    Raises:
        ValueError: no chunk, or no token in any.
    """
    ordered = sorted(chunks, key=lambda chunk: chunk.index)
    n_tokens = sum(chunk.n_tokens for chunk in ordered)
    if n_tokens == 0:
        raise ValueError(f"evaluation needs at least one token, but got {len(ordered)} chunks with {n_tokens} tokens.")
    values: dict[str, dict[str, float | None]] = {}
    for run_id in ordered[0].by_sae:
        values[run_id] = {}
        for name in METRICS:
            total: Sums = {}
            for chunk in ordered:
                for key, summand in chunk.by_sae[run_id][name].items():
                    total[key] = total[key] + summand if key in total else summand
            if total:
                value = METRICS[name]().value(total, n_tokens)
                values[run_id][name] = value if value is not None and math.isfinite(value) else None
    return values, n_tokens


def evaluate(
    saes: Mapping[str, SparseAutoencoder], source: ActivationSource, directory: Path, mean: Float[Tensor, " d_in"]
) -> tuple[dict[str, dict[str, float | None]], int]:
    """Measure SAEs (inference form, for activations that are not normalised) on all the held-out text of a source.

    Args:
        directory: the source's prepared cache.
        mean: mean training activation, unscaled; what mean ablation puts in place of x.

    Returns:
        As `combine`.
    """
    indices = range(source.n_eval_chunks(directory))
    return combine(evaluate_chunk(source.eval_chunk(directory, index, mean), saes, index) for index in indices)


def metric_plugins() -> dict[str, str]:
    """Name -> checksum of the plugins that define metrics."""
    return plugins.checksums_of(METRICS.values())


def is_to_evaluate(record: RunRecord) -> bool:
    """Whether a run is trained but not measured, or measured without the metrics of a plugin as it is now."""
    return record.status == "trained" or (record.status == "finished" and not metric_plugins().items() <= record.eval_plugins.items())


def evaluated(record: RunRecord, values: Mapping[str, float | None], n_tokens: int, eval_hash: str) -> RunRecord:
    """The finished record of a trained run.

    Args:
        values: metric name -> value; as `combine` gives them for one SAE.
        n_tokens: held-out tokens they are means over.
        eval_hash: `ActivationSource.eval_fingerprint`.
    """
    return dataclasses.replace(
        record,
        status="finished",
        metrics=dict(values),
        metric_specs=[METRICS[name].spec for name in values],
        eval_tokens=n_tokens,
        eval_hash=eval_hash,
        eval_plugins=metric_plugins(),
    )
