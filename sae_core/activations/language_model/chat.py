"""Conversations become tokens by the tokenizer's chat template, with a mask of those that count.

Which characters count is found in the rendered text, and never guessed: a template with `{% generation %}` blocks is rendered with marks at
their ends; in any other, the content of a message is where a mark shows up that is rendered in its place. Each time the text without
marks must be the one that is tokenized, to the character, or the conversation is refused. A token counts if one of its characters does.

transformers' own `return_assistant_tokens_mask` is not used: where a block starts with a space that the tokenizer gives to no token, it
leaves out the rest of the conversation without a word.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from sae_core.errors import ConfigError, border

TrainOn = Literal["assistant", "content", "all"]
Span = tuple[int, int]
"""First character, and the one behind the last."""

_START, _END = "\U0010fff0", "\U0010fff1"
"""Marks: characters that no text has, from a plane for private use."""
_BLOCK_START = re.compile(r"(\{%-?\s*generation\s*%\})\n?|(\{%-?\s*generation\s*-%\})\s*")
_BLOCK_END = re.compile(r"\s*(\{%-\s*endgeneration\s*-?%\})|(?:(?<=\n)[ \t]+)?(\{%\s*endgeneration\s*-?%\})")


@dataclass(frozen=True, slots=True)
class Conversation:
    """The messages of one row: `role`, `content` and whatever else the template reads."""

    messages: tuple[dict[str, Any], ...]

    def __len__(self) -> int:
        """Characters, about."""
        return sum(len(str(message.get("content", ""))) for message in self.messages) + len(self.messages)


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """What makes tokens of conversations.

    Args:
        tokenizer: a Hugging Face tokenizer; a fast one, unless all tokens count.
        name: of one of its templates, or the text of a template; None: its default.
        train_on: tokens that count: what the assistant says with the token that ends it, all contents, or all tokens.

    Raises:
        ConfigError: there is no such template, or the tokenizer does not say which characters its tokens are of.
    """

    tokenizer: Any
    name: str | None = None
    train_on: TrainOn = "all"

    def __post_init__(self) -> None:
        if not getattr(self.tokenizer, "is_fast", False) and self.train_on != "all":
            raise ConfigError(
                f"`data.train_on` must be all where the tokenizer is not a fast one, which knows the characters of its tokens, but got "
                f"{self.train_on!r}. Set it to all, or add the file tokenizer.json."
            )
        _ = self.text

    @property
    def text(self) -> str:
        """The template itself."""
        with border("`data.chat_column` needs a chat template", "Give one as `data.chat_template`, or a tokenizer that has one."):
            return str(self.tokenizer.get_chat_template(self.name))

    @property
    def has_blocks(self) -> bool:
        """Whether the template says which part the assistant generates."""
        return _BLOCK_START.search(self.text) is not None

    def tokenized(self, conversation: Conversation) -> tuple[list[int], list[bool]]:
        """Token ids, and which of them count.

        Raises:
            ConfigError: the template does not take these messages, or changes them so that it cannot be said which tokens count.
        """
        messages = list(conversation.messages)
        rendered = self._rendered(messages)
        with border("the tokenizer of `model.name` must take all text", "Check its files, and the text."):
            options = {"add_special_tokens": False, "return_attention_mask": False, "verbose": False}
            encoded = self.tokenizer(rendered, return_offsets_mapping=self.train_on != "all", **options)
        ids = list(encoded["input_ids"])
        if self.train_on == "all":
            return ids, [True] * len(ids)
        if self.train_on == "assistant" and self.has_blocks:
            spans = self._spans_of_blocks(messages, rendered)
        else:
            spans = self._spans_of_contents(messages, rendered)
        return ids, _overlapping(encoded["offset_mapping"], spans, len(rendered))

    def _rendered(self, messages: Sequence[Mapping[str, Any]], template: str | None = None) -> str:
        with border("the chat template must take every conversation", "Check `data.chat_column`, or give another `data.chat_template`."):
            text: str = self.tokenizer.apply_chat_template(list(messages), chat_template=template or self.name, tokenize=False)
        return text

    def _spans_of_blocks(self, messages: list[dict[str, Any]], rendered: str) -> list[Span]:
        template = _BLOCK_START.sub(lambda found: f"{found[1] or found[2]}{{{{ '{_START}' }}}}", self.text)
        template = _BLOCK_END.sub(lambda found: f"{{{{ '{_END}' }}}}{found[1] or found[2]}", template)
        marked = self._rendered(messages, template)
        if marked.replace(_START, "").replace(_END, "") != rendered:
            raise _no_mask("generation blocks of the template must be found in what it renders", rendered)
        spans, at = [], 0
        for piece in re.split(f"({_START}[^{_END}]*{_END})", marked):
            text = piece.strip(_START + _END)
            if piece.startswith(_START):
                spans.append((at, at + len(text)))
            at += len(text)
        return spans

    def _spans_of_contents(self, messages: list[dict[str, Any]], rendered: str) -> list[Span]:
        """Contents of the messages that count, each with the special token behind it where the assistant is to be learned."""
        spans = []
        for number, message in enumerate(messages):
            if self.train_on == "assistant" and message.get("role") != "assistant":
                continue
            content = message.get("content")
            if not isinstance(content, str):
                got = f"{type(content).__name__} in a message of role {message.get('role')!r}"
                raise _no_mask(f"`data.train_on: {self.train_on}` needs contents that are text, but got {got}", rendered)
            if content.strip():
                spans.append(self._span_of(content, number, messages, rendered))
        return spans

    def _span_of(self, content: str, number: int, messages: list[dict[str, Any]], rendered: str) -> Span:
        marked = self._rendered([*messages[:number], {**messages[number], "content": _START}, *messages[number + 1 :]])
        before, mark, behind = marked.partition(_START)
        text = rendered[len(before) : len(rendered) - len(behind)]
        # A template may trim a content. What else it does to it is not understood.
        if not mark or _START in behind or before + text + behind != rendered or text.strip() != content.strip():
            raise _no_mask(
                f"contents of messages must be in what the template renders as they are, once, but got {content[:40]!r}", rendered
            )
        end = len(before) + len(text)
        if self.train_on == "assistant":
            special = (token for token in special_tokens(self.tokenizer).values() if behind.lstrip().startswith(token))
            end += max((len(behind) - len(behind.lstrip()) + len(token) for token in special), default=0)
        return len(before), end


def special_tokens(tokenizer: Any) -> dict[int, str]:
    """Special tokens by their ids: those with a role, and those that the tokenizer's files say are special, as a template's marks are."""
    flagged = {number: token.content for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True)) | flagged


def _overlapping(offsets: Sequence[Span], spans: Iterable[Span], length: int) -> list[bool]:
    """Tokens of which a character is in one of the spans."""
    counts = np.zeros(length + 1, np.int64)
    for start, end in spans:
        counts[start + 1 : end + 1] = 1
    total = counts.cumsum()
    return [bool(total[end] > total[start]) for start, end in offsets]


def _no_mask(rule: str, rendered: str) -> ConfigError:
    return ConfigError(
        f"{rule}, in the conversation {rendered[:80]!r}. Give a `data.chat_template` with generation blocks, or set `data.train_on: all`."
    )
