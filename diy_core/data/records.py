"""What a record of a data set holds: which of its columns is learnt, and which say how.

    text                     a text, or the column that `field` names
    messages, conversations  a chat, also as JSON in a text, or as a list of all roles and one of
                             all contents; beside it tools (or functions), documents, system (or
                             system_prompt, system_message) and chat_template_kwargs
    prompt and completion    two texts, or two stretches of a chat, also as JSON in two texts; the
                             completion is learnt

All other columns are passed over and named. A record that could be read in two ways, that is made
for another kind of training, or that holds what the chat template reads by name, is an error.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from diy_core.data.chat_shapes import (
    are_turns,
    is_python,
    pair_of_turns,
    refuse_other_shapes,
    turns_in,
)
from diy_core.data.json_values import parse
from diy_core.data.refusals import (
    COLUMNS,
    OF_CHATS,
    PREFERENCES,
    STEPWISE,
    SYSTEM,
    is_empty,
    refuse_beside_a_chat,
    refuse_beside_a_completion,
    refuse_beside_a_text,
    refuse_other_kinds,
    refuse_read_by_template,
)
from diy_core.data.telling_names import may_tell
from diy_core.data.turns import read_turns

TEXT, MESSAGES, CONVERSATIONS, PROMPT = "text", "messages", "conversations", "prompt"
_COMPLETION = "completion"
_ALPACA = {"instruction", "output"}
# A prompt and its completion under other names.
_PAIRS = (
    *((PROMPT, "response"), (PROMPT, "answer"), (PROMPT, "output")),
    *(("question", "answer"), ("question", "response"), ("question", "output")),
    *(("input", "output"), ("query", "response"), ("query", "answer")),
    *(("instruction", "response"), ("problem", "solution")),
)


@dataclass(frozen=True)
class Chat:
    """A conversation to learn the answers of.

    Attributes:
        messages: with role and content, oldest first.
        counted: for each message whether an answer in it is learnt; None: all are.
        tools: JSON schemas of the functions in it, or None.
        documents: what was there to answer from, or None.
        variables: further names for the chat template.
    """

    messages: list[dict[str, Any]]
    counted: list[bool] | None = None
    tools: list[Any] | None = None
    documents: list[Any] | None = None
    variables: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Completion:
    """A text of which only the second part is learnt."""

    prompt: str
    completion: str


Document = str | Chat | Completion


def read_record(
    row: Mapping[str, Any], wanted: str | None = None, template_names: Collection[str] = ()
) -> tuple[Document, list[str]]:
    """The document of a record, and the columns that were passed over.

    Args:
        row: value by column; a column without a value is not there.
        wanted: the column to learn, where the record has it; None: the one that holds something.
        template_names: that the chat templates read.

    Returns:
        The document, which is an empty text where the column is null, and names.

    Raises:
        ValueError: no such column, more than one, or one that cannot be honoured.
    """
    held = {name: value for name, value in row.items() if value is not None}
    if len(held) < len(row) and _has_nothing(row, held, wanted):
        return "", list(held)
    for name in (MESSAGES, CONVERSATIONS):
        if name in held:
            held[name] = turns_in(held[name])
            if wanted in (None, name):
                refuse_other_shapes(name, held[name])
    form = wanted if wanted in held else _only_form(held, wanted)
    value = held[form]
    if form == PROMPT and wanted != PROMPT:
        document, used = _completion(held)
    elif isinstance(value, str):
        refuse_beside_a_text(held, form)
        document, used = value, {form}
    elif isinstance(value, list):
        document, used = _chat(read_turns(value), held), {form, *OF_CHATS}
    else:
        raise ValueError(
            f"holds {type(value).__name__} in {form!r}, and a document is a text or a list of "
            "messages"
        )
    others = [name for name in held if name not in used]
    if isinstance(document, Chat):
        said = (name for name in others if name != MESSAGES and not is_empty(held[name]))
        refuse_read_by_template(said, template_names)
    return document, others


def columns_to_read(
    names: Iterable[str], wanted: str | None, template_names: Collection[str] = ()
) -> list[str]:
    """The columns of a table that `read_record` looks at, none where it would find no document."""
    forms = {wanted, TEXT, MESSAGES, CONVERSATIONS, PROMPT, *_ALPACA}
    forms |= {*PREFERENCES, STEPWISE}
    known = forms | {_COMPLETION, *OF_CHATS, *COLUMNS, *template_names}
    listed = list(names)
    if not forms & {*listed}:
        return []
    return [name for name in listed if name in known or may_tell(name)]


def _has_nothing(row: Mapping[str, Any], held: Mapping[str, Any], wanted: str | None) -> bool:
    """True where the column to learn is there and null, and no other could be meant."""
    expected = {wanted} if wanted is not None else {TEXT, MESSAGES, CONVERSATIONS, PROMPT}
    others = {TEXT, MESSAGES, CONVERSATIONS, PROMPT, *_ALPACA, *PREFERENCES, STEPWISE}
    return bool(expected & row.keys()) and not (expected | others) & held.keys()


def _only_form(held: Mapping[str, Any], wanted: str | None) -> str:
    """The column that holds the document, or the first of two."""
    there = [name for name in (MESSAGES, CONVERSATIONS) if isinstance(held.get(name), list)]
    if isinstance(held.get(TEXT), str) and wanted is None:
        there.insert(0, TEXT)
    if PROMPT in held and _COMPLETION in held:
        there.append(PROMPT)
    # What is empty is there, but where something else is it is not what is meant.
    forms = [name for name in there if not is_empty(held[name])] or there[:1]
    refuse_other_kinds(held)
    if len(forms) > 1:
        listed = " and ".join(repr(name) for name in forms)
        raise ValueError(
            f"holds {listed}, which could each be what is learnt: name one (field={forms[0]!r})"
        )
    if forms:
        return forms[0]
    if held.keys() >= _ALPACA:
        raise ValueError(
            "holds Alpaca's instruction and output, and how these become one text is said nowhere "
            "in the data: write messages, or prompt and completion"
        )
    texts = [key for key, value in held.items() if isinstance(value, str) and value.strip()]
    if pair := next((pair for pair in _PAIRS if {*pair} <= {*texts}), None):
        raise ValueError(
            f"holds {pair[0]} and {pair[1]}: call them {PROMPT} and {_COMPLETION}, of which the "
            "second is learnt, or write messages"
        )
    texts = [key for key, value in held.items() if are_turns(value)] or texts
    listed = ", ".join(f"{key} ({type(value).__name__})" for key, value in held.items())
    raise ValueError(
        f"has no text in {wanted or TEXT!r} and no list in 'messages', but {listed or 'nothing'}: "
        + (f"name the column to learn (field={texts[0]!r}), or " if texts else "")
        + "write text, messages, or prompt and completion"
    )


def _completion(held: Mapping[str, Any]) -> tuple[Document, set[str]]:
    prompt, completion = pair_of_turns(held[PROMPT], held[_COMPLETION])
    for name in (PROMPT, _COMPLETION):
        if isinstance(held[name], str) and is_python(held[name]):
            refuse_other_shapes(name, held[name])
    if isinstance(prompt, str) and isinstance(completion, str):
        refuse_beside_a_completion(held)
        return Completion(prompt, completion), {PROMPT, _COMPLETION}
    if not isinstance(prompt, list) or not isinstance(completion, list):
        kinds = f"{type(prompt).__name__} and {type(completion).__name__}"
        raise ValueError(f"needs prompt and completion as two texts or two lists, got {kinds}")
    (before, _), (after, counted) = read_turns(prompt), read_turns(completion)
    turns = [*before, *after], [*[False] * len(before), *counted]
    return _chat(turns, held), {PROMPT, _COMPLETION, *OF_CHATS}


def _chat(turns: tuple[list[dict[str, Any]], list[bool]], held: Mapping[str, Any]) -> Chat:
    messages, counted = turns
    refuse_beside_a_chat(held)
    for name in SYSTEM:
        if not is_empty(held.get(name)):
            messages, counted = _with_system(held[name], messages, counted)
    tools = _listed(held, "tools")
    if functions := _listed(held, "functions"):
        if tools:
            raise ValueError("holds tools and functions: keep tools")
        tools = [{"type": "function", "function": function} for function in functions]
    variables = _json(held, "chat_template_kwargs") or {}
    if not isinstance(variables, dict):
        raise ValueError(f"needs chat_template_kwargs as an object, got {variables!r}")
    variables = {name: value for name, value in variables.items() if not is_empty(value)}
    return Chat(messages, counted, tools, _listed(held, "documents"), variables)


def _with_system(
    system: Any, messages: list[dict[str, Any]], counted: list[bool]
) -> tuple[list[dict[str, Any]], list[bool]]:
    if messages and messages[0].get("role") == "system":
        if messages[0].get("content") == system:
            return messages, counted
        raise ValueError("holds system beside a chat that begins with another system message")
    return [{"role": "system", "content": system}, *messages], [True, *counted]


def _listed(held: Mapping[str, Any], name: str) -> list[Any] | None:
    """A list, or one as JSON in a text, of objects or of such as JSON; an empty one is none."""
    value = _json(held, name)
    if is_empty(value):
        return None
    if not isinstance(value, list):
        raise ValueError(f"needs {name} as a list of objects, got {type(value).__name__}")
    return [_json({name: item}, name) for item in value]


def _json(held: Mapping[str, Any], name: str) -> Any:
    value = held.get(name)
    if not isinstance(value, str) or not value.strip():
        return value
    try:
        return parse(value)
    except ValueError as error:
        raise ValueError(f"holds {name} as a text that {error}") from error
