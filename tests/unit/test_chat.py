"""Masks of conversations, token by token, with the demo's tokenizer under the templates of several families."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_model import DEMO_MODEL, language_model_config
from transformers import AddedToken, AutoTokenizer

from sae_core.activations.language_model.chat import ChatTemplate, Conversation, special_tokens
from sae_core.activations.language_model.data_config import DataConfig
from sae_core.activations.language_model.dataset import documents, problems
from sae_core.activations.language_model.source import LanguageModelSource
from sae_core.activations.language_model.text import WindowMaker
from sae_core.activations.language_model.token_file import TokenFile
from sae_core.errors import ConfigError

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
)
LLAMA_2 = (
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + message['content'] | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] | trim + ' </s>' }}{% endif %}{% endfor %}"
)
BLOCKS = """{% for message in messages %}
{%- if message['role'] == 'assistant' %}
<|im_start|>assistant
{% generation %}
{{ message['content'] }}<|im_end|>
    {%- endgeneration %}
{%- else %}
<|im_start|>{{ message['role'] }}
{{ message['content'] }}<|im_end|>
{%- endif %}
{%- endfor %}"""
SPACED = "{% for m in messages %}{{ m['role'] }}:{% if m['role'] == 'assistant' %}{% generation %} {{ m['content'] }}{% endgeneration %}\
{% else %} {{ m['content'] }}{% endif %}\n{% endfor %}"
MESSAGES = (
    {"role": "system", "content": "user"},
    {"role": "user", "content": "  return x + y  \n"},
    {"role": "assistant", "content": "def f(x, y):\n    return x\u00e9\U0001f600 + y"},
    {"role": "user", "content": "user"},
    {"role": "assistant", "content": "assistant"},
)


def tokenizer(template: str) -> Any:
    found = AutoTokenizer.from_pretrained(DEMO_MODEL)
    ends = ["<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "</s>"]
    found.add_special_tokens({"additional_special_tokens": ends})
    found.chat_template = template
    return found


def counted(template: str, train_on: Any) -> list[str]:
    """Text of each stretch of tokens that count; all tokens must be those that the tokenizer makes of the rendered text."""
    of = tokenizer(template)
    ids, counts = ChatTemplate(of, None, train_on).tokenized(Conversation(MESSAGES))
    rendered = of.apply_chat_template(list(MESSAGES), tokenize=False)
    assert ids == of(rendered, add_special_tokens=False)["input_ids"] and len(counts) == len(ids)
    stretches: list[list[int]] = []
    for index, (token, counts_here) in enumerate(zip(ids, counts, strict=True)):
        if counts_here:
            stretches = [*stretches, []] if not index or not counts[index - 1] else stretches
            stretches[-1].append(token)
    return [of.decode(stretch) for stretch in stretches]


SAID = "def f(x, y):\n    return x\u00e9\U0001f600 + y"


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (CHATML, [SAID + "<|im_end|>", "assistant<|im_end|>"]),
        (LLAMA, [SAID + "<|eot_id|>", "assistant<|eot_id|>"]),
        (BLOCKS, [SAID + "<|im_end|>", "assistant<|im_end|>"]),
    ],
)
def test_what_the_assistant_says_counts_with_the_token_that_ends_it(template: str, expected: list[str]) -> None:
    assert counted(template, "assistant") == expected


def test_tokens_partly_of_an_answer_count() -> None:
    # the space before an answer is the template's, and in one token with the start of the answer
    assert [text.strip() for text in counted(LLAMA_2, "assistant")] == [SAID + " </s>", "assistant </s>"]


def test_blocks_that_start_with_a_space_are_not_lost() -> None:
    assert [text.strip() for text in counted(SPACED, "assistant")] == [SAID, "assistant"]


@pytest.mark.parametrize("template", [CHATML, LLAMA, BLOCKS])
def test_contents_count_without_the_template(template: str) -> None:
    found = [text.strip() for text in counted(template, "content")]
    assert found == ["user", "return x + y", SAID, "user", "assistant"]


@pytest.mark.parametrize("template", [CHATML, LLAMA, LLAMA_2, BLOCKS, SPACED])
def test_all_tokens_count(template: str) -> None:
    (text,) = counted(template, "all")
    assert text == tokenizer(template).apply_chat_template(list(MESSAGES), tokenize=False)


def test_generation_blocks_agree_with_transformers() -> None:
    of = tokenizer(BLOCKS)
    theirs = of.apply_chat_template(list(MESSAGES), return_assistant_tokens_mask=True, return_dict=True)
    ids, counts = ChatTemplate(of, None, "assistant").tokenized(Conversation(MESSAGES))
    assert (theirs["input_ids"], theirs["assistant_masks"]) == (ids, [int(one) for one in counts])


@pytest.mark.parametrize(
    ("template", "content", "message"),
    [
        (
            "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}",
            "Ab",
            "as they are, once, but got .Ab.",
        ),
        (
            "{% for m in messages %}{{ m['content'] }}{{ m['content'] }}{% endfor %}",
            "Ab",
            "must be in what the template renders as they are, once, but got .Ab.",
        ),
        ("{{ messages[-1]['role'] }}", "Ab", "must be in what the template renders as they are, once, but got .Ab."),
        (CHATML, [{"type": "text", "text": "Ab"}], "the chat template must take every conversation|needs contents that are text"),
        ("{{ raise_exception('no system') }}", "Ab", "no system"),
    ],
)
def test_masks_that_cannot_be_exact_are_refused(template: str, content: Any, message: str) -> None:
    chat = ChatTemplate(tokenizer(template), None, "assistant")
    with pytest.raises(ConfigError, match=message):
        chat.tokenized(Conversation(({"role": "assistant", "content": content},)))


def test_without_a_template_there_are_no_conversations() -> None:
    with pytest.raises(ConfigError, match="needs a chat template"):
        ChatTemplate(AutoTokenizer.from_pretrained(DEMO_MODEL))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"messages": [{"from": "user", "value": "a"}]}], "each with `role` and `content`, but got 'messages' with .*from.* in row 1"),
        ([{"messages": "text"}], "but got 'messages' with 'text' in row 1"),
        ([{"chat": []}], "data.chat_column"),
    ],
)
def test_what_is_no_conversation_is_refused(tmp_path: Path, rows: list[Any], message: str) -> None:
    (problem,) = problems(chats(tmp_path, rows))
    with pytest.raises(ConfigError, match=message):
        raise ConfigError(problem)


def chats(tmp_path: Path, rows: list[Any]) -> DataConfig:
    (tmp_path / "chats.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return DataConfig(dataset=str(tmp_path / "chats.jsonl"), chat_column="messages", eval_split="train")


def conversations(n: int) -> list[dict[str, Any]]:
    return [{"messages": [{"role": "user", "content": f"add {i}"}, {"role": "assistant", "content": f"x + {i}"}]} for i in range(n)]


def test_conversations_are_held_out_whole(tmp_path: Path) -> None:
    config = chats(tmp_path, conversations(40))
    train, heldout = (list(documents(config, part)) for part in ("train", "heldout"))
    assert len(train) + len(heldout) == 40 and heldout and not {str(one) for one in train} & {str(one) for one in heldout}
    with pytest.raises(ConfigError, match="another split where conversations cannot be parted, but got 'train'"):
        list(documents(chats(tmp_path, conversations(1)), "train"))


@pytest.mark.parametrize("packing", ["packed", "one_per_window"])
def test_windows_of_conversations_carry_their_masks(packing: Any) -> None:
    of = tokenizer(LLAMA)
    maker = WindowMaker(of, 32, True, (), packing, None, ChatTemplate(of, None, "assistant"))
    cut = maker.cut([Conversation(tuple(row["messages"])) for row in conversations(9)], 20)
    bos = of.bos_token_id
    assert (cut.windows[:, 0] == bos).all() and not cut.counts[:, 0].any()
    assert not (cut.windows[:, 1] == bos).any() or packing == "packed"  # the template's own BOS is not doubled
    if packing == "one_per_window":
        for number, window in enumerate(cut.windows):
            assert of.decode(window[cut.counts[number]]) == f"x + {number}<|eot_id|>" and (cut.documents[number] == number).all()


@pytest.mark.slow
def test_only_what_counts_is_trained_on_measured_and_spliced(tmp_path: Path) -> None:
    config = language_model_config(tmp_path, positions=[3, 7], context_size=16, train_tokens=64, eval_tokens=32)
    source = LanguageModelSource(config)
    source.check()
    source.prepare(tmp_path)
    tokens, keep = TokenFile(tmp_path).windows("heldout", 0, 8)
    assert keep.any() and not keep[:, :3].any() and not keep[:, 7:].any()
    chunk = source.eval_chunk(tmp_path, 0, torch.zeros(source.d_in))
    x = source.model.read(tokens)[0]
    assert torch.equal(chunk.x, x[keep].float())
    assert chunk.splice is not None and chunk.clean is not None
    (same,) = chunk.splice([chunk.x])
    assert torch.allclose(same.ce, chunk.clean.ce, atol=1e-4) and len(same.ce) == len(chunk.x)
    assert len(source.shard(tmp_path, 0)) == int(TokenFile(tmp_path).windows("train", 0, 10**6)[1].sum())
    plain = LanguageModelSource(language_model_config(tmp_path, context_size=16, train_tokens=64, eval_tokens=32))
    assert source.fingerprint() != plain.fingerprint()
    plain.prepare(tmp_path / "plain")
    assert TokenFile(tmp_path / "plain").heldout_counts is None
    assert source.eval_fingerprint(tmp_path) != plain.eval_fingerprint(tmp_path / "plain")


def test_fields_that_are_not_given_leave_no_trace() -> None:
    later = {"chat_column", "chat_template", "train_on", "positions", "packing"}
    assert not later & DataConfig(dataset="a").model_dump().keys()
    given = DataConfig(dataset="a", positions=(0, 4), packing="one_per_window").model_dump(mode="json")
    assert given["positions"] == [0, 4] and DataConfig.model_validate(given).model_dump(mode="json") == given


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"train_on": "assistant"}, "need a `chat_column`, but got {'train_on': 'assistant'}"),
        ({"chat_column": "a", "tokens_column": "b"}, "takes the place of other columns, but got {'tokens_column': 'b'}"),
        ({"positions": [4, 4]}, r"start < stop, but got \[4, 4\]"),
    ],
)
def test_fields_that_do_not_go_together_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataConfig.model_validate({"dataset": "a", **fields})


@pytest.mark.slow
def test_positions_end_within_the_window(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"must end at `model.context_size`, 16, at the latest, but got \[0, 17\]"):
        LanguageModelSource(language_model_config(tmp_path, positions=[0, 17], context_size=16)).check()


@pytest.mark.slow
def test_a_source_reads_conversations(tmp_path: Path) -> None:
    rows = [{"messages": row["messages"], "split": "heldout" if i % 3 else "train"} for i, row in enumerate(conversations(90))]
    (tmp_path / "chats.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    data = {"dataset": str(tmp_path / "chats.jsonl"), "chat_column": "messages", "chat_template": CHATML, "train_on": "assistant"}
    config = language_model_config(tmp_path, **data, context_size=64, train_tokens=60, eval_tokens=60)
    source = LanguageModelSource(config)
    source.check()
    source.prepare(tmp_path)
    assert "what the assistant says" in source.text_in_words
    tokens, keep = TokenFile(tmp_path).windows("heldout", 0, 1)
    text = AutoTokenizer.from_pretrained(DEMO_MODEL).decode(tokens[0][keep[0]])
    assert text.startswith("x + 1") and "add" not in text and "user" not in text
    chunk = source.eval_chunk(tmp_path, 0, torch.zeros(source.d_in))
    assert len(chunk.x) == int(TokenFile(tmp_path).windows("heldout", 0, 10**3)[1].sum()) >= 60


def test_tokens_that_the_tokenizer_calls_special_are_so_without_a_role() -> None:
    plain = AutoTokenizer.from_pretrained(DEMO_MODEL)
    plain.add_tokens([AddedToken("<|mark|>", special=True), AddedToken("<|word|>", special=False)])
    mark, word = plain.convert_tokens_to_ids(["<|mark|>", "<|word|>"])
    assert mark not in plain.all_special_ids
    found = special_tokens(plain)
    assert found[mark] == "<|mark|>" and word not in found
    assert found.items() >= dict(zip(plain.all_special_ids, plain.all_special_tokens, strict=True)).items()
