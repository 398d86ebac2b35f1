"""Sums of the terms of ratios per document: of a chunk, and of all chunks. Formulas: docs/formulas.md, section Documents.

Shape letters: N tokens, P predicted positions, D documents, d_out width of what is reconstructed.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_core.activations.source import EvalChunk
from sae_core.documents import FloatArray, Ratio, StoredDocuments
from sae_core.errors import ConfigError
from sae_core.metrics.metric import METRICS, VARIANCE, Observation, RatioOfSums, Sums, Terms

BLOCK_TOKENS = 128
"""Tokens that count as a document where a source knows of none."""


@dataclass(frozen=True, slots=True)
class ChunkDocuments:
    """The documents of a chunk, and what is summed up of them for all SAEs. On the CPU."""

    numbers: Int[Tensor, " D"]
    """Ascending; from 0 in each chunk where the source knows of no documents."""
    are_blocks: bool
    """Whether the source knows of none."""
    tokens: Int[Tensor, " N"]
    """Row of `numbers` that each token belongs to."""
    predicted: Int[Tensor, " P"] | None
    """The same of each predicted position; None where it is not known."""
    shared: Sums
    """Sums that are the same for all SAEs, [D] each; `y` is [D, d_out]."""

    @classmethod
    def of(cls, chunk: EvalChunk) -> "ChunkDocuments":
        """Those of a chunk, with the sums of its own terms.

        Raises:
            ConfigError: the chunk has another number of documents than of tokens.
        """
        documents, predicted = chunk.documents, chunk.predicted_documents
        are_blocks = documents is None
        if documents is None:
            documents, predicted = torch.arange(len(chunk.x)) // BLOCK_TOKENS, None
        elif len(documents) != len(chunk.x):
            raise ConfigError(
                f"`documents` of a chunk must have one number per token, but got {len(documents)} numbers for {len(chunk.x)} tokens. "
                "Correct `eval_chunk` of the source."
            )
        every = [documents.cpu(), *([predicted.cpu()] if predicted is not None else [])]
        numbers = torch.unique(torch.cat(every))
        tokens, *of_predicted = (torch.searchsorted(numbers, some) for some in every)
        unsummed = cls(numbers, are_blocks, tokens, of_predicted[0] if of_predicted else None, {})
        sums = unsummed.sums({**chunk.terms, "y_squared": chunk.squared_norm}) | {"y": _y(chunk, tokens, len(numbers))}
        return replace(unsummed, shared=sums)

    def sums(self, terms: Terms) -> Sums:
        """Sums of terms per document, [D] each; those per position are left out where it is not known which document a position is of."""
        found: Sums = {}
        for rows in (self.tokens, self.predicted):
            names = [name for name, term in terms.items() if rows is not None and name not in found and len(term) == len(rows)]
            if rows is not None and names:
                columns = torch.stack([terms[name].double() for name in names]).cpu()  # one transfer; on a GPU sums have no fixed order
                found |= {name: rows.bincount(column, len(self.numbers)) for name, column in zip(names, columns, strict=True)}
        return found


def _y(chunk: EvalChunk, tokens: Int[Tensor, " N"], n_documents: int) -> Float[Tensor, "D d_out"]:
    """Sums of y over the tokens of each document."""
    order = tokens.argsort(stable=True).to(chunk.x.device)
    parts = chunk.y_double.index_select(0, order).split(tokens.bincount(minlength=n_documents).tolist())
    sums = [part.sum(dim=0) for part in parts]
    return torch.stack(sums).cpu() if sums else torch.zeros(0, chunk.y.shape[1], dtype=torch.float64)


def terms_of(seen: Observation) -> Terms:
    """Everything that is summed up of one SAE alone; what a metric has of its own is named `<metric>.<term>`."""
    terms = {name: term for name, term in seen.terms.items() if name not in seen.chunk.terms}
    for name, metric in METRICS.items():
        if issubclass(metric, RatioOfSums):
            terms |= {f"{name}.{term}": values for term, values in metric().own_terms(seen).items()}
    return terms


def stored_documents(
    chunks: Sequence[ChunkDocuments], sums: Mapping[str, Sequence[Sums]], metrics: Mapping[str, Iterable[str]]
) -> dict[str, StoredDocuments]:
    """The sums of all chunks, by SAE.

    Args:
        chunks: in their order.
        sums: SAE -> sums of its own terms, per chunk.
        metrics: SAE -> the metrics that have a value.
    """
    numbers = _numbered(chunks)
    documents = np.unique(np.concatenate(numbers))
    rows = [np.searchsorted(documents, of_chunk) for of_chunk in numbers]
    shared = _added([chunk.shared for chunk in chunks], rows, len(documents))
    n_tokens, y = shared["n_tokens"], shared.pop("y")
    mean = y.sum(axis=0) / n_tokens.sum()
    # Of one token that is the mean, rounding leaves a little of either sign.
    shared[VARIANCE] = np.maximum(shared.pop("y_squared") - 2 * y @ mean + n_tokens * (mean @ mean), 0)
    stored = {}
    for name, parts in sums.items():
        every = shared | _added(parts, rows, len(documents))
        ratios = {metric: ratio for metric in metrics[name] if (ratio := _ratio(metric, every)) is not None}
        kept = {"n_tokens"}.union(*(ratio.names for ratio in ratios.values()))
        stored[name] = StoredDocuments(documents, {key: every[key] for key in every if key in kept}, ratios)
    return stored


def _numbered(chunks: Sequence[ChunkDocuments]) -> list[np.ndarray]:
    """The numbers of each chunk's documents. Blocks are counted on from chunk to chunk."""
    numbers, first = [], 0
    for chunk in chunks:
        numbers.append(chunk.numbers.numpy() + (first if chunk.are_blocks else 0))
        first += len(chunk.numbers)
    return numbers


def _added(parts: Sequence[Sums], rows: Sequence[np.ndarray], n_documents: int) -> dict[str, FloatArray]:
    """Sums that every chunk has, over all chunks."""
    totals = {name: np.zeros((n_documents, *sums.shape[1:])) for name, sums in parts[0].items() if all(name in part for part in parts)}
    for part, at in zip(parts, rows, strict=True):
        for name, total in totals.items():
            total[at] += part[name].numpy()
    return totals


def _ratio(metric: str, sums: Mapping[str, FloatArray]) -> Ratio | None:
    """How a metric is made of the columns of a file; None where it is no ratio of them."""
    cls = METRICS[metric]
    if not issubclass(cls, RatioOfSums):
        return None

    def named(weights: Mapping[str, float]) -> dict[str, float]:
        return {f"{metric}.{name}" if f"{metric}.{name}" in sums else name: weight for name, weight in weights.items()}

    ratio = Ratio(named(cls.ratio.numerator), named(cls.ratio.denominator))
    return ratio if ratio.names <= sums.keys() else None
