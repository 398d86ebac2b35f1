"""Evaluation: one pass over held-out text for any number of SAEs; baselines are computed once per chunk, not per SAE.

The text is cut into fixed chunks. A worker takes some chunks and returns additive sums; adding them in chunk order gives the
same metrics whatever the number of workers. SAEs are those of the exported files: what is measured is what anyone loads.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sae_core import plugins
from sae_core.activations.source import ActivationSource, EvalChunk
from sae_core.documents import StoredDocuments, write_documents
from sae_core.errors import ConfigError
from sae_core.latents import EXPLAINED, TIMES_ACTIVE, densities, explained, write_latents
from sae_core.layout import RunPaths
from sae_core.metrics import METRICS, Observation
from sae_core.metrics.at_hook_points import fvu_sums, metric_of, specs_of
from sae_core.metrics.evaluators import EVALUATORS, evaluate_further
from sae_core.metrics.metric import Sums
from sae_core.metrics.per_document import ChunkDocuments, stored_documents, terms_of
from sae_core.records import RunRecord
from sae_core.sae.base import SparseAutoencoder
from sae_core.sparse.active import ActiveLatents, joined
from sae_core.sparsity_file import write_sparsity
from sae_core.watchdog import beat

ROWS = {"cpu": 2**9, "cuda": 2**15}
"""Tokens an SAE encodes at a time."""
MEASURED_ROWS = 2**16
"""Rows that `measure` takes at a time."""
SPLICED_TOGETHER = 8
"""SAEs whose reconstructions of a chunk are spliced in at a time: what they share is read from memory once."""


@dataclass(frozen=True, slots=True)
class SaeSums:
    """What one chunk contributes to the numbers of one SAE."""

    metrics: dict[str, Sums]
    """Metric name -> sums; of crosscoders `at_hook_points.fvu_sums`, too."""
    documents: Sums
    """Sums per document of `ChunkSums.documents`, [D] each, of what the SAE alone decides."""
    latents: Sums
    """`latents.TIMES_ACTIVE` and `latents.EXPLAINED`, [d_sae] each."""


@dataclass(frozen=True, slots=True)
class ChunkSums:
    """What one chunk contributes to the numbers of every SAE."""

    index: int
    n_tokens: int
    documents: ChunkDocuments
    by_sae: dict[str, SaeSums]


@torch.no_grad()
def evaluate_chunk(
    chunk: EvalChunk, saes: Mapping[str, SparseAutoencoder], index: int = 0, mean: Float[Tensor, " d_out"] | None = None
) -> ChunkSums:
    """Measure SAEs (inference form, for activations that are not normalised) on one chunk.

    Args:
        mean: mean of what is reconstructed in training (of x; of transcoders the target), unscaled; None: what each latent explains is not
            measured.

    Raises:
        ConfigError: an activation of the chunk or a weight of an SAE is not finite, or an SAE is for activations of another width.
    """
    _check(chunk, saes, index)
    metrics = {name: METRICS[name]() for name in METRICS}
    documents = ChunkDocuments.of(chunk)
    by_sae = {}
    for first in range(0, len(saes), SPLICED_TOGETHER):
        some = list(saes.items())[first : first + SPLICED_TOGETHER]
        found = [_reconstruct(sae, chunk, mean) for _, sae in some]
        spliced = chunk.splice([x_hat for _, x_hat, _ in found]) if chunk.splice else [None] * len(some)
        for (run_id, sae), (active, x_hat, latents), scores in zip(some, found, spliced, strict=True):
            beat()
            b_dec = None if sae.layer_norm else sae.b_dec
            seen = Observation(chunk, active, x_hat, scores, sae.W_dec, index, b_dec, _without_latents(sae, chunk.x))
            every = {name: metric.sums(seen) for name, metric in metrics.items()} | fvu_sums(seen)
            sums = {name: {key: value.cpu() for key, value in of_metric.items()} for name, of_metric in every.items()}
            latents |= {TIMES_ACTIVE: seen.times_active.cpu()}
            by_sae[run_id] = SaeSums(sums, documents.sums(terms_of(seen)), latents)
    return ChunkSums(index, chunk.x.shape[0], documents, by_sae)


def _check(chunk: EvalChunk, saes: Mapping[str, SparseAutoencoder], index: int) -> None:
    """A metric of numbers that are not finite is no number, and kernels pass over them."""
    for values in (chunk.x,) if chunk.target is None else (chunk.x, chunk.target):
        broken = (~values.isfinite().all(dim=1)).nonzero().flatten()
        if len(broken):
            raise ConfigError(
                f"held-out activations must be finite, but got {len(broken)} of {len(values)} rows that are not in chunk {index}, the "
                f"first of them row {int(broken[0])}. Correct their source, or compute them in another precision."
            )
    if len(chunk.y) != len(chunk.x):
        raise ConfigError(
            f"`target` of a chunk must have one row per token, but got {len(chunk.y)} rows for {len(chunk.x)} tokens in chunk {index}. "
            "Correct `eval_chunk` of the source."
        )
    d_out = None if chunk.target is None else chunk.target.shape[1]
    for name, sae in saes.items():
        if sae.d_in != chunk.x.shape[1]:
            raise ConfigError(
                f"an SAE must be for activations of the width that it is measured on, but got d_in={sae.d_in} of SAE {name!r} and "
                f"activations of {chunk.x.shape[1]}. Give it those of the hook point that it was trained on."
            )
        if sae.d_out != d_out:
            raise ConfigError(
                f"an SAE must be measured on what it reconstructs, and a transcoder on pairs of the widths that it is for, but got "
                f"d_out={sae.d_out} of {name!r} and d_out={d_out} of the held-out activations. Give it those that it was trained on."
            )
        try:
            sae.check_finite()
        except ConfigError as error:
            raise ConfigError(f"SAE {name!r} cannot be measured: {error}") from error


def _without_latents(sae: SparseAutoencoder, x: Float[Tensor, "N d_in"]) -> Float[Tensor, "N d_out"] | None:
    """What a transcoder with a skip connection makes of x with all latents 0; None of others, where it is the same for every token."""
    return None if sae.W_skip is None else sae.output_offset(x)


def _reconstruct(
    sae: SparseAutoencoder, chunk: EvalChunk, mean: Float[Tensor, " d_out"] | None
) -> tuple[ActiveLatents, Float[Tensor, "N d_out"], Sums]:
    """Active latents, the reconstruction, and what each latent explains: some rows at a time, so that latents stay in a CPU's cache."""
    parts = []
    explains: Sums = {}
    n_rows = ROWS[chunk.x.device.type]
    for rows, target in zip(chunk.x.split(n_rows), chunk.y.split(n_rows), strict=True):
        active, values, x_hat = sae.reconstruct_sparse(rows)
        parts.append((active, x_hat))
        if mean is not None:
            found = explained(active, values, target - mean.to(target), sae.W_dec)
            explains = {EXPLAINED: explains[EXPLAINED] + found if explains else found}
    listed, reconstructed = zip(*parts, strict=True)
    return joined(listed), torch.cat(reconstructed), explains


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
        for name in ordered[0].by_sae[run_id].metrics:
            if total := _added(chunk.by_sae[run_id].metrics[name] for chunk in ordered):
                value = metric_of(name).value(total, n_tokens)
                values[run_id][name] = value if value is not None and math.isfinite(value) else None
    return values, n_tokens


