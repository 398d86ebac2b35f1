from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sae_core.activations.language_model import text
from sae_core.activations.language_model.text import WindowMaker
from sae_core.errors import ConfigError


class Letters:
    """A tokenizer for tests: a is 1, b is 2, ..."""

    def __init__(self, bos: int | None = 0, eos: int | None = 99) -> None:
        self.bos_token_id, self.eos_token_id = bos, eos

    def __call__(self, texts: list[str], **options: bool) -> dict[str, list[list[int]]]:
        assert options == {"add_special_tokens": False, "return_attention_mask": False, "verbose": False}
        return {"input_ids": [[ord(letter) - 96 for letter in one] for one in texts]}


def windows(
    documents: list[str] | list[list[int]], n_tokens: int, *, tokenizer: object = None, prepend_bos: bool = True
) -> list[list[int]]:
    maker = WindowMaker(tokenizer or Letters(), 4, prepend_bos, special_ids=(0, 99))
    return maker.cut(documents, n_tokens).windows.tolist()


def test_bos_parts_documents_and_starts_every_window() -> None:
    # the stream is 0 1 2 3 4 | 0 5 6 7; cut after every third token, each piece behind a BOS; the tokens that count are 2 + 2 + 3
    assert windows(["abcd", "efg"], 7) == [[0, 0, 1, 2], [0, 3, 4, 0], [0, 5, 6, 7]]


def of_documents(documents: list[str] | list[list[int]], *, tokenizer: object = None, prepend_bos: bool = True) -> list[list[int]]:
    maker = WindowMaker(tokenizer or Letters(), 4, prepend_bos, special_ids=(0, 99))
    made = maker.cut(documents, 100)
    cut, numbers = made.windows, made.documents
    assert cut.tolist() == maker.cut(documents, 100).windows.tolist() and cut.shape == numbers.shape
    return numbers.tolist()


def test_documents_are_followed_over_the_ends_of_windows() -> None:
    # the stream is 0a 1 2 3 4 | 0b 5 6 7, and each window starts with a BOS of its own, of the document of its first token
    assert of_documents(["abcd", "efg"]) == [[0, 0, 0, 0], [0, 0, 0, 1], [1, 1, 1, 1]]
    # the stream is 0 1 2 | 0 3 | 0 4 5 6; the document in the middle is cut, and without BOS windows are consecutive tokens
    assert of_documents(["ab", "c", "def"], prepend_bos=False) == [[0, 0, 0, 1], [1, 2, 2, 2]]
    assert of_documents(["ab", "c", "def"], tokenizer=Letters(bos=None, eos=None), prepend_bos=False) == [[0, 0, 1, 2]]


def test_each_row_of_tokens_is_a_document() -> None:
    rows = [[0, 1, 2, 3], [7, 8], [9, 10, 11, 12, 13, 14, 15]]  # the second is too short for a window
    assert of_documents(rows) == [[0] * 4, [2] * 4, [2] * 4]


@pytest.mark.parametrize("at_a_time", [1, 5, 9])
def test_documents_read_in_batches_keep_their_numbers(monkeypatch: pytest.MonkeyPatch, at_a_time: int) -> None:
    documents = ["abcd", "efghijk", "l", "mnopq", "rstuvwxyz"]
    rows = [[0, 1, 2, 3], [4, 5, 6], [7, 8], [9, 10, 11, 12, 13, 14, 15]]
    whole, of_rows = of_documents(documents), of_documents(rows)
    monkeypatch.setattr(text, "LENGTH_AT_A_TIME", at_a_time)
    assert (of_documents(documents), of_documents(rows)) == (whole, of_rows)


@pytest.mark.parametrize(("n_tokens", "n_windows"), [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3), (7, 3)])
def test_fewest_windows_with_the_tokens_asked(n_tokens: int, n_windows: int) -> None:
    assert len(windows(["abcd", "efg"], n_tokens)) == n_windows  # windows hold 2, 2 and 3 tokens that count


def test_too_little_text_gives_what_there_is() -> None:
    assert windows(["abc"], 100) == [[0, 0, 1, 2]]
    assert windows([], 100) == []
    assert windows(["a"], 100) == []


def test_without_bos_windows_are_consecutive_tokens() -> None:
    assert windows(["abc", "defg"], 100, prepend_bos=False) == [[0, 1, 2, 3], [0, 4, 5, 6]]


