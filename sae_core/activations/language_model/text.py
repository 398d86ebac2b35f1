"""Documents become windows of tokens, the only input the language model sees.

Text: BOS before each document, everything concatenated, cut into windows of BOS and `context_size - 1` further tokens.
Rows that are tokenised already are cut one by one: a leading BOS is not doubled, a last piece shorter than a window is dropped.
Windows that were made before are used as they are.
Without `prepend_bos` a window is `context_size` consecutive tokens, and EOS parts documents where there is no BOS.
Conversations are text that the chat template renders; it often starts with BOS itself, which is not doubled.

With one document per window, each window holds the start of a document, filled up with EOS (else BOS, else padding) tokens that do not
count. No attention mask is needed: they are behind the tokens that count, and a causal model looks only back. The first of them is what the
last token of the document predicts, as documents that are packed end too.

Shape letters: W windows, T positions in a window, L tokens of a stream; 3 rows: token ids, numbers of documents, 1 where a token counts.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sae_core.activations.language_model.chat import ChatTemplate, Conversation
from sae_core.activations.language_model.dataset import Document, Window
from sae_core.errors import ConfigError, border

LENGTH_AT_A_TIME = 2**20
"""Characters (or tokens) of documents taken at a time: enough for the tokenizer's threads, little too much at the end."""

IntArray = np.ndarray[Any, np.dtype[np.int32]]


