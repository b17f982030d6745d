"""What of a chat is counted, against transformers' own mask of a template that marks answers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from transformers import AutoTokenizer

from diy_core.data import Batches, DataError, TokenData, prepare
from diy_core.data.chats import encode_chat
from diy_core.text.tokenizer import Tokenizer
from tests.tiny_checkpoints import put_tokenizer

CHATS = [
    [
        {"role": "user", "content": "What is 2 + 2?"},
        {"role": "assistant", "content": "4"},
    ],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello\n"},
        {"role": "assistant", "content": "\n\n Hi there, 你好!  \n"},
        {"role": "user", "content": "And <|im_end|> now?"},
        {"role": "assistant", "content": ""},
        {"role": "assistant", "content": "def f(x):\n\treturn x\n\n"},
        {"role": "user", "content": "Bye"},
    ],
]
# SmolLM2's template, with the answers marked by hand.
MARKED = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n' }}{% endif %}\n"
    "    {{- '<|im_start|>' + message['role'] + '\n' }}\n"
    "    {%- if message['role'] == 'assistant' %}\n"
    "        {%- generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration -%}\n"
    "        {{ '\n' }}\n"
    "    {%- else %}{{ message['content'] + '<|im_end|>' + '\n'}}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.mark.model
@pytest.mark.parametrize("chat", CHATS)
def test_smollm2_counts_what_transformers_counts(
    smollm2: Path, tmp_path: Path, chat: list[dict[str, str]]
) -> None:
    theirs = AutoTokenizer.from_pretrained(smollm2)
    expected = theirs.apply_chat_template(
        chat, chat_template=MARKED, return_assistant_tokens_mask=True, return_dict=True
    )
    plain = Tokenizer.from_pretrained(smollm2)
    assert "generation %}" not in (plain.chat_template or "")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(smollm2 / name, tmp_path)
    (tmp_path / "chat_template.jinja").write_text(MARKED)
    for tokenizer in (plain, Tokenizer.from_pretrained(tmp_path)):
        ids, counted = encode_chat(tokenizer, chat)
        assert ids == expected["input_ids"]
        assert counted.tolist() == expected["assistant_masks"]


@pytest.mark.model
def test_a_smollm2_chat_one_can_read(smollm2: Path) -> None:
    tokenizer = Tokenizer.from_pretrained(smollm2)
    ids, counted = encode_chat(tokenizer, CHATS[1])
    runs = np.split(np.array(ids), np.flatnonzero(np.diff(counted)) + 1)
    said = [tokenizer.decode(run, skip_special_tokens=False) for run in runs][1::2]
    # The line break behind "assistant" shares a token with the two that the answer begins with.
    assert said == [
        "\n\n\n Hi there, 你好!  \n<|im_end|>",
        "<|im_end|>",
        "def f(x):\n\treturn x\n\n<|im_end|>",
    ]


SIMPLE = (
    "{% for m in messages %}{{ '<|turn|>' + m['role'] + ':' + m['content'] + '<|end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|turn|>assistant:' }}{% endif %}"
)
FORGETFUL = (  # writes only the last answer in full
    "{% for m in messages %}{{ m['role'] + ':' + (m['content'] if loop.last else '...') + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)
CHAT = [{"role": "user", "content": "the"}, {"role": "assistant", "content": "he the"}]


def directory(path: Path, template: str | None = SIMPLE) -> Path:
    path.mkdir()
    put_tokenizer(path, **({"chat_template": template} if template else {}))
    return path


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_chats_and_texts_stand_in_one_file(tmp_path: Path, kind: str) -> None:
    model = directory(tmp_path / "model")
    rows: list[dict[str, Any]] = [{"messages": CHAT}, {"text": "he the"}, {"messages": CHAT * 2}]
    source = tmp_path / f"a.{kind}"
    if kind == "jsonl":
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        columns = {name: [row.get(name) for row in rows] for name in ("messages", "text")}
        pyarrow.parquet.write_table(pyarrow.table(columns), source)
    data = prepare(source, tmp_path / "out", tokenizer=model, validation=0.3)
    tokenizer = Tokenizer.from_pretrained(model)
    answers, everything = [], []
    for part in (data, TokenData(data.path / "validation")):
        assert part.counted is not None
        starts = [0, *part.ends[:-1]]
        for start, end in zip(starts, part.ends, strict=True):
            ids, counted = part.tokens[start:end], part.counted[start:end]
            everything.append(tokenizer.decode(ids, skip_special_tokens=False))
            answers.append(tokenizer.decode(ids[counted == 1], skip_special_tokens=False))
        labels = [b["labels"] for b in Batches(part, batch_size=1, sequence_length=64, seed=None)]
        assert sum((each != -100).sum() for each in labels) == part.description["counted"]
    chat = "<|turn|>user:the<|end|>\n<|turn|>assistant:he the<|end|>\n"
    assert sorted(everything) == sorted([chat, "he the<|end|>", chat * 2])
    said = "he the<|end|>"
    assert sorted(answers) == sorted([said, said, said * 2])


def test_without_chats_there_is_no_mask(tmp_path: Path) -> None:
    data = prepare("builtin:pydoc", tmp_path / "out", tokenizer="bytes")
    assert data.counted is None
    assert not (tmp_path / "out" / "counted.bin").exists()
    assert data.description["counted"] == data.tokens.size - len(data)


@pytest.mark.parametrize("lines", [1, 2, 6, 7])
def test_chats_without_an_answer_are_named_together(tmp_path: Path, lines: int) -> None:
    model = directory(tmp_path / "model", SIMPLE)
    rows = [{"messages": CHAT[: 1 + (i >= lines)]} for i in range(10)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=r"a\.jsonl, line 1: a chat of the roles user ") as caught:
        prepare(tmp_path / "a.jsonl", tmp_path / "out", tokenizer=model, workers=1)
    said = str(caught.value).partition("give it an answer")[2].replace(f"{tmp_path}/", "")
    named = "; ".join(f"a.jsonl, line {i}" for i in range(2, min(lines, 6) + 1))
    more = "; ..." if lines > 6 else ""
    same = f". The same is so of {lines - 1} more that were read: {named}{more}"
    assert said == (same if lines > 1 else "")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("template", "chat", "message"),
    [
        (
            SIMPLE,
            CHAT[:1],
            "of the roles user holds no answer of the assistant, so there is nothing to learn from "
            "it: remove it, or give it an answer$",
        ),
        (SIMPLE, CHAT[1:], "begins with the assistant"),
        (SIMPLE, [{"role": "user"}], "message 0 needs content"),
        (SIMPLE, ["hello"], "message 0 must be an object"),
        (FORGETFUL, CHAT * 2, "does not write message 1 at the end as"),
        (None, CHAT, "has no chat template"),
        (
            "{% for m in messages %}{% generation %}{{ m['content'] }}{% endgeneration %}"
            "{% endfor %}",
            [{"role": "assistant", "content": "\ue0f0"}],
            r"holds U\+E0F0",
        ),
    ],
)
def test_a_chat_that_cannot_be_masked_is_named(
    tmp_path: Path, template: str | None, chat: list[Any], message: str
) -> None:
    model = directory(tmp_path / "model", template)
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in ({"text": "x"}, {"messages": chat}))
    )
    with pytest.raises(DataError, match=f"a.jsonl, line 2: .*{message}"):
        prepare(tmp_path / "a.jsonl", tmp_path / "out", tokenizer=model)
