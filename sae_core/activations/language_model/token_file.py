"""tokens.safetensors: the windows of tokens that a language model reads, in a cache of activations.

The training windows lie in a fixed random order, the held-out windows in the order of the text, with the document that each token is of.
Shape letters: W windows, T positions in a window, S special tokens.
"""

import os
import shutil
from pathlib import Path

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sae_core.activations.files import open_tensors, save_tensors
from sae_core.activations.language_model.dataset import Part
from sae_core.files import written_whole

_DOCUMENTS = "heldout_documents"
"""Name of the tensor beside `heldout`."""
_COUNTS = "_counts"
"""Behind the name of a part: the positions of its windows that count. Left out where all do, special tokens apart."""


class TokenFile:
    """The tokens in one directory."""

    def __init__(self, directory: Path) -> None:
        self.path = Path(directory) / "tokens.safetensors"

    def write(
        self,
        train: Int[Tensor, "W T"],
        heldout: Int[Tensor, "V T"],
        documents: Int[Tensor, "V T"],
        special_ids: Int[Tensor, " S"],
        *,
        chunk_windows: int,
        train_counts: Bool[Tensor, "W T"] | None = None,
        heldout_counts: Bool[Tensor, "V T"] | None = None,
    ) -> None:
        """Write all of it.

        Args:
            documents: number of the document that each held-out token is of.
            chunk_windows: held-out windows in a chunk.
            train_counts, heldout_counts: positions that count unless their token is special; None: all.
        """
        tensors = {"train": train, "heldout": heldout, _DOCUMENTS: documents, "special_ids": special_ids}
        for part, counts in (("train", train_counts), ("heldout", heldout_counts)):
            if counts is not None and not bool(counts.all()):
                tensors[part + _COUNTS] = counts
        save_tensors(self.path, tensors, {"chunk_windows": str(chunk_windows)})

    def copy_from(self, other: "TokenFile") -> None:
        """Take those of another directory, unless there are some."""
        if self.path.exists():
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(self.path) as temporary:
            # A link takes no room; where the file system has none, or the other lies on another, a copy does.
            try:
                temporary.unlink(missing_ok=True)
                os.link(other.path, temporary)
            except OSError:
                shutil.copyfile(other.path, temporary)

    def n_windows(self, part: Part) -> int:
        """Number of windows of a part."""
        with open_tensors(self.path) as file:
            return int(file.get_slice(part).get_shape()[0])

    @property
    def chunk_windows(self) -> int:
        """Held-out windows in a chunk."""
        with open_tensors(self.path) as file:
            return int(file.metadata()["chunk_windows"])

    @property
    def special_ids(self) -> list[int]:
        """Tokens that do not count."""
        with open_tensors(self.path) as file:
            ids: list[int] = file.get_tensor("special_ids").tolist()
        return ids

    @property
    def heldout(self) -> Int[Tensor, "W T"]:
        """All held-out windows."""
        with open_tensors(self.path) as file:
            windows: Tensor = file.get_tensor("heldout").long()
        return windows

    @property
    def heldout_counts(self) -> Bool[Tensor, "W T"] | None:
        """Positions of held-out windows that count unless their token is special; None: all."""
        with open_tensors(self.path) as file:
            name = "heldout" + _COUNTS
            counts: Tensor | None = file.get_tensor(name) if name in file.keys() else None  # noqa: SIM118  not a dict
        return counts

    def windows(self, part: Part, start: int, n_windows: int) -> tuple[Int[Tensor, "W T"], Bool[Tensor, "W T"]]:
        """Some windows, and which of their positions count: neither special tokens nor left out of the text's mask."""
        with open_tensors(self.path) as file:
            some = slice(start, start + n_windows)
            windows: Tensor = file.get_slice(part)[some].long()
            keep = kept(windows, file.get_tensor("special_ids"))
            if part + _COUNTS in file.keys():  # noqa: SIM118  not a dict
                keep &= file.get_slice(part + _COUNTS)[some]
            return windows, keep

    def documents(self, start: int, n_windows: int) -> Int[Tensor, "W T"]:
        """Number of the document that each token of some held-out windows is of. Where an earlier version cut them, all are of one: windows
        of a text are too much alike to stand for documents."""
        with open_tensors(self.path) as file:
            if _DOCUMENTS in file.keys():  # noqa: SIM118  not a dict
                documents: Tensor = file.get_slice(_DOCUMENTS)[start : start + n_windows].long()
                return documents
            return torch.zeros(n_windows, file.get_slice("heldout").get_shape()[1], dtype=torch.int64)


def may_be_shorter(windows: Int[Tensor, "W T"]) -> bool:
    """Whether the same tokens, in shorter windows, start each of them with BOS, too."""
    tokens, length = windows.flatten(), windows.shape[1]
    lengths = (shorter for shorter in range(2, length) if len(tokens) % shorter == 0)
    return any(bool((tokens[::shorter] == tokens[0]).all()) for shorter in lengths)


def kept(tokens: Int[Tensor, "W T"], special_ids: Int[Tensor, " S"]) -> Bool[Tensor, "W T"]:
    """Positions that are not special tokens."""
    return ~torch.isin(tokens, special_ids)
