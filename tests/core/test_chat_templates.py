"""Chat templates in the shapes that models have, against transformers' apply_chat_template."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from diy_core.errors import CheckpointError
from diy_core.text.chat.template import render
from diy_core.text.chat.templates import write_chat_templates
from diy_core.text.tokenizer import Tokenizer
from tests.tiny_checkpoints import put_tokenizer

ROOT = Path(__file__).parents[2]
TEMPLATES = sorted((Path(__file__).parent / "chat_templates").glob("*.jinja"))
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather at a place, in °C & wind",
        "parameters": {
            "type": "object",
            "properties": {
                "place": {"type": "string", "description": "such as 'København'"},
                "days": {"type": ["integer", "null"]},
            },
            "required": ["place"],
        },
    },
}
CALL = {
    "id": "abcdefghi",
    "type": "function",
    "function": {"name": "get_weather", "arguments": {"place": "Zürich <b>", "days": None}},
}
PLAIN: list[dict[str, Any]] = [
    {"role": "system", "content": " Be brief. "},
    {"role": "user", "content": "What is 2 + 2? 你好"},
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\n 4\n"},
    {"role": "user", "content": "And <b> & 'c'?\n"},
]
CONVERSATIONS: dict[str, dict[str, Any]] = {
    "plain": {"messages": PLAIN},
    "prompt": {"messages": PLAIN, "add_generation_prompt": True},
    "thinking": {
        "messages": [*PLAIN, {"role": "assistant", "content": "9", "reasoning": "3 * 3"}],
        "enable_thinking": False,
    },
    "tools": {"messages": PLAIN[1:], "tools": [WEATHER], "add_generation_prompt": True},
    "no tools": {"messages": PLAIN[1:], "tools": []},
    "calls": {
        "messages": [
            PLAIN[1],
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {
                "role": "tool",
                "name": "get_weather",
                "tool_call_id": "abcdefghi",
                "content": '{"t": 3}',
            },
            {"role": "assistant", "content": "Cold."},
        ],
        "tools": [WEATHER],
        "date_string": "1 May 2025",
    },
    "result as an object": {
        "messages": [
            PLAIN[1],
            {"role": "assistant", "tool_calls": [CALL]},
            {"role": "tool", "name": "f", "tool_call_id": "1", "content": {"t": [3, None]}},
        ],
        "tools": [WEATHER],
    },
    "result as a list": {
        "messages": [{"role": "tool", "name": "f", "tool_call_id": "1", "content": [1, 2]}],
    },
    "documents": {
        "messages": PLAIN[1:2],
        "documents": [{"title": "Bergen", "text": "Regn «hver» dag"}],
    },
    "parts": {
        "messages": [
            {"role": "system", "content": [{"type": "text", "text": "Be brief. "}]},
            {
                "role": "user",
                "content": [{"type": "text", "text": "What?"}, {"type": "text", "text": "Now"}],
            },
        ],
    },
    "an image": {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "What?"}, {"type": "image"}]},
        ],
    },
    "continued": {
        "messages": [*PLAIN, {"role": "assistant", "content": "I think "}],
        "continue_final_message": True,
    },
    "continued reasoning": {
        "messages": [*PLAIN, {"role": "assistant", "content": "", "thinking": "I think"}],
        "continue_final_message": "thinking",
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    put_tokenizer(path)
    return path


@pytest.fixture(scope="module")
def ours(folder: Path) -> Tokenizer:
    return Tokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder)


def outcome(call: Any) -> str | Exception:
    try:
        return str(call())
    except Exception as error:  # a template's errors are of every kind
        return error


@pytest.mark.parametrize("file", TEMPLATES, ids=lambda file: file.stem)
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_the_text_is_that_of_transformers(
    ours: Tokenizer, theirs: Any, file: Path, name: str
) -> None:
    given = {"chat_template": file.read_text(), **CONVERSATIONS[name]}
    messages = given.pop("messages")
    expected = outcome(lambda: theirs.apply_chat_template(messages, tokenize=False, **given))
    options = {"add_generation_prompt": False} | given
    found = outcome(lambda: ours.chat(messages, **options))
    if isinstance(expected, Exception) or name in REFUSED.get(file.stem, ()):
        assert isinstance(found, ValueError)
    else:
        assert found == expected


# What transformers writes as Python shows it, or does not write at all.
REFUSED = {
    "rag": ("parts", "an image"),
    "reasoning": ("parts", "an image", "result as an object", "result as a list"),
    "brackets": ("result as an object",),
}


def test_most_conversations_are_written(ours: Tokenizer) -> None:
    """A test of errors alone would show nothing."""
    written = 0
    for file in TEMPLATES:
        for given in CONVERSATIONS.values():
            with contextlib.suppress(ValueError):
                ours.chat(chat_template=file.read_text(), **given)
                written += 1
    assert written > 0.6 * len(TEMPLATES) * len(CONVERSATIONS)


@pytest.mark.parametrize("name", ["reasoning_content", "thinking", "reasoning"])
@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m.thinking }}|{{ m.reasoning_content }}|{{ m.reasoning }};"
        "{% endfor %}",
        "{{ messages | tojson }}",
        "{{ dict(a=1) | tojson }}{{ dict.fromkeys('ab', 2) }}{{ dict.keys is defined }}",
        "{% set ns = namespace(self=1, n=2) %}{% set ns.n = ns.n + ns.self %}{{ ns.n }}",
        "{% set ns = namespace(_hidden=1) %}",
        "{% set ns = namespace() %}{% set ns._hidden = 1 %}",
        "{{ messages[0].items() | list }}{{ style }}{{ (1, 2) | tojson }}",
    ],
)
def test_what_a_template_is_given_is_that_of_transformers(
    ours: Tokenizer, theirs: Any, template: str, name: str
) -> None:
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "", name: "hm"}]
    style = {"a": [np.float64(1.5), np.int64(2), np.bool_(True), (True, None)]}
    options = {"chat_template": template, "style": style}
    expected = outcome(lambda: theirs.apply_chat_template(messages, tokenize=False, **options))
    found = outcome(lambda: ours.chat(messages, False, **options))
    if isinstance(expected, Exception):
        assert isinstance(found, ValueError)
    else:
        assert found == expected


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"bos_token": None},
        {"extra_special_tokens": {"image_token": "<|turn|>"}},
        {"eot_token": "<|turn|>", "additional_special_tokens": ["<tool>"]},
        {"mask_token": {"content": "<|turn|>", "__type": "AddedToken", "special": True}},
    ],
)
def test_special_tokens_have_the_names_that_transformers_gives_them(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    names = ["bos", "eos", "unk", "pad", "sep", "cls", "mask", "eot", "image"]
    template = "|".join(f"{{{{ {name}_token }}}}" for name in names)
    put_tokenizer(tmp_path, chat_template=template, **settings)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    expected = theirs.apply_chat_template(CHAT, tokenize=False)
    assert Tokenizer.from_pretrained(tmp_path).chat(CHAT) == expected
    assert "<|end|>" in expected


# Named templates


BY_FIRST = "{% for m in messages %}{{ m.content }}{% endfor %}"
NAMED = {
    "default": "default " + BY_FIRST,
    "tool_use": "tool_use {{ tools | tojson }}" + BY_FIRST,
    "rag": "rag {{ documents }}" + BY_FIRST,
}
CHAT = [{"role": "user", "content": "hi"}]


def save(path: Path, form: str, templates: dict[str, str]) -> Path:
    """A tokenizer whose templates are stored in one of the forms there are."""
    path.mkdir()
    listed = [{"name": name, "template": text} for name, text in templates.items()]
    entries = {"list": {"chat_template": listed}, "object": {"chat_template": templates}}
    put_tokenizer(path, **entries.get(form, {}))
    if form == "files":
        for name, text in templates.items():
            file = path / "additional_chat_templates" / f"{name}.jinja"
            if name == "default":
                file = path / "chat_template.jinja"
            file.parent.mkdir(exist_ok=True)
            file.write_text(text)
    return path


FORMS = ["list", "object", "files"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tools": [WEATHER]},
        {"tools": []},
        {"documents": [{"title": "a", "text": "b"}]},
        {"chat_template": "rag"},
        {"chat_template": "rag", "tools": [WEATHER]},
        {"chat_template": "default", "tools": [WEATHER]},
        {"chat_template": "own {{ messages[0].content }}", "tools": [WEATHER]},
    ],
)
def test_a_named_template_is_chosen_as_transformers_chooses(
    tmp_path: Path, form: str, options: dict[str, Any]
) -> None:
    path = save(tmp_path / "model", form, NAMED)
    theirs = AutoTokenizer.from_pretrained(path)
    expected = theirs.apply_chat_template(CHAT, tokenize=False, **options)
    ours = Tokenizer.from_pretrained(path)
    assert ours.chat(CHAT, False, **options) == expected
    assert ours.chat_templates == NAMED
    assert ours.chat_template == NAMED["default"]
    ids = theirs.apply_chat_template(CHAT, **options)["input_ids"]
    assert ours.encode_chat(CHAT, False, **options) == ids


@pytest.mark.parametrize("form", FORMS)
def test_without_a_default_the_names_are_said(tmp_path: Path, form: str) -> None:
    named = {name: text for name, text in NAMED.items() if name != "default"}
    ours = Tokenizer.from_pretrained(save(tmp_path / "model", form, named))
    with pytest.raises(ValueError, match="none is the default: choose one of 'rag', 'tool_use'"):
        ours.chat(CHAT)
    assert ours.chat_template is None
    assert ours.chat(CHAT, tools=[]).startswith("tool_use []")
    assert ours.chat(CHAT, chat_template="rag") == "rag Nonehi"


def test_files_win_over_the_settings_whatever_their_names(tmp_path: Path) -> None:
    path = save(tmp_path / "model", "list", NAMED)
    (path / "additional_chat_templates").mkdir()
    (path / "additional_chat_templates/rag.jinja").write_text("a file\n")
    assert AutoTokenizer.from_pretrained(path).chat_template == {"rag": "a file\n"}
    assert Tokenizer.from_pretrained(path).chat_templates == {"rag": "a file\n"}


def test_the_file_of_older_processors_is_the_last_resort(tmp_path: Path) -> None:
    path = save(tmp_path / "model", "none", {})
    (path / "chat_template.json").write_text(json.dumps({"chat_template": "old " + BY_FIRST}))
    assert Tokenizer.from_pretrained(path).chat(CHAT) == "old hi"
    put_tokenizer(path, chat_template=None)
    assert Tokenizer.from_pretrained(path).chat(CHAT) == "old hi"
    put_tokenizer(path, chat_template="new " + BY_FIRST)
    assert Tokenizer.from_pretrained(path).chat(CHAT) == "new hi"


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (5, "'default' must be a string, got int"),
        ([{"name": "rag", "template": None}], "'rag' must be a string, got NoneType"),
        ([{"name": "rag"}], "'rag' must be a string, got NoneType"),
        (["a"], "must list objects with name and template"),
        ({"a": ["b"]}, "'a' must be a string, got list"),
    ],
)
def test_what_is_no_template_is_named(tmp_path: Path, template: Any, words: str) -> None:
    put_tokenizer(tmp_path, chat_template=template)
    with pytest.raises(CheckpointError, match=rf"tokenizer_config.json: .*{words}"):
        Tokenizer.from_pretrained(tmp_path)


def test_a_template_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    put_tokenizer(tmp_path)
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja: is not UTF-8"):
        Tokenizer.from_pretrained(tmp_path)


# What a chat is given


def f(place: str) -> None:
    """A tool."""


class Tool:
    pass


NESTED: Any = []
for _ in range(sys.getrecursionlimit()):
    NESTED = [NESTED]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tools": [WEATHER, f]}, "tool 1 is the function f: give its JSON schema"),
        ({"tools": ["f"]}, "tool 0 must be an object"),
        ({"tools": WEATHER}, "tools must be a list of JSON schemas, got dict"),
        ({"tools": "f"}, "tools must be a list of JSON schemas, got str"),
        ({"tools": [{"x": Tool()}]}, "tool 0 holds Tool, which is not JSON serializable"),
        ({"documents": ["a"]}, "documents must be a list of objects"),
        ({"documents": {"title": "a"}}, "documents must be a list of objects"),
        *(({"documents": value}, "documents must be a list of objects") for value in ("", {}, 5)),
        (
            {"chat_template": "tools"},
            "'tools'\\) is neither a Jinja template .* has 'default', 'rag', 'tool",
        ),
        ({"chat_template": ""}, "''\\) is neither a Jinja template"),
        ({"tokenize": False}, "tokenize is an argument of transformers' apply_chat_template"),
        ({"padding": True}, "padding is an argument"),
        ({"style": Tool()}, "style holds Tool"),
        ({"style": NESTED}, "nested too deeply"),
        ({"add_generation_prompt": True, "continue_final_message": True}, "choose one"),
        ({"continue_final_message": "thinking"}, "the last message has no thinking"),
        ({"continue_final_message": "role"}, "'default' .*does not read role|does not read role"),
    ],
)
def test_what_would_have_no_effect_is_refused(
    tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    ours = Tokenizer.from_pretrained(save(tmp_path / "model", "list", NAMED))
    with pytest.raises(ValueError, match=words):
        ours.chat(CHAT, **options)


@pytest.mark.parametrize("name", ["../a", "..\\a"])
def test_no_template_is_written_outside_of_the_directory(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="is not a name of a chat template"):
        write_chat_templates(tmp_path, {name: "x"})


def test_a_message_that_the_template_changes_cannot_go_on(ours: Tokenizer) -> None:
    with pytest.raises(ValueError, match="does not write the last message as it stands"):
        ours.chat(
            CHAT, chat_template="{{ messages[0].content | upper }}", continue_final_message=True
        )
    with pytest.raises(ValueError, match="does not write the last message as it stands"):
        ours.chat(CHAT, chat_template="{{ messages[0].content[:2] }}", continue_final_message=True)


def test_of_a_message_that_is_written_twice_the_second_goes_on(
    ours: Tokenizer, theirs: Any
) -> None:
    template = "{{ messages[0].content }}|{{ messages[0].content }}</s>"
    given: dict[str, Any] = {"chat_template": template, "continue_final_message": True}
    expected = theirs.apply_chat_template(CHAT, tokenize=False, **given)
    assert ours.chat(CHAT, False, **given) == expected
    assert expected.endswith("|hi")


def test_a_content_without_text_cannot_go_on(ours: Tokenizer) -> None:
    given: dict[str, Any] = {"chat_template": "{{ messages[0].content | tojson }}"}
    for content in (5, {"t": 3}, [{"t": 3}]):
        with pytest.raises(ValueError, match="the content of the last message holds no text"):
            ours.chat(
                [{"role": "tool", "content": content}], False, continue_final_message=True, **given
            )


@pytest.mark.parametrize(
    "message",
    [
        {"role": "ipython", "content": {"t": 3}},
        {"role": "function", "name": "f", "content": {"t": [3]}},
        {"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}},
    ],
)
def test_old_names_of_tools_and_calls_are_taken(
    ours: Tokenizer, theirs: Any, message: dict[str, Any]
) -> None:
    template = "{% for m in messages %}{{ m | tojson }}{% endfor %}"
    expected = theirs.apply_chat_template([message], tokenize=False, chat_template=template)
    assert ours.chat([message], False, chat_template=template) == expected


def test_a_template_never_runs_a_method_of_the_callers(ours: Tokenizer) -> None:
    class Text(str):
        def upper(self) -> str:
            raise AssertionError

    class Whole(int):
        def bit_length(self) -> int:
            raise AssertionError

    class Real(float):
        def is_integer(self) -> bool:
            raise AssertionError

    messages = [{"role": "user", "content": Text("hi"), "n": Whole(3), "x": Real(2)}]
    messages[0] |= {Text("key"): 1}
    template = (
        "{{ messages[0].content.upper() }} {{ messages[0].n.bit_length() }} "
        "{{ messages[0].x.is_integer() }}{% for key in messages[0] %} {{ key.upper() }}{% endfor %}"
    )
    assert ours.chat(messages, False, chat_template=template) == "HI 2 True ROLE CONTENT N X KEY"


def test_of_several_parts_the_last_text_goes_on(ours: Tokenizer, theirs: Any) -> None:
    parts = [{"type": "text", "text": text} for text in ("First, ", "then")]
    messages = [CHAT[0], {"role": "assistant", "content": parts}]
    given = {
        "chat_template": "{% for m in messages %}{% if m.content is string %}{{ m.content }}"
        "{% else %}{% for c in m.content %}{{ c.text }}{% endfor %}{% endif %}|{% endfor %}",
        "continue_final_message": True,
    }
    assert ours.chat(messages, False, **given) == "hi|First, then"
    assert theirs.apply_chat_template(messages, tokenize=False, **given) == "hi|First, then"
    given["chat_template"] = SIGHT
    messages = [{"role": "assistant", "content": [*parts, {"type": "image"}]}]
    assert ours.chat(messages, False, **given) == "First, then"
    assert theirs.apply_chat_template(messages, tokenize=False, **given) == "First, then"


def test_reasoning_under_another_name_stays_as_it_is(ours: Tokenizer, theirs: Any) -> None:
    message = {"role": "assistant", "content": "", "thinking": "3 times", "reasoning": "other"}
    given = {
        "chat_template": "{{ messages[0].reasoning }}: {{ messages[0].thinking }}",
        "continue_final_message": "thinking",
    }
    expected = theirs.apply_chat_template([message], tokenize=False, **given)
    assert ours.chat([message], False, **given) == expected == "other: 3 times"


@pytest.mark.parametrize("key", ["reasoning_content", "thinking", "reasoning"])
@pytest.mark.parametrize("read", ["reasoning_content", "thinking"])
def test_reasoning_goes_on_under_whichever_name_the_template_reads(
    ours: Tokenizer, theirs: Any, read: str, key: str
) -> None:
    messages = [CHAT[0], {"role": "assistant", "content": "", key: "3 times"}]
    given = {
        "chat_template": f"{{% for m in messages %}}<{{{{ m.{read} }}}}>{{% endfor %}}",
        "continue_final_message": key,
    }
    expected = theirs.apply_chat_template(messages, tokenize=False, **given)
    assert ours.chat(messages, False, **given) == expected
    assert expected.endswith("<3 times")


PARTS = "{% for m in messages %}{% for c in m.content %}{{ c.text }}{% endfor %}{% endfor %}"
FIRST = "{{ messages[0].content[0].text }}"
PRINTED = "{% for m in messages %}{{ m.content }}{% endfor %}"
JOINED = "{{ '[INST]' + messages[0].content }}"
MARKED = (
    "{% for c in messages[0].content %}{% if c.type == 'text' %}[{{ c.text }}]{% endif %}"
    "{% endfor %}"
)
SIGHT = (
    "{% for c in messages[0].content %}{% if c.type == 'image' %}<image>{% else %}{{ c.text }}"
    "{% endif %}{% endfor %}"
)
STRINGS = "{{ messages[0].content if messages[0].content is string else '' }}"
TEXT = {"type": "text", "text": "the fox"}
IMAGE = {"type": "image", "url": "a.png"}
LINK = {"type": "image_url", "image_url": {"url": "https://a.example/b.png"}}


@pytest.mark.parametrize(
    ("template", "parts", "expected"),
    [
        (PARTS, [TEXT], "the fox"),
        (PARTS, [TEXT, TEXT], "the foxthe fox"),
        (PARTS, [TEXT, {"type": "text", "text": " "}], "the fox "),
        (FIRST, [TEXT], "the fox"),
        (FIRST, [TEXT, {"type": "text", "text": " "}], "the fox"),  # nothing is lost
        (SIGHT, [IMAGE, TEXT], "<image>the fox"),
        (PARTS, [TEXT, LINK], r"does not write part 1 of message 0 \(image_url\)"),
        (FIRST, [TEXT, TEXT], r"does not write part 1 of message 0 \(text\)"),
        (FIRST, [LINK, TEXT], r"does not write part 0 of message 0 \(image_url\)"),
        (SIGHT, [TEXT, LINK], r"does not write part 1 of message 0 \(image_url\)"),
        (MARKED, [TEXT, LINK], r"does not write part 1 of message 0 \(image_url\)"),
        (MARKED, [TEXT, {"image": "a"}], r"part 1 of message 0 \(without a type\)"),
        (PRINTED, [TEXT], "takes only strings as content.* join its texts"),
        (PRINTED, (TEXT,), "takes only strings as content.* join its texts"),
        (PRINTED, [TEXT] * 9, r"writes that of message 0 as .{60}\.\.\.: join its texts into one$"),
        (
            JOINED,
            [TEXT],
            "takes only strings .* of message 0 is a list: .*can only concatenate str",
        ),
        (
            "{{ 1 + messages[0].content }}",
            [TEXT],
            "^the chat template that was given failed: TypeError: unsupported operand",
        ),
        ("{% for m in messages %}.{% endfor %}", [TEXT], "."),
        (STRINGS, [TEXT], "does not write the content of message 0"),
        (
            "{% if messages[0].content is string %}{{ raise_exception('no') }}{% endif %}.",
            [TEXT],
            "does not write the content of message 0",
        ),
    ],
)
def test_a_part_is_written_or_refused(
    ours: Tokenizer, template: str, parts: Any, expected: str
) -> None:
    messages = [{"role": "user", "content": parts}]
    found = outcome(lambda: ours.chat(messages, chat_template=template))
    if isinstance(found, str):
        assert found == expected
    else:
        with pytest.raises(ValueError, match=expected):
            raise found


def test_what_a_tool_returned_is_written_or_refused_as_a_whole(ours: Tokenizer) -> None:
    given: dict[str, Any] = {"chat_template": PRINTED}
    assert ours.chat([{"role": "tool", "content": {}}], False, **given) == "{}"
    with pytest.raises(ValueError, match=r"writes that of message 0 as .*\.\.\.: give it as one$"):
        ours.chat([{"role": "tool", "content": {"t": 3}}], False, **given)


@pytest.mark.parametrize("stored_in", ["tokenizer_config", "special_tokens_map"])
@pytest.mark.parametrize("unknown", [None, "<|turn|>"])
@pytest.mark.parametrize("role", ["bos_token", "eos_token", "pad_token"])
def test_a_role_that_is_empty_is_written_as_transformers_writes_it(
    tmp_path: Path, role: str, unknown: str | None, stored_in: str
) -> None:
    """Its id is that of the unknown token there, and none here; a template sees texts alone."""
    said = ", ".join(f"{{{{ {name} }}}} {{{{ {name} is none }}}}" for name in (role, "unk_token"))
    template = f"{said}{{% for m in messages %}}{{{{ {role} + m.content }}}}{{% endfor %}}"
    put_tokenizer(tmp_path, chat_template=template, unk_token=unknown)
    file = tmp_path / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    held = file if stored_in == "tokenizer_config" else tmp_path / "special_tokens_map.json"
    del settings[role]
    file.write_text(json.dumps(settings))
    held.write_text(json.dumps((settings if held == file else {}) | {role: ""}))
    messages = [{"role": "user", "content": "the"}]
    ours, theirs = Tokenizer.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert ours.chat(messages) == theirs.apply_chat_template(messages, tokenize=False)
    assert ours.encode("the") == theirs("the")["input_ids"]


TOO_MUCH = {
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "macros": "{% macro m(n) %}{{ m(n) }}{{ m(n) }}{% endmacro %}{{ m(1) }}",
    "a doubled text": "{% set n = namespace(x='ab') %}{% for i in range(60) %}"
    "{% set n.x = n.x ~ n.x %}{% endfor %}",
    "lists in lists": "{% set n = namespace(x=[]) %}{% for i in range(60) %}"
    "{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x }}",
    "repeated": "{{ 'x' * 10**10 }}",
    "a width": "{{ '%10000000000d' % 1 }}",
    "a width of format": "{{ '{:>10000000000}'.format(1) }}",
    "center": "{{ 'x'|center(10**10) }}",
    "ljust": "{{ 'x'.ljust(10**10) }}",
    "batch": "{{ [1]|batch(10**10, 0)|list }}",
    "slice": "{{ [1]|slice(10**10)|list }}",
    "indent": "{{ 'a\nb'|indent(10**10) }}",
    "tojson": "{{ messages|tojson(indent=10**10) }}",
    "power": "{{ 2**(2**40) }}",
    "all kept": "{% for i in range(99999) %}{{ 'x' * 10**6 }}{% endfor %}",
    "tags": "{% set a = 1 %}" * 60_000,
    "brackets": "{{ " + "(" * 50_000 + "1" + ")" * 50_000 + " }}",
}


@pytest.mark.parametrize("kind", TOO_MUCH)
def test_a_template_does_no_more_than_it_may(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIY_LIMITS", "template_seconds=1")
    with pytest.raises(ValueError, match=r"^X (takes more than|has more than|writes more|failed)"):
        render(TOO_MUCH[kind], [{"role": "user", "content": "hi"}], {}, "X")
    assert render("{{ messages[0].content }}", [{"role": "user", "content": "hi"}], {}, "X") == "hi"


def test_a_template_may_be_given_more(monkeypatch: pytest.MonkeyPatch) -> None:
    source = "{{ 'x' * 1000 }}" + " " * 300_000
    with pytest.raises(ValueError, match=r"X has more than 262144 characters: .*DIY_LIMITS"):
        render(source, [{"role": "user", "content": "hi"}], {}, "X")
    monkeypatch.setenv("DIY_LIMITS", "template_characters=1000000")
    assert render(source, [{"role": "user", "content": "hi"}], {}, "X").strip() == "x" * 1000


def test_a_template_that_asks_for_all_memory_takes_little() -> None:
    """In the process that fills it in."""
    program = (
        "import resource, sys\n"
        "from diy_core.text.chat.template import render\n"
        "try: render(sys.argv[1], [{'role': 'user', 'content': 'hi'}], {}, 'X')\n"
        "except ValueError as error: print(error)\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)\n"
    )
    growing = "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = n.x + n.x %}"
    words = [sys.executable, "-c", program, growing + "{% endfor %}"]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT)
    said, kilobytes = done.stdout.splitlines()
    assert said.startswith("X takes more than 256 MB of memory")
    assert int(kilobytes) < 260_000
