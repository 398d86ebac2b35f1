"""Tokens as text that a reader can tell apart: what the tokenizer joins to words is shown byte by byte where it is no whole character."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from functools import cached_property
from typing import Any

_HEX = re.compile(r"<0x([0-9A-Fa-f]{2})>")
"""A byte in a tokenizer of SentencePiece."""


class TokenTexts:
    """Token ids -> text.

    Args:
        tokenizer: a Hugging Face tokenizer; None where there is none: then tokens are shown by their numbers.
    """

    def __init__(self, tokenizer: Any | None) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, str] = {}

    def __getitem__(self, token: int) -> str:
        if token not in self._known:
            self._known[token] = self._text(token)
        return self._known[token]

    def all(self, tokens: Iterable[int]) -> list[str]:
        """The texts of some tokens."""
        return [self[int(token)] for token in tokens]

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, without special ones."""
        if self._tokenizer is None:
            return []
        return list(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    @property
    def known(self) -> bool:
        """Whether tokens have texts."""
        return self._tokenizer is not None

    @property
    def bos(self) -> int | None:
        """The token that text begins with."""
        return getattr(self._tokenizer, "bos_token_id", None)

    def _text(self, token: int) -> str:
        if self._tokenizer is None or token >= len(self._tokenizer):  # a model may have more tokens than its tokenizer
            return f"#{token}"
        piece = str(self._tokenizer.convert_ids_to_tokens(token))
        if token in self._special:
            return piece
        if self._is_byte_level and all(character in _BYTES for character in piece):  # added tokens are text as it is
            return _shown(bytes(_BYTES[character] for character in piece))
        if byte := _HEX.fullmatch(piece):
            return _shown(bytes([int(byte[1], 16)]))
        return piece.replace("\u2581", " ")

    @cached_property
    def _special(self) -> frozenset[int]:
        return frozenset(self._tokenizer.all_special_ids) if self._tokenizer is not None else frozenset()

    @cached_property
    def _is_byte_level(self) -> bool:
        """Whether a token is a string of bytes, each written as one printable character, as GPT-2's are."""
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        return backend is not None and '"ByteLevel"' in json.dumps(json.loads(backend.to_str()).get("decoder"))


def _shown(content: bytes) -> str:
    """Bytes as text, with \\x.. for those that are no whole character."""
    return content.decode("utf-8", errors="backslashreplace")


def _byte_characters() -> dict[str, int]:
    """The printable character that stands for each byte in GPT-2's vocabulary -> the byte (Radford et al. 2019)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + number): byte for number, byte in enumerate(others)}


_BYTES = _byte_characters()