def test_eos_parts_documents_where_there_is_no_bos() -> None:
    assert windows(["abc", "defg"], 100, tokenizer=Letters(bos=None), prepend_bos=False) == [[99, 1, 2, 3], [99, 4, 5, 6]]
    assert windows(["abc", "de"], 100, tokenizer=Letters(bos=None, eos=None), prepend_bos=False) == [[1, 2, 3, 4]]


def test_asking_for_a_missing_bos_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"`model\.prepend_bos` must be false.*got True"):
        WindowMaker(SimpleNamespace(bos_token_id=None), 4)


def test_rows_of_tokens_are_cut_one_by_one() -> None:
    rows = [[0, 1, 2, 3], [4, 5, 6], [7, 8], [9, 10, 11, 12, 13, 14, 15]]
    # a window of the same size stays as it is; a row without BOS gets one; [7, 8] and the last 15 are too short
    assert windows(rows, 100) == [[0, 1, 2, 3], [0, 4, 5, 6], [0, 9, 10, 11], [0, 12, 13, 14]]


def test_rows_without_prepended_bos_stay_as_they_are() -> None:
    assert windows([[0, 1, 2, 3, 4, 5, 6, 7, 8]], 100, prepend_bos=False) == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_reading_in_batches_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    documents = ["abcd", "efghijk", "l", "mnopq", "rstuvwxyz"]
    whole = windows(documents, 20)
    monkeypatch.setattr(text, "LENGTH_AT_A_TIME", 5)
    assert windows(documents, 20) == whole


def test_documents_beyond_the_need_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "LENGTH_AT_A_TIME", 1)
    read: list[str] = []
    WindowMaker(Letters(), 4, special_ids=(0,)).cut((read.append(one) or one for one in ["abcdef"] * 100), 9)
    assert len(read) == 2  # the stream is 0abcdef0abcdef; its four windows hold 2 + 3 + 2 + 3 tokens that count, those of one document 5


def test_text_that_the_tokenizer_does_not_take_is_one_message() -> None:
    class Broken(Letters):
        def __call__(self, texts: list[str], **options: bool) -> dict[str, list[list[int]]]:
            raise TypeError("no text")

    with pytest.raises(ConfigError, match=r"the tokenizer of `model\.name` must take all text: TypeError: no text"):
        windows(["abc"], 3, tokenizer=Broken())


def test_without_a_tokenizer_there_is_no_bos() -> None:
    assert WindowMaker(None, 4, prepend_bos=False).cut([[1, 2, 3, 4, 5]], 4).windows.tolist() == [[1, 2, 3, 4]]
    with pytest.raises(ConfigError, match="must be false where there is no tokenizer, but got True"):
        WindowMaker(None, 4)


def masked(documents: list[str] | list[list[int]], **options: Any) -> list[list[int]]:
    """Windows of 4 tokens, with -1 for each that does not count."""
    cut = WindowMaker(Letters(), 4, **options).cut(documents, 100)
    return torch.where(cut.counts, cut.windows, -1).tolist()


def test_one_document_per_window_is_cut_or_filled_up_with_what_does_not_count() -> None:
    assert masked(["abcde", "f", ""], packing="one_per_window") == [[0, 1, 2, 3], [0, 6, -1, -1], [0, -1, -1, -1]]
    assert masked([[0, 1, 2, 3, 4], [5]], packing="one_per_window") == [[0, 1, 2, 3], [0, 5, -1, -1]]
    assert masked(["ab"], packing="one_per_window", prepend_bos=False) == [[0, 1, 2, -1]]
    cut = WindowMaker(Letters(), 4, packing="one_per_window").cut(["f", "abc"], 100)
    assert cut.windows.tolist() == [[0, 6, 99, 99], [0, 1, 2, 3]] and cut.documents.tolist() == [[0] * 4, [1] * 4]


def test_positions_that_do_not_count_are_made_up_for_by_more_windows() -> None:
    assert masked(["abcdef"], positions=(1, 3)) == [[-1, 0, 1, -1], [-1, 3, 4, -1]]
    maker = WindowMaker(Letters(), 4, special_ids=(0,), positions=(1, 2))
    assert len(maker.cut(["abcdefghi"] * 3, 3).windows) == 4  # the first window's only position that counts is the BOS of a document


def test_filling_up_needs_a_token_for_it() -> None:
    with pytest.raises(ConfigError, match="needs a tokenizer with an EOS, BOS or padding token"):
        WindowMaker(None, 4, prepend_bos=False, packing="one_per_window")
