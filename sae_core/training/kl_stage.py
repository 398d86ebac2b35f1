"""The last stage of training: reconstructions are put into the language model, and its predictions are to stay what they were.

    loss = (own loss + weight * sg(MSE / KL) * KL(clean || spliced)) / (1 + weight)

KL is in nats per token, MSE the mean over tokens of the squared error in the units of training, sg stops the gradient: with weight 1 both
terms weigh the same whatever their units (Karvonen 2025, arXiv:2503.17272). The own loss stays whole, with its auxiliary loss and its
sparsity term, whose coefficient is multiplied by 1 + weight, as is what works against it; what is left of a drift of L0 a controller takes
away (`sparsity.controller_of`).

The batch of step n is the tokens that rows n * batch_size to (n + 1) * batch_size of the stream would be if each shard's rows came in the
order of its windows instead of shuffled. So the stage reads the part of the text that the stream would, a batch depends on the number of
its step alone, and one clean run of the model serves every SAE of a group.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from sae_core.activations.shards import read_manifest
from sae_core.activations.source import ActivationSource
from sae_core.activations.stream import ActivationStream, shuffled_rows, split_pairs
from sae_core.activations.text_batch import TextBatch, TextRows
from sae_core.config.run import RunConfig
from sae_core.errors import ConfigError
from sae_core.sae.base import SparseAutoencoder
from sae_core.sae.functional import mse
from sae_core.sae.normalization import Normalization

LEAST_KL = 1e-8
"""Added to KL where it is divided by."""


@dataclass(frozen=True, slots=True)
class KlBatch:
    """A batch of a KL stage in the units of training, and the model around it."""

    x: Float[Tensor, "N d_in"]
    target: Float[Tensor, "N d_out"] | None
    """What a transcoder is to make of x; None: x itself."""
    text: TextBatch
    normalization: Normalization

    @classmethod
    def of(cls, text: TextBatch, stream: ActivationStream) -> "KlBatch":
        """The batch, normalized as a stream does it."""
        rows = text.x if text.target is None else torch.cat([text.x, text.target], dim=1)
        return cls(*split_pairs(stream.normalization(rows), stream), text, stream.normalization)

    def added_to(
        self, own_loss: Float[Tensor, ""], sae: SparseAutoencoder, weight: float, *, autocast: bool
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """The loss of the stage, and KL in nats per token. Of the loss only the gradient means something.

        Args:
            own_loss: with sparsity coefficients times 1 + weight.
        """
        with torch.autocast(self.x.device.type, torch.bfloat16, enabled=autocast):
            _, y_hat = sae.reconstruct(self.x)
        y_hat = y_hat.float()
        x_hat = self.normalization.undone(y_hat, self.text.x if self.text.target is None else self.text.target)
        kl, gradient = self.text.kl(x_hat.detach())
        error = mse(y_hat.detach(), self.x if self.target is None else self.target)
        pull = weight * error / (kl + LEAST_KL) * (gradient * x_hat).sum()
        return (own_loss + pull) / (1 + weight), kl


class StageText:
    """The batches of a KL stage, by the number of the step. The last one is kept: the SAEs of a group ask for it one after the other.

    Args:
        directory: the source's complete cache.
        batch_size, data_seed: those of the stream that the stage goes on from.
    """

    def __init__(self, source: ActivationSource, directory: Path, *, batch_size: int, data_seed: int = 0) -> None:
        self._source, self._directory = source, Path(directory)
        shard_tokens = read_manifest(directory).shard_tokens
        self._rows = partial(rows_of_step, shard_tokens, data_seed, batch_size)
        self._last: tuple[int, KlBatch] | None = None

    def batch(self, step: int, stream: ActivationStream) -> KlBatch:
        """The batch of a step, normalized as the stream does it: the same whatever was asked for before."""
        if self._last is None or self._last[0] != step:
            self._last = None  # one in memory at a time
            self._last = step, KlBatch.of(self._source.text_batch(self._directory, self._rows(step)), stream)
        return self._last[1]


def rows_of_step(shard_tokens: Sequence[int], data_seed: int, batch_size: int, step: int) -> list[TextRows]:
    """Where the tokens of a step's batch are.

    Args:
        shard_tokens: tokens of each shard that count.
    """
    missing, found = batch_size, []
    rows = shuffled_rows(shard_tokens, data_seed, step * batch_size)
    while missing:
        shard, order = next(rows)
        start = shard_tokens[shard] - len(order)
        found.append(TextRows(shard, start, start + min(missing, len(order))))
        missing -= found[-1].stop - start
    return found


def check_text(runs: Sequence[RunConfig], text: StageText | None) -> None:
    """Make sure that a KL stage has its text.

    Raises:
        ConfigError: a run has one and there is none.
    """
    staged = [run.run_id for run in runs if run.train.kl_stage is not None]
    if staged and text is None:
        raise ConfigError(
            f"a run with `kl_stage` needs the text that activations are of, but got text=None for {staged[0]}. Give `text`, a "
            "`sae_core.training.kl_stage.StageText`, or leave out `kl_stage`."
        )