@dataclass(frozen=True, slots=True)
class CutText:
    """Windows, in the order of the text."""

    windows: Int[Tensor, "W T"]
    """int32."""
    documents: Int[Tensor, "W T"]
    """Number of the document, from 0, that each token is of; int32. A token that parts documents is of the one behind it, and the BOS that
    a window starts with of that of the next token."""
    counts: Bool[Tensor, "W T"]
    """Tokens that count, special or not."""


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
    packing: Literal["packed", "one_per_window"] = "packed"
    positions: tuple[int, int] | None = None
    """First position that counts, and the one behind the last; None: all."""
    chat: ChatTemplate | None = None
    """What makes tokens of conversations."""

    def __post_init__(self) -> None:
        if self.prepend_bos and getattr(self.tokenizer, "bos_token_id", None) is None:
            has = "there is no tokenizer" if self.tokenizer is None else "the tokenizer has no BOS token"
            raise ConfigError(f"`model.prepend_bos` must be false where {has}, but got {self.prepend_bos}. Set it to false.")
        if self.packing == "one_per_window" and self._filler is None:
            raise ConfigError(
                "`data.packing: one_per_window` needs a tokenizer with an EOS, BOS or padding token to fill windows up, but got none. "
                "Set it to packed."
            )

    def cut(self, documents: Iterable[Document], n_tokens: int) -> CutText:
        """The fewest windows, from the first document on, that hold `n_tokens` tokens which count; all there are where these are fewer."""
        parts = [np.empty((3, 0, self.context_size), np.int32), *self._needed(documents, n_tokens)]
        windows, numbers, counts = (torch.from_numpy(np.concatenate([part[row] for part in parts])) for row in range(3))
        return CutText(windows, numbers, counts.bool())

    def _needed(self, documents: Iterable[Document], n_tokens: int) -> Iterator[IntArray]:
        """The windows needed: some at a time, [3, W, T]."""
        start, stop = self.positions or (0, self.context_size)
        for some in self._some_windows(documents):
            some[2, :, :start] = some[2, :, stop:] = 0
            counts = (~np.isin(some[0], self.special_ids) & (some[2] == 1)).sum(axis=1).cumsum()
            n_needed = int(np.searchsorted(counts, n_tokens)) + 1
            yield some[:, :n_needed]
            if n_needed <= len(counts):
                return
            n_tokens -= int(counts[-1]) if len(counts) else 0

    def _some_windows(self, documents: Iterable[Document]) -> Iterator[IntArray]:
        rest, n_read = np.empty((3, 0), np.int32), 0
        for some in _batches(documents):
            ready = [document for document in some if isinstance(document, Window)]
            numbered = enumerate([] if ready else self._pieces(some), start=n_read)
            pieces = [_numbered(ids, counts, number) for number, (ids, counts) in numbered if len(ids)]
            if ready:
                windows = np.asarray([[window.ids for window in ready], [window.documents for window in ready]], np.int32)
                yield np.concatenate([windows, np.ones_like(windows[:1])])
            elif self.packing == "one_per_window":
                yield self._one_per_window(pieces)
            elif isinstance(some[0], list):
                yield np.concatenate([np.empty((3, 0, self.context_size), np.int32), *(self._cut(piece)[0] for piece in pieces)], axis=1)
            else:
                windows, rest = self._cut(np.concatenate([rest, *pieces], axis=1))
                yield windows
            n_read += len(some)

    def _pieces(self, some: list[Document]) -> Iterator[tuple[IntArray, IntArray]]:
        """Token ids of each document, and which of them count."""
        if some and isinstance(some[0], Conversation):
            yield from (self._conversation(one) for one in some)
            return
        all_ids = (
            self._tokenised(some) if some and isinstance(some[0], str) else (self._without_bos(np.asarray(row, np.int32)) for row in some)
        )
        yield from ((ids, np.ones_like(ids)) for ids in all_ids)

    def _conversation(self, conversation: Document) -> tuple[IntArray, IntArray]:
        assert self.chat is not None and isinstance(conversation, Conversation), f"{conversation=}"
        ids, counts = self.chat.tokenized(conversation)
        start = [] if ids[:1] == self._start else self._start
        return np.asarray(start + ids, np.int32), np.asarray([self._bos_counts] * len(start) + counts, np.int32)

    @property
    def _bos_counts(self) -> bool:
        """Whether a BOS that is put before something counts, unless special tokens are left out; those of templates do not."""
        return self.chat is None or self.chat.train_on == "all"

    @property
    def _start(self) -> list[int]:
        """The token that parts documents."""
        return [token for token in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id) if token is not None][:1]

    @property
    def _filler(self) -> int | None:
        names = ("eos_token_id", "bos_token_id", "pad_token_id")
        return next((token for name in names if (token := getattr(self.tokenizer, name, None)) is not None), None)

    def _one_per_window(self, pieces: list[IntArray]) -> IntArray:
        """A window of each document [3, W, T]; the token that parts documents is the BOS of the window where it has one."""
        assert self._filler is not None
        n_new = self.context_size - self.prepend_bos
        windows = [np.empty((3, 0, self.context_size), np.int32)]
        for piece in pieces:
            tokens = self._without_leading_bos(piece)[:, :n_new]
            if n_left := n_new - tokens.shape[1]:
                filler = np.full(n_left, self._filler, np.int32)
                tokens = np.concatenate([tokens, _numbered(filler, np.zeros_like(filler), number=int(piece[1, 0]))], axis=1)
            windows.append(self._cut(tokens)[0])
        return np.concatenate(windows, axis=1)

    def _tokenised(self, texts: list[Document]) -> Iterator[IntArray]:
        """Token ids of each text, behind the token that parts documents."""
        start = self._start
        with border("the tokenizer of `model.name` must take all text", "Check its files, and the text."):
            encoded = self.tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
        return (np.asarray(start + ids, np.int32) for ids in encoded["input_ids"])

    def _without_bos(self, ids: IntArray) -> IntArray:
        return ids[1:] if self.prepend_bos and len(ids) and ids[0] == self.tokenizer.bos_token_id else ids

    def _without_leading_bos(self, piece: IntArray) -> IntArray:
        return piece[:, 1:] if self.prepend_bos and piece[0, 0] == self.tokenizer.bos_token_id else piece

    def _cut(self, stream: IntArray) -> tuple[IntArray, IntArray]:
        """Whole windows [3, W, T], and what is left over [3, L]."""
        n_new = self.context_size - self.prepend_bos
        n_windows = stream.shape[1] // n_new
        windows, rest = stream[:, : n_windows * n_new].reshape(3, n_windows, n_new), stream[:, n_windows * n_new :]
        if self.prepend_bos:
            first = windows[:, :, :1].copy()
            first[0], first[2] = self.tokenizer.bos_token_id, self._bos_counts
            windows = np.concatenate([first, windows], axis=2)
        return windows, rest


def _numbered(ids: IntArray, counts: IntArray, number: int) -> IntArray:
    """Tokens of one document, its number, and whether they count [3, L]."""
    return np.stack([ids, np.full_like(ids, number), counts])


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
