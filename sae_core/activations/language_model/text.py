"""Documents become windows of tokens, the only input the language model sees.

Text: BOS before each document, everything concatenated, cut into windows of BOS and `context_size - 1` further tokens.
Rows that are tokenised already are cut one by one: a leading BOS is not doubled, a last piece shorter than a window is dropped.
Windows that were made before are used as they are.
Without `prepend_bos` a window is `context_size` consecutive tokens, and EOS parts documents where there is no BOS.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from sae_core.activations.language_model.dataset import Document, Window
from sae_core.errors import ConfigError, border

LENGTH_AT_A_TIME = 2**20
"""Characters (or tokens) of documents taken at a time: enough for the tokenizer's threads, little too much at the end."""

IntArray = np.ndarray[Any, np.dtype[np.int32]]


@dataclass(frozen=True, slots=True)
class WindowMaker:
    """Cuts documents into windows.

    Raises:
        ConfigError: BOS is asked for and the tokenizer has none.
    """

    tokenizer: Any
    """A Hugging Face tokenizer; None where all documents are tokenised and no BOS is asked for."""
    context_size: int
    prepend_bos: bool = True
    special_ids: tuple[int, ...] = ()
    """Tokens that do not count."""

    def __post_init__(self) -> None:
        if self.prepend_bos and getattr(self.tokenizer, "bos_token_id", None) is None:
            has = "there is no tokenizer" if self.tokenizer is None else "the tokenizer has no BOS token"
            raise ConfigError(f"`model.prepend_bos` must be false where {has}, but got {self.prepend_bos}. Set it to false.")

    def windows(self, documents: Iterable[Document], n_tokens: int) -> Int[Tensor, "W T"]:
        """The fewest windows, from the first document on, that hold `n_tokens` tokens which count.

        Returns:
            int32; all windows there are where the documents hold fewer tokens.
        """
        return self._joined(windows for windows, _ in self._needed(documents, n_tokens))

    def windows_and_documents(self, documents: Iterable[Document], n_tokens: int) -> tuple[Int[Tensor, "W T"], Int[Tensor, "W T"]]:
        """`windows`, and the number of the document, from 0, that each of their tokens is of; int32.

        A token that parts documents is of the document behind it, and the BOS that a window starts with of that of the next token.
        """
        parts = list(self._needed(documents, n_tokens))
        return self._joined(windows for windows, _ in parts), self._joined(numbers for _, numbers in parts)

    def _joined(self, parts: Iterable[IntArray]) -> Int[Tensor, "W T"]:
        return torch.from_numpy(np.concatenate([np.empty((0, self.context_size), np.int32), *parts]))

    def _needed(self, documents: Iterable[Document], n_tokens: int) -> Iterator[IntArray]:
        """The windows needed, and their documents: some at a time, [2, W, T]."""
        for some in self._some_windows(documents):
            counts = (~np.isin(some[0], self.special_ids)).sum(axis=1).cumsum()
            n_needed = int(np.searchsorted(counts, n_tokens)) + 1
            yield some[:, :n_needed]
            if n_needed <= len(counts):
                return
            n_tokens -= int(counts[-1]) if len(counts) else 0

    def _some_windows(self, documents: Iterable[Document]) -> Iterator[IntArray]:
        rest, n_read = np.empty((2, 0), np.int32), 0
        for some in _batches(documents):
            if isinstance(some[0], str):
                stream = [_numbered(ids, number) for number, ids in enumerate(self._tokenised(some), start=n_read)]
                windows, rest = self._cut(np.concatenate([rest, *stream], axis=1))
                yield windows
            elif ready := [document for document in some if isinstance(document, Window)]:
                yield np.asarray([[window.ids for window in ready], [window.documents for window in ready]], np.int32)
            else:
                rows = (self._without_bos(np.asarray(row, np.int32)) for row in some)
                yield np.concatenate([self._cut(_numbered(row, number))[0] for number, row in enumerate(rows, start=n_read)], axis=1)
            n_read += len(some)

    def _tokenised(self, texts: list[Document]) -> Iterator[IntArray]:
        """Token ids of each text, behind the token that parts documents."""
        bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        start = [token for token in (bos, eos) if token is not None][:1]
        with border("the tokenizer of `model.name` must take all text", "Check its files, and the text."):
            encoded = self.tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
        return (np.asarray(start + ids, np.int32) for ids in encoded["input_ids"])

    def _without_bos(self, ids: IntArray) -> IntArray:
        return ids[1:] if self.prepend_bos and len(ids) and ids[0] == self.tokenizer.bos_token_id else ids

    def _cut(self, stream: IntArray) -> tuple[IntArray, IntArray]:
        """Whole windows of tokens and the numbers of their documents [2, W, T], and what is left over of both [2, L]."""
        n_new = self.context_size - self.prepend_bos
        n_windows = stream.shape[1] // n_new
        windows, rest = stream[:, : n_windows * n_new].reshape(2, n_windows, n_new), stream[:, n_windows * n_new :]
        if self.prepend_bos:
            first = windows[:, :, :1].copy()
            first[0] = self.tokenizer.bos_token_id
            windows = np.concatenate([first, windows], axis=2)
        return windows, rest


def _numbered(ids: IntArray, number: int) -> IntArray:
    """Tokens of one document, and its number beside each [2, L]."""
    return np.stack([ids, np.full_like(ids, number)])


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    length = 0
    for document in documents:
        batch.append(document)
        length += len(document)
        if length >= LENGTH_AT_A_TIME:
            yield batch
            batch, length = [], 0
    if batch:
        yield batch
