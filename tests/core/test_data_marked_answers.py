"""Answers marked with `{% generation %}`, against the mask that transformers makes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from diy_core.data.chats import NothingToLearn, encode_chat
from diy_core.data.marked_answers import marks_answers
from diy_core.data.records import Chat
from diy_core.text.tokenizer import Tokenizer as Ours
from tests.core.tokenizer_kinds import pieces, unigram
from tests.tiny_checkpoints import MERGES, PIECES, SPECIAL, build_tokenizer, put_tokenizer

OPENING = "{{ '<|turn|>' + m['role'] + ':' }}"


def template(answer: str, opening: str = OPENING) -> str:
    """Writes turns, and those of the assistant as it is told."""
    return (
        f"{{% for m in messages %}}{opening}{{% if m['role'] == 'assistant' %}}{answer}"
        "{% else %}{{ m['content'] + '<|end|>\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|turn|>assistant:' }}{% endif %}"
    )


TEMPLATES = {
    "end token": "{% generation %}{{ m['content'] + '<|end|>' }}{% endgeneration %}{{ '\n' }}",
    "line break behind it": "{% generation %}{{ m['content'] + '<|end|>\n' }}{% endgeneration %}",
    "two lines and a word": (
        "{% generation %}{{ m['content'] + '<|end|>\n\n he' }}{% endgeneration %}{{ ' the' }}"
    ),
    "content alone": "{% generation %}{{ m['content'] }}{% endgeneration %}{{ '<|end|>\n' }}",
    "trimmed": "  {%- generation -%}\n {{ m['content'] | trim }}<|end|> {%- endgeneration +%}\n",
    "twice": (
        "{% generation %}{{ m['content'] }}{% endgeneration %}{{ '<|turn|>' }}"
        "{% generation %}{{ 'he<|end|>' }}{% endgeneration %}"
    ),
    "within words": "{{ 't' }}{% generation %}{{ m['content'] }}he{% endgeneration %}{{ ' t20' }}",
}
CONTENTS = ["he the", " the he\n", "a<|end|>b <|end|>", "<|end|>", "20 20", "x\n\n\ny", "é好 the"]


def chat_of(content: str) -> list[dict[str, str]]:
    return [
        {"role": "user", "content": "the <|end|> 20"},
        {"role": "assistant", "content": content},
        {"role": "user", "content": "he"},
        {"role": "assistant", "content": "the end"},
    ]


def byte_level(*, trim: bool = False) -> Any:
    backend = build_tokenizer()
    backend.post_processor = processors.ByteLevel(trim_offsets=trim)
    return backend


def swallowing() -> Any:
    """Its special tokens hold the white space behind them, as those of Phi-3 do."""
    backend = Tokenizer(models.BPE({t: i for i, t in enumerate(PIECES)}, MERGES))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.add_tokens([AddedToken(t, special=True, rstrip=True) for t in SPECIAL])
    return backend


def of(state: Any) -> Any:
    backend = Tokenizer.from_str(json.dumps(state))
    backend.add_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    return backend


BACKENDS = {
    "byte level": byte_level,
    "swallowing": swallowing,
    "pieces": lambda: of(pieces()),
    "unigram": lambda: of(unigram()),
}


def ours(path: Path, backend: Any, source: str) -> Ours:
    put_tokenizer(path, backend, chat_template=source, tokenizer_class="PreTrainedTokenizerFast")
    return Ours.from_pretrained(path)


def theirs(backend: Any, source: str, chat: list[dict[str, str]]) -> tuple[list[int], list[int]]:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    found = tokenizer.apply_chat_template(
        chat, chat_template=source, return_dict=True, return_assistant_tokens_mask=True
    )
    mask = found["assistant_masks"]
    # Of the tokens that one character is made of it counts the first alone, if a span ends there.
    offsets = found.encodings[0].offsets
    for i in range(1, len(mask)):
        mask[i] |= mask[i - 1] and offsets[i] == offsets[i - 1]
    return found["input_ids"], mask


@pytest.mark.parametrize("answer", TEMPLATES)
@pytest.mark.parametrize("kind", BACKENDS)
def test_what_is_marked_counts_as_transformers_counts_it(
    tmp_path: Path, kind: str, answer: str
) -> None:
    source = template(TEMPLATES[answer])
    tokenizer = ours(tmp_path, BACKENDS[kind](), source)
    for content in CONTENTS:
        ids, counted = encode_chat(tokenizer, chat_of(content))
        assert (ids, counted.tolist()) == theirs(BACKENDS[kind](), source, chat_of(content))
        assert 0 < counted.sum() < len(ids)


@pytest.mark.parametrize("content", [*CONTENTS, "   ", "he   ", " t"])
@pytest.mark.parametrize("answer", TEMPLATES)
def test_offsets_without_spaces_count_the_same(tmp_path: Path, answer: str, content: str) -> None:
    source = template(TEMPLATES[answer])
    trimming = ours(tmp_path, byte_level(trim=True), source)
    ids, counted = encode_chat(trimming, chat_of(content))
    assert (ids, counted.tolist()) == theirs(byte_level(), source, chat_of(content))


def test_a_chat_one_can_read(tmp_path: Path) -> None:
    tokenizer = ours(tmp_path, byte_level(), template(TEMPLATES["line break behind it"]))
    chat = chat_of("a<|end|>b")

    def said(chat: Chat | list[dict[str, str]]) -> str:
        ids, counted = encode_chat(tokenizer, chat)
        learnt = [i for i, flag in zip(ids, counted, strict=True) if flag]
        return tokenizer.decode(learnt, skip_special_tokens=False)

    assert said(chat) == "a<|end|>b<|end|>\nthe end<|end|>\n"
    assert said(Chat(chat, counted=[False, False, False, True])) == "the end<|end|>\n"
    # Without marks nothing says where the line break belongs: the token that ends it is the last.
    plain = TEMPLATES["line break behind it"].replace("generation", "if true", 1)
    put_tokenizer(
        tmp_path,
        byte_level(),
        chat_template=template(plain.replace("endgeneration", "endif")),
    )
    tokenizer = Ours.from_pretrained(tmp_path)
    assert said(chat) == "a<|end|>b<|end|>the end<|end|>"


def test_an_answer_of_which_nothing_is_marked_is_named(tmp_path: Path) -> None:
    source = template("{{ m['content'] }}{% generation %}{% endgeneration %}")
    with pytest.raises(NothingToLearn, match="holds no answer of the assistant"):
        encode_chat(ours(tmp_path, byte_level(), source), chat_of("he"))


@pytest.mark.parametrize(
    ("source", "marks"),
    [
        ("{%- generation -%}x{%+ endgeneration%}", True),
        ("{# {% generation %} marks answers\n{% endgeneration %} #}x", False),
        ("{{ 'generation' }}{% if generation %}{% endif %}", False),
    ],
)
def test_a_comment_marks_nothing(source: str, *, marks: bool) -> None:
    assert marks_answers(source) is marks
