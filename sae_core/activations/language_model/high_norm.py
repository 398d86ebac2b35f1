"""Tokens of large norm, as attention sinks are: which are left out, at each hook point.

The limit is a multiple of the median norm of the first held-out tokens, so it is the same for both parts and does not depend on how many
tokens are trained on. Shape letters: W windows, T positions in a window, N tokens that count.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_core.activations.language_model.token_file import TokenFile
from sae_core.errors import ConfigError

NORM_TOKENS = 8_192
"""Held-out tokens, special ones too, of whose windows the median norm is taken."""


class NormLimits:
    """The largest norms of tokens that count.

    Args:
        factor: limit as a multiple of the median norm; None: there is none.
        read: hook point, tokens [W, T], positions that count [W, T] -> their activations [N, d_in] on the CPU.
    """

    def __init__(
        self, factor: float | None, read: Callable[[str, Int[Tensor, "W T"], Bool[Tensor, "W T"]], Float[Tensor, "N d_in"]]
    ) -> None:
        self.factor, self._read = factor, read
        self._limits: dict[str, float] = {}

    def of(self, hook_point: str, directory: Path) -> float:
        """The limit at a hook point, where there is a factor.

        Args:
            directory: of the file of tokens, always of the same text.
        """
        assert self.factor is not None, "no factor, no limit"
        if hook_point not in self._limits:
            file = TokenFile(directory)
            length = file.windows("heldout", 0, 1)[0].shape[1]
            rows = self._read(hook_point, *file.windows("heldout", 0, max(1, NORM_TOKENS // length)))
            if not len(rows):
                raise ConfigError(
                    f"`data.exclude_high_norm` needs tokens that count to take the median norm of, but got none in the first {NORM_TOKENS} "
                    "held-out tokens. Leave it out, or let more tokens count: `data.train_on`, `data.positions`."
                )
            self._limits[hook_point] = self.factor * float(rows.norm(dim=1).median())
        return self._limits[hook_point]

    def low_rows(self, hook_points: Sequence[str], directory: Path, rows: Sequence[Float[Tensor, "N _"]]) -> Bool[Tensor, " N"] | None:
        """Which tokens have norms that are not above the limit, at each of these hook points; None: there is no limit.

        Args:
            rows: activations at each hook point; what follows is not looked at.
        """
        if self.factor is None:
            return None
        limits = [self.of(hook_point, directory) for hook_point in hook_points]
        return torch.stack([x.norm(dim=1) <= limit for x, limit in zip(rows, limits, strict=False)]).all(dim=0)

    def low(
        self, hook_points: Sequence[str], directory: Path, tokens: Int[Tensor, "W T"], keep: Bool[Tensor, "W T"]
    ) -> Bool[Tensor, "W T"]:
        """Those of the positions that count whose norm is not above the limit, at each of these hook points."""
        if self.factor is None:
            return keep
        low = self.low_rows(hook_points, directory, [self._read(hook_point, tokens, keep) for hook_point in hook_points])
        assert low is not None, "there is a limit"
        return keep.masked_scatter(keep, low)
