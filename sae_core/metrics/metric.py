"""What a metric is: sums over tokens that add up across chunks of text, and a value made from the sums.

Sums are float64, so that neither the order of chunks nor their number changes a value beyond rounding. A metric that has no
value (no variance) is None, never NaN. One that has no sums in any chunk (no language model, no known features) does not apply, and
records leave it out. Most are a `RatioOfSums`, whose sums are kept per document, too (`per_document.py`).
Shape letters: N tokens, P predicted positions, F features, d_sae latents, d_out width of y, what is to be reconstructed: the activations x
themselves, of transcoders the target.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.linalg import vecdot
from torch.nn.functional import normalize

from sae_core.activations.source import EvalChunk, NextToken
from sae_core.documents import Ratio
from sae_core.records import MetricSpec
from sae_core.registry import Registry
from sae_core.sparse.active import ActiveLatents

METRICS: Registry[type["Metric"]] = Registry("metric", "sae_core.metrics")

ROWS = {"cpu": 2**8, "cuda": 2**15}
"""Tokens whose activations are compared at a time."""

Sums = dict[str, Tensor]
"""Name -> float64 tensor; the sums of two chunks add up to the sums of both."""
Terms = dict[str, Tensor]
"""Name -> what is summed up, float64: one number per token [N], or per position that predicts a next token [P]."""
VARIANCE = "variance"
"""A sum that `RatioOfSums` may name: of ||y - mean||^2, with the mean over all held-out tokens, and so not a sum of terms."""


@dataclass(frozen=True)
class Observation:
    """One SAE on one chunk of held-out text."""

    chunk: EvalChunk
    active: ActiveLatents
    """Latents that are not 0, in inference form."""
    x_hat: Float[Tensor, "N d_out"]
    """The reconstruction, of `chunk.y`."""
    spliced: NextToken | None
    """The language model with x_hat in place of y."""
    W_dec: Float[Tensor, "d_sae d_out"]
    index: int = 0
    """Number of the chunk, from 0: what needs no tokens is measured on the first."""
    b_dec: Float[Tensor, " d_out"] | None = None
    """What the SAE adds to every reconstruction. None where y and W_dec are not in the same units: SAEs that normalize each token."""
    without_latents: Float[Tensor, "N d_out"] | None = None
    """What a transcoder with a skip connection makes of x with all latents 0; None for all others."""
    terms_of: dict[str, Terms] = field(default_factory=dict, init=False, repr=False)
    """Metric -> terms of its own, once computed: `RatioOfSums.own_terms`."""

    # What several metrics sum up is computed once for all of them.

    @cached_property
    def times_active(self) -> Float[Tensor, " d_sae"]:
        """Tokens each latent is active on."""
        return torch.bincount(self.active.indices, minlength=self.active.d_sae).double()

    @cached_property
    def terms(self) -> Terms:
        """What every ratio of sums may be made of. Those of the language model are there where the chunk has them."""
        norms = (self.chunk.squared_norm * self.squared_norm).sqrt()
        terms = {
            **self.chunk.terms,
            "active": self.active.offsets.diff().double(),
            "error": self.squared_error,
            "dot": self.dot,
            "squared_norm": self.squared_norm,
            "cosine": self.dot / norms.clamp_min(torch.finfo(norms.dtype).tiny),
        }
        if self.spliced is None:
            return terms
        spliced = self.spliced.ce.double()
        return terms | {"spliced": spliced, "n_predicted": torch.ones_like(spliced), "kl": self.spliced.kl.double()}

    @property
    def squared_error(self) -> Float[Tensor, " N"]:
        """||y - x_hat||^2 per token."""
        return self._products[0]

    @property
    def dot(self) -> Float[Tensor, " N"]:
        """y . x_hat per token."""
        return self._products[1]

    @property
    def squared_norm(self) -> Float[Tensor, " N"]:
        """||x_hat||^2 per token."""
        return self._products[2]

    @cached_property
    def _products(self) -> Float[Tensor, "3 N"]:
        """In float64: some tokens at a time, so that they stay in a CPU's cache."""
        n_rows = ROWS[self.x_hat.device.type]
        columns = []
        for y, rows in zip(self.chunk.y_double.split(n_rows), self.x_hat.split(n_rows), strict=True):
            x_hat = rows.double()
            error = y - x_hat
            columns.append(torch.stack([vecdot(error, error), vecdot(y, x_hat), vecdot(x_hat, x_hat)]))
        return torch.cat(columns, dim=1)

    @cached_property
    def feature_cosines(self) -> Float[Tensor, "d_sae F"] | None:
        """|cos| of every decoder row and every direction of a known feature; 0 for rows of 0, None where no features are known."""
        if self.chunk.ground_truth is None:
            return None
        return (normalize(self.W_dec) @ normalize(self.chunk.ground_truth.directions).T).abs()


class Metric(ABC):
    """One column of the table."""

    spec: ClassVar[MetricSpec]
    needs: ClassVar[str | None] = None
    """Optional field of `EvalChunk`, or of `Observation`, without which there is no value."""
    first_chunk_only: ClassVar[bool] = False
    """Whether tokens of the first chunk stand for all: how the text is cut into chunks, which its source decides, then matters."""

    @abstractmethod
    def sums(self, seen: Observation) -> Sums:
        """Additive sums of one chunk. Empty where the chunk lacks what the metric needs."""

    def value(self, sums: Sums, n_tokens: int) -> float | None:
        """The metric of all chunks together: here the mean over tokens of its one sum.

        Args:
            sums: this metric's sums, added over chunks; not empty.
            n_tokens: tokens evaluated; at least 1.
        """
        (total,) = sums.values()
        return float(total) / n_tokens


class RatioOfSums(Metric):
    """A weighted total of sums divided by another: it has a value for any set of documents, so runs are compared on the same ones.

    A file beside each record keeps the sums of every document, and tables of such metrics have intervals.
    """

    ratio: ClassVar[Ratio]
    """Of `Observation.terms`, `VARIANCE`, and terms of its own."""

    def terms(self, seen: Observation) -> Terms:
        """What the metric sums up beside `Observation.terms`. Empty where the chunk lacks what it needs."""
        return {}

    @final
    def own_terms(self, seen: Observation) -> Terms:
        """`terms`, computed once."""
        if self.spec.name not in seen.terms_of:
            seen.terms_of[self.spec.name] = self.terms(seen)
        return seen.terms_of[self.spec.name]

    @final
    def sums(self, seen: Observation) -> Sums:
        terms = {**seen.terms, **self.own_terms(seen)}
        names = self.ratio.names
        if not names <= {*terms, VARIANCE}:
            return {}
        sums = {name: terms[name].sum() for name in sorted(names - {"n_tokens", VARIANCE})}
        return sums | ({"y_squared": seen.chunk.squared_norm.sum(), "y": seen.chunk.y_sum} if VARIANCE in names else {})

    @final
    def value(self, sums: Sums, n_tokens: int) -> float | None:
        totals = {name: float(total) for name, total in sums.items() if name != "y"} | {"n_tokens": float(n_tokens)}
        if "y" in sums:
            totals[VARIANCE] = totals["y_squared"] - float(sums["y"].pow(2).sum()) / n_tokens
            # Constant activations have no variance, but rounding leaves a little of either sign.
            if totals[VARIANCE] <= 1e-12 * totals["y_squared"]:
                return None
        below = _weighted(self.ratio.denominator, totals)
        return _weighted(self.ratio.numerator, totals) / below if below else None


def _weighted(weights: Mapping[str, float], totals: Mapping[str, float]) -> float:
    return sum(weight * totals[name] for name, weight in weights.items())
