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
    ) -> None:
        """Write all of it.

        Args:
            documents: number of the document that each held-out token is of.
            chunk_windows: held-out windows in a chunk.
        """
        tensors = {"train": train, "heldout": heldout, _DOCUMENTS: documents, "special_ids": special_ids}
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

    def windows(self, part: Part, start: int, n_windows: int) -> tuple[Int[Tensor, "W T"], Bool[Tensor, "W T"]]:
        """Some windows, and which of their positions are not special tokens."""
        with open_tensors(self.path) as file:
            windows: Tensor = file.get_slice(part)[start : start + n_windows].long()
            return windows, kept(windows, file.get_tensor("special_ids"))

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
