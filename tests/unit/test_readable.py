"""Tokens as readers see them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_model import DEMO_MODEL

from analysis.features.readable import TokenTexts


@pytest.fixture(scope="module")
def texts():
    from transformers import AutoTokenizer

    return TokenTexts(AutoTokenizer.from_pretrained(DEMO_MODEL))


@pytest.mark.slow
@given(text=st.text(max_size=40))
def test_the_texts_of_tokens_join_to_the_text(texts, text):
    joined = b"".join(part.encode("utf-8", "surrogatepass") for part in texts.all(texts.encode(text)))
    assert _unescaped(joined) == _unescaped(text.encode("utf-8", "surrogatepass"))


def _unescaped(content):
    """Bytes in which \\xNN stands for the byte."""
    import re

    return re.sub(rb"\\x([0-9a-f]{2})", lambda match: bytes([int(match[1], 16)]), content)


@pytest.mark.slow
def test_spaces_newlines_and_half_characters_are_told_apart(texts):
    assert (
        texts.all(texts.encode("    return x\n")) == ["    return", " x", "\n"]
        or "".join(texts.all(texts.encode("    return x\n"))) == "    return x\n"
    )
    pieces = texts.all(texts.encode("€"))
    assert "".join(pieces) == "€" or all("\\x" in piece for piece in pieces)
    assert texts[0] == "<|endoftext|>"


class SentencePiece:
    """As tokenizers of Llama name their tokens."""

    all_special_ids = (0,)
    backend_tokenizer = None

    def __len__(self):
        return 5

    def convert_ids_to_tokens(self, token):
        return ["<s>", "\u2581the", "<0xE2>", "<0x0A>", "ing"][token]


def test_tokens_of_sentencepiece_have_spaces_and_bytes():
    assert TokenTexts(SentencePiece()).all(range(6)) == ["<s>", " the", "\\xe2", "\n", "ing", "#5"]


def test_without_a_tokenizer_tokens_are_numbers():
    texts = TokenTexts(None)
    assert (texts[17], texts.known, texts.encode("a")) == ("#17", False, [])