def _added(parts: Iterable[Sums]) -> Sums:
    total: Sums = {}
    for part in parts:
        for key, summand in part.items():
            total[key] = total[key] + summand if key in total else summand
    return total


@dataclass(frozen=True, slots=True)
class Measured:
    """What all held-out text says of one SAE."""

    metrics: dict[str, float | None]
    n_tokens: int
    documents: StoredDocuments
    latents: Sums
    errors: dict[str, str] = field(default_factory=dict)
    """Evaluator -> why it has no value."""

    def with_evaluators(self, found: tuple[Mapping[str, float | None], Mapping[str, str]]) -> "Measured":
        """This, and what `evaluate_further` returned."""
        values, errors = found
        return dataclasses.replace(self, metrics={**self.metrics, **values}, errors=dict(errors))


def measured(chunks: Iterable[ChunkSums]) -> dict[str, Measured]:
    """Add chunks up, in order of their index, as `combine` does. Returns everything that is kept, by SAE name."""
    ordered = sorted(chunks, key=lambda chunk: chunk.index)
    values, n_tokens = combine(ordered)
    with_value = {run_id: [name for name in METRICS if of_sae.get(name) is not None] for run_id, of_sae in values.items()}
    by_document = {run_id: [chunk.by_sae[run_id].documents for chunk in ordered] for run_id in values}
    stored = stored_documents([chunk.documents for chunk in ordered], by_document, with_value)
    latents = {run_id: _added(chunk.by_sae[run_id].latents for chunk in ordered) for run_id in values}
    return {run_id: Measured(values[run_id], n_tokens, stored[run_id], latents[run_id]) for run_id in values}


