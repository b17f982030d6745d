"""Records of the common formats: which of their columns is learnt, which tokens of it count."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from diy_core.data import DataError, prepare
from diy_core.data.chat_shapes import without_nulls
from diy_core.data.encoding import Encoder
from diy_core.data.records import Chat, Completion, columns_to_read, read_record
from diy_core.text.tokenizer import Tokenizer
from tests.tiny_checkpoints import put_tokenizer

TEMPLATE = (
    "{% if tools %}<tool>{{ tools | tojson }}{% endif %}"
    "{% for d in documents or [] %}[{{ d.text }}]{% endfor %}{{ style or '' }}"
    "{% for m in messages %}{{ '<|turn|>' + m.role + ':' + (m.content or '') }}"
    "{% for call in m.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}"
    "{{ '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|turn|>assistant:' }}{% endif %}"
)
MARKED = (
    "{% for m in messages %}<|turn|>{{ m.role }}:{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content }}<|end|>{% endgeneration %}{% else %}{{ m.content }}<|end|>{% endif %}"
    "{% endfor %}"
)
WITHOUT_SYSTEM = TEMPLATE.replace("in messages %}", "in messages if m.role != 'system' %}")
# Names as templates of models read them: plainly, with a default, in some records only.
BY_NAME = (
    "{% if date_string is not defined %}{% set date_string = '20' %}{% endif %}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ tool_choice }}{% endif %}"
    "{{ date_string }}" + TEMPLATE
)
USER = {"role": "user", "content": "the"}
ANSWER = {"role": "assistant", "content": "he 20"}
ASKED = "<|turn|>user:the<|end|><|turn|>assistant:"
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}
QUOTED = {"type": "function", "function": {"name": "f", "arguments": '{"x": "2"}'}}
TOOLS = "<tool>" + json.dumps([TOOL])


def model(path: Path, template: str = TEMPLATE) -> Path:
    path.mkdir()
    put_tokenizer(path, chat_template=template)
    return path


def encoded(path: Path, row: dict[str, Any], field: str | None = None) -> tuple[str, list[str]]:
    """The text of a record, and the pieces of it that count."""
    document, _ = read_record(row, field)
    ids, counted = Encoder(path).encode(document)
    tokenizer = Tokenizer.from_pretrained(path)
    flags = [1] * len(ids) if counted is None else counted.tolist()
    pieces: list[list[int]] = []
    for i, (token, flag) in enumerate(zip(ids.tolist(), flags, strict=True)):
        if flag and (not i or not flags[i - 1]):
            pieces.append([])
        if flag:
            pieces[-1].append(token)
    read = [tokenizer.decode(piece, skip_special_tokens=False) for piece in pieces]
    return tokenizer.decode(ids.tolist(), skip_special_tokens=False), read


@pytest.mark.parametrize(
    ("row", "text", "said"),
    [
        ({"text": "the"}, "the<|end|>", ["the<|end|>"]),
        ({"prompt": "the ", "completion": "he"}, "the he<|end|>", ["he<|end|>"]),
        ({"messages": [USER, ANSWER]}, ASKED + "he 20<|end|>", ["he 20<|end|>"]),
        ({"prompt": [USER], "completion": [ANSWER]}, ASKED + "he 20<|end|>", ["he 20<|end|>"]),
        (
            {"prompt": [USER, ANSWER, USER], "completion": [ANSWER]},
            (ASKED + "he 20<|end|>") * 2,
            ["he 20<|end|>"],
        ),
        (
            {"conversations": [{"from": "human", "value": "the"}, {"from": "gpt", "value": "he"}]},
            ASKED + "he<|end|>",
            ["he<|end|>"],
        ),
        (
            {"conversations": [USER, ANSWER], "system": "", "system_prompt": "20", "mask": "User"},
            "<|turn|>system:20<|end|>" + ASKED + "he 20<|end|>",
            ["he 20<|end|>"],
        ),
        (
            {"messages": [USER, ANSWER], "system_message": "20"},
            "<|turn|>system:20<|end|>" + ASKED + "he 20<|end|>",
            ["he 20<|end|>"],
        ),
        (
            {"messages": [USER, ANSWER], "tools": [TOOL], "functions": None},
            TOOLS + ASKED + "he 20<|end|>",
            ["he 20<|end|>"],
        ),
        (
            {"messages": [USER, ANSWER], "tools": json.dumps([TOOL])},
            TOOLS + ASKED + "he 20<|end|>",
            ["he 20<|end|>"],
        ),
        (
            {"messages": [USER, ANSWER], "tools": [json.dumps(TOOL)]},
            TOOLS + ASKED + "he 20<|end|>",
            ["he 20<|end|>"],
        ),
        (
            {"messages": [USER, ANSWER], "functions": [TOOL["function"]]},
            TOOLS + ASKED + "he 20<|end|>",
            ["he 20<|end|>"],
        ),
        (
            {"messages": [USER, ANSWER], "tools": [], "documents": [{"text": "20"}]},
            "[20]" + ASKED + "he 20<|end|>",
            ["he 20<|end|>"],
        ),
        (
            {
                "messages": [USER, ANSWER],
                "chat_template_kwargs": {"style": "terse ", "unknown": None, "other": []},
            },
            "terse " + ASKED + "he 20<|end|>",
            ["he 20<|end|>"],
        ),
        (
            {
                "conversations": [
                    {"from": "human", "value": "the"},
                    {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 2}}'},
                    {"from": "observation", "value": "20"},
                    {"from": "gpt", "value": "he"},
                ],
                "tools": json.dumps([TOOL]),
            },
            TOOLS
            + ASKED
            + '{"name": "f", "arguments": {"x": 2}}<|end|><|turn|>tool:20<|end|>'
            + "<|turn|>assistant:he<|end|>",
            ['{"name": "f", "arguments": {"x": 2}}<|end|>', "he<|end|>"],
        ),
    ],
)
def test_a_record_is_written_and_counted(
    tmp_path: Path, row: dict[str, Any], text: str, said: list[str]
) -> None:
    assert encoded(model(tmp_path / "model"), row) == (text, said)


@pytest.mark.parametrize("template", [TEMPLATE, MARKED])
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (({}, {}), ["he 20<|end|>", "he 20<|end|>"]),
        (({"weight": 0}, {"weight": 1}), ["he 20<|end|>"]),
        (({"weight": 0.0}, {}), ["he 20<|end|>"]),
        (({"train": False}, {"train": True}), ["he 20<|end|>"]),
        (({"training": True}, {"training": False}), ["he 20<|end|>"]),
        (({"loss": False}, {"loss": None}), ["he 20<|end|>"]),
        (({"loss_scale": 0.0}, {"loss_weight": 1}), ["he 20<|end|>"]),
        (({"weight": 0, "loss": False}, {}), ["he 20<|end|>"]),
        (({"train_on_turn": False}, {"trainable": True}), ["he 20<|end|>"]),
        (({"masked": True}, {"masked": False}), ["he 20<|end|>"]),
        (({"masked": 0, "weight": 1}, {"masked": 1, "weight": 0}), ["he 20<|end|>"]),
    ],
)
def test_an_answer_of_weight_0_is_written_and_not_learnt(
    tmp_path: Path, template: str, flags: tuple[dict[str, Any], ...], said: list[str]
) -> None:
    messages = [m for flag in flags for m in (USER, ANSWER | flag)]
    text, found = encoded(model(tmp_path / "model", template), {"messages": messages})
    assert text == (ASKED + "he 20<|end|>") * 2
    assert found == said


def test_the_answer_that_counts_is_the_one_that_is_marked(tmp_path: Path) -> None:
    first, second = {**ANSWER, "content": "he"}, {**ANSWER, "content": "20"}
    row = {"messages": [USER, {**first, "weight": 0}, USER, second]}
    for i, template in enumerate((TEMPLATE, MARKED)):
        assert encoded(model(tmp_path / f"{i}", template), row)[1] == ["20<|end|>"]


def test_arguments_in_a_text_go_to_a_template_that_takes_them(tmp_path: Path) -> None:
    path = model(tmp_path / "model", TEMPLATE.replace("function | tojson", "function.arguments"))
    row = {"messages": [USER, {"role": "assistant", "tool_calls": [QUOTED]}]}
    assert encoded(path, row)[1] == ['{"x": "2"}<|end|>']


def test_keys_of_messages_that_the_template_does_not_write_are_named(tmp_path: Path) -> None:
    template = TEMPLATE.replace("+ m.role +", "+ (m.name or m.role) +")
    path, file = model(tmp_path / "model", template), tmp_path / "chats.jsonl"
    named = {"messages": [USER | {"name": "ann", "id": 7, "mask": False}, ANSWER | {"id": 8}]}
    called = {"messages": [USER, ANSWER | {"tool_calls": [{"function": {"name": "f"}}]}]}
    rows = [named, called, {"messages": [USER | {"mood": ""}, ANSWER]}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = prepare(file, tmp_path / "out", tokenizer=str(path))
    assert data.report is not None
    assert data.report["columns"] == {"messages.id": 1, "messages.mask": 1}


@pytest.mark.parametrize("read", ["m.thinking", "m['reasoning_content']", "m | tojson"])
def test_reasoning_goes_to_a_template_that_writes_it(tmp_path: Path, read: str) -> None:
    template = TEMPLATE.replace("(m.content or '')", f"(m.content or '') + (({read}) or '')")
    row = {"messages": [USER, ANSWER | {"reasoning_content": "she"}]}
    text, (said,) = encoded(model(tmp_path / "model", template), row)
    assert said in text
    assert "she" in said


def test_flags_do_not_reach_the_template(tmp_path: Path) -> None:
    template = "{{ messages | tojson }}{% generation %}x<|end|>{% endgeneration %}"
    row = {"messages": [USER, ANSWER | {"weight": 1, "train": True, "name": "a"}]}
    text, _ = encoded(model(tmp_path / "model", template), row)
    assert json.loads(text.removesuffix("x<|end|>")) == [USER, ANSWER | {"name": "a"}]


CHAT = [USER, ANSWER]


@pytest.mark.parametrize(
    ("speaker", "role"),
    [
        ("human", "user"),
        ("chatgpt", "assistant"),
        ("bing", "assistant"),
        ("bard", "assistant"),
        ("bot", "assistant"),
        ("model", "assistant"),
        ("developer", "developer"),
        ("observation", "tool"),
        ("function_response", "tool"),
    ],
)
def test_each_speaker_has_a_role(speaker: str, role: str) -> None:
    document, _ = read_record({"conversations": [{"from": speaker, "value": "a"}]})
    assert isinstance(document, Chat)
    assert document.messages == [{"role": role, "content": "a"}]


@pytest.mark.parametrize(
    ("flag", "out", "in_"),
    [
        *((name, 0, 1) for name in ("weight", "loss_scale", "loss_weight")),
        *((name, False, True) for name in ("train", "training", "train_on_turn", "trainable")),
        ("loss", False, 1.0),
        *((name, 0, True) for name in ("compute_loss", "learn")),
        *((name, True, False) for name in ("masked", "is_masked", "ignore", "no_loss")),
        ("ignore_loss", 1, 0),
    ],
)
def test_a_flag_leaves_an_answer_out_and_is_no_part_of_it(flag: str, out: Any, in_: Any) -> None:
    turns = [USER, ANSWER | {flag: out}, USER, ANSWER | {flag: in_}]
    document, _ = read_record({"messages": turns})
    assert isinstance(document, Chat)
    assert document.counted == [True, False, True, True]
    assert document.messages == [USER, ANSWER, USER, ANSWER]


def test_several_calls_of_one_turn_are_one_message() -> None:
    calls = [{"name": name, "arguments": {}} for name in "fg"]
    made = [{"type": "function", "function": call} for call in calls]
    for value in (json.dumps(calls), calls):
        document, _ = read_record({"conversations": [{"from": "function_call", "value": value}]})
        assert isinstance(document, Chat)
        assert document.messages == [{"role": "assistant", "tool_calls": made}]


def test_a_text_that_is_no_text_is_passed_over_beside_a_chat() -> None:
    assert read_record({"text": 3, "messages": CHAT}) == (Chat(CHAT, [True, True]), ["text"])


def test_a_system_message_that_is_there_twice_is_one() -> None:
    system = {"role": "system", "content": "a"}
    document, _ = read_record({"messages": [system, *CHAT], "system": "a"})
    assert document == Chat([system, *CHAT], [True, True, True])


@pytest.mark.parametrize("empty", ["", " ", "[]", [], {}, None])
def test_what_is_empty_beside_a_chat_is_not_there(empty: Any) -> None:
    beside = {"tools": empty, "documents": empty, "functions": empty, "labels": empty}
    document, _ = read_record(
        {"messages": CHAT, "images": empty if empty != "[]" else "", **beside}
    )
    assert document == Chat(CHAT, [True, True])


def test_what_only_sounds_like_flags_or_tools_is_passed_over() -> None:
    """Measures, settings and names: words of a list, and none of what it holds."""
    beside = {
        "train_loss": [1.7, 2],
        "masks": "a",
        "loss": 1.7,
        "weights": [1, 1],
        "grad": [],
        "tool_choice": "auto",
        "parallel_tool_calls": False,
        "functions_used": ["f"],
        "plugins": [{"name": "f", "stars": 3}],
        "api_notes": "[1] see the docs",
        "training": 1,
    }
    document, others = read_record({"messages": CHAT, **beside})
    assert document == Chat(CHAT, [True, True])
    assert set(others) == set(beside)


def test_labels_of_a_chat_that_are_words_are_passed_over() -> None:
    found = read_record({"messages": CHAT, "labels": ["good"]})
    assert found == (Chat(CHAT, [True, True]), ["labels"])


def test_what_else_a_turn_holds_stays_with_it() -> None:
    turns = [
        {"from": "human", "value": "a", "name": "n"},
        {"from": "function_call", "value": {"name": "f", "arguments": {}}, "name": "n"},
    ]
    document, _ = read_record({"conversations": turns})
    assert isinstance(document, Chat)
    assert [message.pop("name") for message in document.messages] == ["n", "n"]
    assert [[*message] for message in document.messages] == [
        ["role", "content"],
        ["role", "tool_calls"],
    ]


def test_keys_without_a_value_go_at_any_depth() -> None:
    nested = {"a": None, "b": [{"c": None, "d": 0}, None], "e": {"f": None}}
    assert without_nulls(nested) == {"b": [{"d": 0}, None], "e": {}}


@pytest.mark.parametrize("name", ["rejected", "non_preferred_output", "completions"])
def test_a_table_for_another_kind_of_training_is_read_and_refused(name: str) -> None:
    assert columns_to_read(["id", name], None) == [name]
    with pytest.raises(ValueError, match=rf"\({name}\), which is not learnt here"):
        read_record({name: "a"})


def test_a_message_with_a_role_keeps_its_from() -> None:
    turn = {"role": "user", "from": "narrator", "content": "a"}
    document, _ = read_record({"messages": [turn]})
    assert isinstance(document, Chat)
    assert document.messages == [turn]


def test_a_column_that_is_named_and_not_there_is_not_replaced_by_text() -> None:
    with pytest.raises(ValueError, match="has no text in 'body'"):
        read_record({"text": "a"}, "body")
    document, _ = read_record({"text": "a", "messages": CHAT}, "body")
    assert isinstance(document, Chat)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"text": "a", "messages": CHAT}, "holds 'text' and 'messages', .*field='text'"),
        ({"messages": CHAT, "conversations": CHAT}, "holds 'messages' and 'conversations'"),
        ({"text": "a", "prompt": "a", "completion": "b"}, "holds 'text' and 'prompt'"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, r"preferences \(rejected\)"),
        ({"messages": CHAT, "rejected_response": "no"}, r"preferences \(rejected_response\)"),
        ({"prompt": "a", "completion": "b", "kto_tag": False}, r"preferences \(kto_tag\)"),
        ({"conversations": CHAT, "mask": "Assistant"}, "has mask 'Assistant' beside a chat"),
        ({"messages": CHAT, "system": "a", "system_prompt": "b"}, "another system message"),
        ({"messages": CHAT, "chosen": CHAT, "rejected": CHAT}, "holds preferences"),
        (
            {"input": {}, "preferred_output": CHAT, "non_preferred_output": CHAT},
            "holds preferences",
        ),
        ({"prompt": "a", "completion": "b", "label": True}, "preferences .*without label"),
        ({"prompt": "a", "completions": ["b"], "labels": [True]}, "stepwise supervision"),
        ({"instruction": "a", "input": "", "output": "b"}, "Alpaca's instruction and output"),
        (
            {"prompt": "a"},
            r"has no text in 'text' .*prompt \(str\): .*learn \(field='prompt'\), or ",
        ),
        ({"body": " "}, r"but body \(str\): write text, messages, or prompt and completion$"),
        ({}, "but nothing: write text, messages"),
        ({"messages": CHAT, "rejected": {"role": "user"}}, r"preferences \(rejected\)"),
        ({"messages": CHAT, "tools": "[" * 99999}, "holds tools as a text that is not JSON"),
        ({"prompt": CHAT, "completion": "b"}, "two texts or two lists, got list and str"),
        ({"n": 3}, r"but n \(int\): write text, messages, or prompt and completion$"),
        ({"prompt": "a", "completion": CHAT}, "two texts or two lists, got str and list"),
        ({"messages": CHAT, "images": ["a.png"]}, "holds images beside a chat"),
        ({"messages": CHAT, "weight": 0.5}, "has weight 0.5 beside a chat"),
        ({"messages": CHAT, "sample_weight": 2}, "has sample_weight 2 beside a chat"),
        ({"messages": [USER, ANSWER | {"loss_scale": 0.3}]}, "message 1 has loss_scale 0.3"),
        (
            {"messages": CHAT, "loss_weights": [0.0, 1.0]},
            r"loss_weights \[0.0, 1.0\] beside a chat",
        ),
        ({"messages": CHAT, "completion_mask": [0, 1]}, "completion_mask beside .*single tokens"),
        ({"conversations": CHAT, "assistant_masks": [0, 1]}, "assistant_masks beside a chat"),
        ({"messages": CHAT, "labels": [-100, 1]}, "labels beside a chat"),
        ({"prompt": "a", "completion": "b", "loss_mask": [True]}, "loss_mask beside a completion"),
        ({"prompt": "a", "completion": "b", "weight": 0.5}, "weight 0.5 beside a completion"),
        ({"prompt": "a", "completion": "b", "images": ["c"]}, "images beside a completion"),
        ({"prompt": "a", "completion": "b", "system": "c"}, "holds system beside .*are texts"),
        ({"prompt": "a", "completion": "b", "tools": [TOOL]}, "holds tools beside .*are texts"),
        ({"messages": CHAT, "label": True}, "a chat and label .*without label"),
        (
            {"prompt": CHAT, "completion": CHAT, "label": 0},
            r"a chat and label \(0\), .*preferences",
        ),
        (
            {"messages": CHAT, "reasoning_content": "b"},
            "reasoning_content beside a chat.* the mess",
        ),
        ({"prompt": "a", "completion": "b", "thinking": "c"}, "thinking beside a completion"),
        ({"messages": CHAT, "masked": True}, "has masked True beside a chat"),
        ({"messages": CHAT, "ignore": True}, "has ignore True beside a chat"),
        ({"text": "a", "learn": False}, "has learn False beside a text"),
        ({"messages": CHAT, "image_path": "a.png"}, "holds image_path beside a chat"),
        (
            {"prompt": "a", "completion": "b", "video_urls": ["c"]},
            "holds video_urls beside a completion",
        ),
        ({"messages": CHAT, "tool_list": [TOOL]}, "holds tool_list beside a chat.*from tools"),
        ({"messages": CHAT, "systemPrompt": "a"}, "holds systemPrompt beside .*from system: name"),
        ({"messages": CHAT, "history": CHAT}, "holds history beside a chat: put those turns"),
        ({"prompt": "a", "completion": "b", "preamble": "c"}, "holds preamble beside .* are texts"),
        ({"prompt": "a", "completion": "b", "suffix": "c"}, "holds suffix beside a prompt and a"),
        ({"question": "a", "answer": "b"}, "holds question and answer: call them prompt and compl"),
        ({"prompt": "a", "response": "b"}, "holds prompt and response: call them prompt and compl"),
        ({"title": "a", "dialogue": CHAT}, r"name the column to learn \(field='dialogue'\)"),
        (
            {"messages": CHAT, "tools": json.dumps([{"name": "a\0"}])},
            r"holds tools as a text that holds a NUL \(",
        ),
        (
            {"messages": CHAT, "available_tools": [TOOL]},
            "available_tools beside a chat.*from tools",
        ),
        ({"prompt": "a", "completion": "b", "xml_tools": ["c"]}, "holds xml_tools beside .* texts"),
        ({"prompt": "a", "completion": "b", "train": False}, "has train False beside a completion"),
        ({"text": "a", "weight": 0.5}, "has weight 0.5 beside a text"),
        ({"text": "a", "example_weight": 0}, "has example_weight 0 beside a text"),
        ({"text": "a", "sample_weight": "0.25"}, "has sample_weight 0.25 beside a text"),
        ({"text": "a", "loss_weights": [1, 0.5]}, r"has loss_weights \[1, 0.5\] beside a text"),
        ({"text": "a", "weight": math.nan}, "has weight nan beside a text"),
        ({"text": "a", "trainable": False}, "has trainable False beside a text"),
        ({"text": "a", "loss_mask": [0, 1]}, "has loss_mask beside a text"),
        ({"text": "a", "images": [{"path": "b.png"}]}, "holds images beside a text"),
        ({"messages": [USER, ANSWER | {"mask": True}]}, "message 1 has mask True"),
        ({"messages": [USER, ANSWER | {"masked": 1, "weight": 1}]}, "contradict each other"),
        ({"messages": CHAT, "tools": "no JSON"}, "holds tools as a text that is not JSON"),
        ({"messages": CHAT, "tools": {"name": "f"}}, "needs tools as a list of objects, got dict"),
        ({"messages": CHAT, "tools": [TOOL], "functions": [{}]}, "tools and functions: keep tools"),
        ({"messages": CHAT, "chat_template_kwargs": "[1]"}, "chat_template_kwargs as an object"),
        (
            {"messages": [{"role": "system", "content": "a"}, *CHAT], "system": "b"},
            "another system message",
        ),
        (
            {"messages": [USER, ANSWER | {"is_train": False}]},
            "has is_train False, .* call it weight",
        ),
        ({"messages": [USER, ANSWER | {"cal_loss": 0}]}, "message 1 has cal_loss 0, which seems"),
        ({"messages": [USER, ANSWER | {"turnMask": [0, 1]}]}, r"message 1 has turnMask \[0, 1\]"),
        ({"messages": [USER | {"train_here": 0.5}, ANSWER]}, "message 0 has train_here 0.5"),
        ({"messages": CHAT, "train_on_turn": [False]}, r"train_on_turn \[False\] beside a chat"),
        (
            {"messages": CHAT, "turn_loss": [0, 1]},
            r"turn_loss \[0, 1\] beside a chat.* weight of",
        ),
        (
            {"prompt": "a", "completion": "b", "supervised": [1]},
            "has supervised .* beside",
        ),
        ({"messages": CHAT, "tool_defs": [TOOL]}, "holds tool_defs beside a chat.*from tools"),
        (
            {"messages": CHAT, "availableFunctions": json.dumps([TOOL["function"]])},
            "holds availableFunctions beside a chat.*from tools",
        ),
        ({"messages": [USER, ANSWER | {"weight": 0.5}]}, "message 1 has weight 0.5"),
        ({"messages": [USER, ANSWER | {"train": "no"}]}, "message 1 has train 'no'"),
        ({"messages": [USER, ANSWER | {"train_detail": [{}]}]}, "message 1 has train_detail"),
        ({"messages": [USER, ANSWER | {"training_detail": [{}]}]}, "has training_detail"),
        ({"messages": [USER, ANSWER | {"loss_mask": [0, 1]}]}, "message 1 has loss_mask"),
        ({"messages": [USER, ANSWER | {"weight": 1, "loss": False}]}, "contradict each other"),
        ({"messages": [USER | {"weight": 1}, ANSWER]}, r"message 0 \(user\) is marked as one"),
        ({"conversations": [{"from": "gpt", "text": "a"}]}, r"'gpt' and has no value: .*'text'"),
        ({"conversations": [{"from": "narrator", "value": "a"}]}, "is from 'narrator'"),
        ({"conversations": [{"from": "function", "value": "a"}]}, "is from 'function'"),
        ({"conversations": [{"from": ["gpt"], "value": "a"}]}, r"is from \['gpt'\]"),
        ({"conversations": [{"from": "function_call", "value": "f()"}]}, "what is not JSON"),
        ({"conversations": [{"from": "function_call", "value": "{}"}]}, "its name and arguments"),
        ({"conversations": [{"from": "function_call", "value": "[3]"}]}, "arguments, got 3"),
        ({"messages": [USER, "hi"]}, "message 1 must be an object with role .*, got 'hi'"),
    ],
)
def test_a_record_with_another_or_no_one_meaning_is_refused(
    row: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        read_record(row)
    read = columns_to_read(row, None)  # of a table, which is refused as well
    with pytest.raises(ValueError):
        read_record({name: row[name] for name in read})


@pytest.mark.parametrize(
    ("template", "row", "words"),
    [
        (MARKED, {"messages": CHAT, "tools": [TOOL]}, "does not read tools"),
        (MARKED, {"messages": CHAT, "documents": [{}]}, "does not read documents"),
        (
            TEMPLATE,
            {"messages": CHAT, "chat_template_kwargs": {"enable_thinking": False}},
            "does not read enable_thinking",
        ),
        (
            TEMPLATE,
            {"messages": CHAT, "chat_template_kwargs": {"tools": [TOOL]}},
            "holds tools: it is a column of its own",
        ),
        (
            TEMPLATE,
            {"messages": CHAT, "chat_template_kwargs": {"add_generation_prompt": True}},
            "holds add_generation_prompt, which cannot vary",
        ),
        (TEMPLATE, {"messages": [USER, ANSWER | {"weight": 0}]}, "no answer that counts"),
        (TEMPLATE, {"prompt": CHAT, "completion": [USER]}, "no answer that counts"),
        (TEMPLATE, {"prompt": "a", "completion": ""}, "the completion is empty"),
        (
            TEMPLATE,
            {"messages": [USER, {"role": "assistant", "tool_calls": [QUOTED]}]},
            "arguments of a call in message 1 as a quoted text",
        ),
        (
            MARKED,
            {"messages": [USER, ANSWER | {"thinking": "20"}]},
            "does not write thinking of message 1",
        ),
        (
            BY_NAME,  # reads a name that has "thinking" in it
            {"messages": [USER, ANSWER | {"reasoning_content": "20"}]},
            "does not write reasoning_content of message 1",
        ),
        (
            MARKED,
            {"messages": [USER, ANSWER | {"tool_calls": [TOOL]}]},
            "does not write tool_calls of message 1",
        ),
        (
            TEMPLATE,
            {"messages": [{"role": "system", "content": "a", "tools": [TOOL]}, *CHAT]},
            "does not write tools of message 0",
        ),
        (
            TEMPLATE,
            {"messages": [USER | {"images": ["a.png"]}, ANSWER]},
            "does not write images of message 0",
        ),
        (
            "{% for m in messages %}{% if loop.last %}{% generation %}{{ m.content }}"
            "{% endgeneration %}{% endif %}{% endfor %}",
            {"messages": [USER, ANSWER | {"weight": 0}, USER, ANSWER]},
            "marks 1 answers in a chat that has 2",
        ),
        (
            WITHOUT_SYSTEM,
            {"messages": CHAT, "system_message": "20"},
            r"does not write content of message 0 \(system\)",
        ),
        (
            WITHOUT_SYSTEM.replace("system", "tool"),
            {"messages": [USER, {"role": "tool", "content": "20"}, ANSWER]},
            r"does not write content of message 1 \(tool\)",
        ),
    ],
)
def test_what_the_template_would_drop_is_refused(
    tmp_path: Path, template: str, row: dict[str, Any], words: str
) -> None:
    document, _ = read_record(row)
    with pytest.raises(ValueError, match=words):
        Encoder(model(tmp_path / "model", template)).encode(document)


@pytest.mark.parametrize(
    ("row", "field", "expected"),
    [
        ({"text": "a", "messages": CHAT}, "text", "a"),
        ({"text": "a", "body": "b"}, "body", "b"),
        ({"text": "a", "chosen": "b", "rejected": "c"}, "text", "a"),
        ({"text": " ", "prompt": "a", "completion": "b"}, None, Completion("a", "b")),
        ({"prompt": "a", "completion": "b"}, "text", Completion("a", "b")),
        ({"prompt": "a", "completion": "b"}, "completion", "b"),
        ({"prompt": "a", "completion": "b"}, "prompt", "a"),
        ({"messages": "a", "text": "b"}, None, "b"),
        ({"text": "a", "kto_tag": "x"}, None, "a"),
        ({"text": "a", "labels": ["x"], "loss_mask": []}, None, "a"),
        ({"instruction": "a", "output": "b", "text": "c"}, None, "c"),
        ({"prompt": "a", "prompt_id": "1", "text": "c"}, None, "c"),
        ({"text": ""}, None, ""),
        ({"text": "a", "rejected": 0, "label": True}, None, "a"),
        ({"text": "a", "rejected": False, "completions": []}, None, "a"),
        ({"text": "a", "weight": 1.0, "loss_weights": [1, 1], "train": True}, None, "a"),
        ({"text": "a", "weight": "12 kg", "loss": 2.3, "image": "b.png"}, None, "a"),
        ({"text": "a", "tools": [TOOL], "labels": [0, 3]}, None, "a"),
        ({"weight": "0.5", "text": "a"}, "weight", "0.5"),
    ],
)
def test_a_named_column_decides(row: dict[str, Any], field: str | None, expected: Any) -> None:
    document, passed_over = read_record(row, field)
    assert document == expected
    used = {"prompt", "completion"} if isinstance(expected, Completion) else {field or "text"}
    assert set(passed_over) == set(row) - used


def test_a_named_column_may_hold_a_chat(tmp_path: Path) -> None:
    row = {"text": "a", "dialog": CHAT, "tools": [TOOL], "score": 1, "nothing": None}
    document, passed_over = read_record(row, "dialog")
    assert document == read_record({"messages": CHAT, "tools": [TOOL]})[0]
    assert passed_over == ["text", "score"]


def test_bytes_learn_a_completion(tmp_path: Path) -> None:
    ids, counted = Encoder("bytes").encode(Completion("a", "é"))
    assert ids.tolist() == [97, *"é".encode(), 256]
    assert counted is not None
    assert counted.tolist() == [0, 1, 1, 1]


def write_table(file: Path, rows: list[dict[str, Any]]) -> Path:
    if file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return file


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    ("column", "words"),
    [
        ({"enable_thinking": False}, r'give it as {"chat_template_kwargs": {"enable_thinking": '),
        ({"tool_choice": "auto"}, "holds tool_choice beside a chat, which the chat template reads"),
        ({"date_string": "20"}, "holds date_string beside a chat"),
        ({"add_generation_prompt": True}, "columns are not given to it: remove the column$"),
        ({"weight": 0.5}, "has weight 0.5 beside a chat"),
        ({"custom_tools": json.dumps([TOOL])}, "holds custom_tools beside a chat"),
    ],
)
def test_a_column_that_carries_meaning_is_refused_where_a_record_has_it(
    tmp_path: Path, kind: str, column: dict[str, Any], words: str
) -> None:
    path = model(tmp_path / "model", BY_NAME)
    [name] = column
    rows: list[dict[str, Any]] = [{"messages": CHAT, name: None} for _ in range(3)]
    file = write_table(tmp_path / f"a.{kind}", rows)
    assert prepare(file, tmp_path / "out", tokenizer=path).report is not None  # nothing is said
    rows[1] |= column
    where = "row 2" if kind == "parquet" else "line 2"
    with pytest.raises(DataError, match=rf"a\.{kind}, {where}: .*{words}"):
        prepare(write_table(file, rows), tmp_path / "other", tokenizer=path)


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_column_that_no_template_reads_is_named(tmp_path: Path, kind: str) -> None:
    one: dict[str, Any] = {"messages": CHAT, "enable_thinking": False, "source": "web"}
    rows = [one, {**one, "source": None}]
    file = write_table(tmp_path / f"a.{kind}", rows)
    data = prepare(file, tmp_path / "out", tokenizer=model(tmp_path / "model"))
    assert data.report is not None
    assert data.report["columns"].keys() == {"enable_thinking", "source"}


def test_a_column_that_the_template_for_tools_alone_reads_is_refused(tmp_path: Path) -> None:
    path = model(tmp_path / "model")
    put_tokenizer(path, chat_template=None)
    (path / "chat_template.jinja").write_text(TEMPLATE)
    (path / "additional_chat_templates").mkdir()
    (path / "additional_chat_templates" / "tool_use.jinja").write_text(BY_NAME)
    file = write_table(tmp_path / "a.jsonl", [{"messages": CHAT, "tool_choice": "auto"}])
    with pytest.raises(DataError, match="holds tool_choice beside a chat"):
        prepare(file, tmp_path / "out", tokenizer=path)


def test_what_the_template_reads_does_not_matter_to_a_text(tmp_path: Path) -> None:
    file = write_table(tmp_path / "a.jsonl", [{"text": "the", "enable_thinking": False}])
    data = prepare(file, tmp_path / "out", tokenizer=model(tmp_path / "model", BY_NAME))
    assert data.report is not None
    assert data.report["columns"] == {"enable_thinking": 1}


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_both_kinds_of_file_say_the_same(tmp_path: Path, kind: str) -> None:
    path = model(tmp_path / "model")
    rows: list[dict[str, Any]] = [
        {"messages": [USER, ANSWER | {"weight": 1}], "tools": json.dumps([TOOL]), "id": 1},
        {"messages": [USER, ANSWER | {"weight": 0}, USER, ANSWER], "tools": None, "id": 2},
    ]
    file = write_table(tmp_path / f"a.{kind}", rows)
    data = prepare(file, tmp_path / "out", tokenizer=path)
    assert data.counted is not None
    text = Tokenizer.from_pretrained(path).decode(data.tokens, skip_special_tokens=False)
    both = ASKED + "he 20<|end|>"
    assert text in (TOOLS + both + both * 2, both * 2 + TOOLS + both)
    assert sum(data.counted) == 2 * len(Tokenizer.from_pretrained(path).encode("he 20<|end|>"))


def test_a_table_without_a_document_lists_its_columns(tmp_path: Path) -> None:
    rows = [{"content": "a", "label": 1, "weight": 2.0}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"has no column 'text' .*content, label, weight"):
        prepare(tmp_path / "a.parquet", tmp_path / "out", tokenizer="bytes")


def test_an_error_names_its_line(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "a"}\n{"text": "a", "messages": [{}]}\n')
    with pytest.raises(DataError, match=r"a\.jsonl, line 2: holds 'text' and 'messages'"):
        prepare(file, tmp_path / "out", tokenizer="bytes")


@pytest.mark.parametrize("wanted", [None, "messages"])
def test_a_chat_that_is_json_in_a_text_is_a_chat(wanted: str | None) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0}]
    row = {"messages": json.dumps(turns)}
    assert read_record(row, wanted) == read_record({"messages": turns}, wanted)
    shared = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    document, _ = read_record({"conversations": json.dumps(shared)})
    assert isinstance(document, Chat)
    assert [m["content"] for m in document.messages] == ["a", "b"]


IN_COLUMNS = {key: [turn[key] for turn in CHAT] for key in ("role", "content")}
EACH_AS_JSON = [json.dumps(turn) for turn in CHAT]


@pytest.mark.parametrize("name", ["messages", "conversations"])
@pytest.mark.parametrize(
    ("value", "what"),
    [
        (str(CHAT), "a text that Python's str() wrote"),
        (str(CHAT[0]), "a text that Python's str() wrote"),
        (EACH_AS_JSON, "a list of texts, one for each turn"),
        ([str(turn) for turn in CHAT], "a list of texts, one for each turn"),
        (json.dumps(EACH_AS_JSON), "a list of texts, one for each turn"),
        (json.dumps(json.dumps(CHAT)), "JSON within JSON"),
        ({"messages": CHAT}, "an object with the turns inside"),
        (json.dumps({"messages": CHAT}), "an object with the turns inside"),
        (CHAT[0], "an object, a single turn"),
        ("\n".join(EACH_AS_JSON), "objects in a text that is not a JSON list"),
    ],
)
def test_a_chat_in_another_shape_is_refused_by_name(name: str, value: Any, what: str) -> None:
    for field in (None, name):
        with pytest.raises(ValueError) as error:
            read_record({name: value}, field)
        assert str(error.value).startswith(f"holds {name} as {what}")
        assert "write it as a list of objects with role and content" in str(error.value)
    assert read_record({name: value, "text": "the"}, "text")[0] == "the"


def test_a_prompt_and_a_completion_as_json_are_two_stretches_of_a_chat() -> None:
    wanted = read_record({"prompt": CHAT[:1], "completion": CHAT[1:]})
    as_json = {"prompt": json.dumps(CHAT[:1]), "completion": json.dumps(CHAT[1:])}
    assert read_record(as_json) == wanted
    alone = as_json | {"completion": "the"}
    assert read_record(alone)[0] == Completion(**alone)
    for name in as_json:
        with pytest.raises(ValueError, match=f"holds {name} as a text that Python's str"):
            read_record({"prompt": "the", "completion": "the"} | {name: str(CHAT[:1])})


def test_a_text_that_only_begins_like_a_chat_is_a_text() -> None:
    for text in ("[the] 20", "{'a': 1}", '"the"', "[", "{}", "user: the"):
        assert read_record({"messages": text}, "messages")[0] == text


def test_a_chat_whose_turns_stand_in_columns_is_a_chat() -> None:
    assert read_record({"messages": json.dumps(IN_COLUMNS)}) == read_record({"messages": CHAT})
    columns = {key: [turn[key] for turn in CHAT] for key in ("role", "content")}
    assert read_record({"messages": columns | {"name": None}}) == read_record({"messages": CHAT})
    for odd in ({"role": ["user"], "content": []}, {"content": "a"}, {}):
        with pytest.raises(ValueError, match="no list in 'messages'"):
            read_record({"messages": odd})


@pytest.mark.parametrize("text", ["[a note] in brackets", "[1, 2]", "[]"])
def test_a_text_that_begins_with_a_bracket_stays_a_text(text: str) -> None:
    assert read_record({"messages": text}, "messages")[0] == text


@pytest.mark.parametrize("out", [0, False, 0.0])
def test_a_loss_mask_of_one_number_is_a_flag(out: Any) -> None:
    chat, _ = read_record({"messages": [USER, ANSWER | {"loss_mask": out}, USER, ANSWER]})
    assert isinstance(chat, Chat)
    assert chat.counted == [True, False, True, True]
    assert chat.messages[1] == ANSWER
    learnt, _ = read_record({"messages": [USER, ANSWER | {"loss_mask": 1}]})
    assert isinstance(learnt, Chat)
    assert learnt.counted == [True, True]
    with pytest.raises(ValueError, match="has loss_mask False beside a chat"):
        read_record({"messages": [USER, ANSWER], "loss_mask": False})


CALL = {"name": "f", "arguments": {"a": 1}}


@pytest.mark.parametrize(
    ("key", "value"),
    [("tool_calls", [{"type": "function", "function": CALL}]), ("function_call", CALL)],
)
def test_calls_that_are_json_in_a_text_are_calls(key: str, value: Any) -> None:
    given = {"role": "assistant", "content": "", key: json.dumps(value)}
    chat, _ = read_record({"messages": [USER, given, ANSWER]})
    assert isinstance(chat, Chat)
    assert chat.messages[1] == given | {key: value}
    for nothing in ("", " ", "null", json.dumps(type(value)())):
        chat, _ = read_record({"messages": [USER, ANSWER | {key: nothing}]})
        assert isinstance(chat, Chat)
        assert not chat.messages[1][key]
    with pytest.raises(ValueError, match=f"message 1 has {key} as a text that is not JSON"):
        read_record({"messages": [USER, ANSWER | {key: "call f"}]})
    with pytest.raises(ValueError, match=f"message 1 has {key} as a text, and it must be"):
        read_record({"messages": [USER, ANSWER | {key: "3"}]})