def evaluate(
    saes: Mapping[str, SparseAutoencoder], source: ActivationSource, directory: Path, mean: Float[Tensor, " d_out"]
) -> dict[str, Measured]:
    """Measure SAEs (inference form, for activations that are not normalised) on all the held-out text of a source.

    Args:
        directory: the source's prepared cache.
        mean: mean of what is reconstructed in training (`Manifest.target_mean`), unscaled; what mean ablation puts in its place.
    """
    indices = range(source.n_eval_chunks(directory))
    found = measured(evaluate_chunk(source.eval_chunk(directory, index, mean), saes, index, mean) for index in indices)
    return {name: found[name].with_evaluators(evaluate_further(saes[name], source, directory)) for name in found}


def measure(sae: SparseAutoencoder, x: Float[Tensor, "N d_in"], target: Float[Tensor, "N d_out"] | None = None) -> dict[str, float | None]:
    """Metrics of an SAE (inference form, for activations that are not normalized) on activations in memory.

    Args:
        x: held-out activations, on the SAE's device.
        target: of a transcoder: what it is to make of each row.

    Raises:
        ConfigError: a value is not finite, or a width is another.
        ValueError: there are no rows.
    """
    targets = [None] * -(-len(x) // MEASURED_ROWS) if target is None else target.float().split(MEASURED_ROWS)
    pieces = zip(x.float().split(MEASURED_ROWS), targets, strict=True) if len(x) else ()
    return combine(evaluate_chunk(EvalChunk(rows, target=of), {"sae": sae}, index) for index, (rows, of) in enumerate(pieces))[0]["sae"]


def metric_plugins() -> dict[str, str]:
    """Name -> checksum of the plugins that define metrics or evaluators."""
    return plugins.checksums_of([*METRICS.values(), *EVALUATORS.values()])


def is_to_evaluate(record: RunRecord) -> bool:
    """Whether a run is trained but not measured, or measured without the metrics of a plugin as it is now."""
    return record.status == "trained" or (record.status == "finished" and not metric_plugins().items() <= record.eval_plugins.items())


def write_evaluated(record: RunRecord, found: Measured, eval_hash: str, paths: RunPaths, where: Mapping[str, Any]) -> None:
    """Write what was measured of a trained run, and then its finished record.

    Args:
        eval_hash: `ActivationSource.eval_hash`.
        where: fields of the record that say where and how it was evaluated.
    """
    checksum = write_documents(paths.documents, found.documents)
    write_latents(paths.latents, found.latents)
    if paths.sae.is_dir():  # a published SAE that is measured here lies elsewhere
        write_sparsity(paths.sae, found.latents[TIMES_ACTIVE].numpy(), found.n_tokens)
    finished = dataclasses.replace(
        record,
        status="finished",
        metrics=found.metrics,
        metric_specs=specs_of(found.metrics),
        evaluator_errors=found.errors,
        eval_tokens=found.n_tokens,
        eval_hash=eval_hash,
        eval_plugins=metric_plugins(),
        documents_checksum=checksum,
        latent_densities=densities(found.latents[TIMES_ACTIVE], found.n_tokens),
        **where,
    )
    finished.write(paths.record)
