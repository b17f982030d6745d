"""Columns that say how a record is learnt in a way that is not done here: refused by name."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from diy_core.data.json_values import parse
from diy_core.data.telling_names import defines_tools, may_tell, tells_what_is_learnt
from diy_core.data.turns import OPPOSITE

# Columns of other kinds of training, where they hold texts or lists; of KTO_TAG true or false.
PREFERENCES = ("rejected", "rejected_response", "rejected_messages", "non_preferred_output")
KTO_TAG, STEPWISE = "kto_tag", "completions"
_WEIGHED = ("sample", "loss", "example", "instance", "record", "row", "document", "importance")
_WEIGHTS = (
    *("weight", "weights", "loss_scale", "train_weight", "training_weight", "token_weights"),
    *(f"{what}_weight{s}" for what in _WEIGHED for s in ("", "s")),
)
# Whether a record is learnt at all, where they hold true or false.
_FLAGS = (
    *("train", "training", "trainable", "train_on_turn"),
    *("loss", "loss_mask", "compute_loss", "learn"),
)
_MEDIA = ("images", "image", "videos", "video", "audios", "audio")
# Where they are; a text of the web may have them of its page.
_PLACES_OF_MEDIA = tuple(
    f"{what}_{where}{s}"
    for what in ("image", "video", "audio")
    for where in ("path", "url", "file")
    for s in ("", "s")
)
# Which tokens count, where the data come as token ids.
_MASKS = ("completion_mask", "assistant_masks", "assistant_mask", "loss_mask", "labels")
SYSTEM = ("system", "system_prompt", "system_message")
OF_CHATS = ("tools", "functions", "documents", *SYSTEM, "chat_template_kwargs")
# What an answer was thought out with; as a switch of a template it is true or false.
_REASONING = ("reasoning_content", "thinking")
# Definitions of tools under names that some template or some data set has.
_TOOLS = (
    *("available_tools", "custom_tools", "builtin_tools", "xml_tools", "python_tools"),
    *("tool_definitions", "tool_schemas", "function_definitions", "function_schemas"),
    *("tool_list", "function_list", "tools_json", "functions_json", "apis"),
)
# What a system message says, under names that mean it in some data set.
_SYSTEM = (
    *("systemPrompt", "system_instruction", "system_instructions", "sys_prompt", "preamble"),
    *("developer", "developer_prompt", "developer_message", "instructions"),
)
_EARLIER = "history"  # turns
_AFTER = "suffix"  # of a text whose middle is to be learnt
# What chat_template_kwargs cannot say: it is decided by what is learnt.
FIXED = {"messages", "chat_template", "continue_final_message", "add_generation_prompt"}
COLUMNS = {
    *(*PREFERENCES, KTO_TAG, STEPWISE, "label", "mask"),
    *(*_WEIGHTS, *_FLAGS, *OPPOSITE, *_MEDIA, *_PLACES_OF_MEDIA, *_MASKS, *_TOOLS, *_REASONING),
    *(*_SYSTEM, _EARLIER, _AFTER),
}


def refuse_other_kinds(held: Mapping[str, Any]) -> None:
    """Raise for a record that is made for another kind of training.

    Raises:
        ValueError: it is.
    """
    if _OTHER_KINDS.isdisjoint(held):  # as nearly always, and quickly told
        return
    # A number is something else, such as the count of rejected answers.
    texts = [name for name, value in held.items() if isinstance(value, (str, list, dict))]
    for name in (*PREFERENCES, STEPWISE):
        if name in texts and not is_empty(held[name]):
            kind = "stepwise supervision" if name == STEPWISE else "preferences"
            raise ValueError(
                f"holds {kind} ({name}), which is not learnt here: write the answer to learn as "
                "the last of messages, or as completion"
            )
    if isinstance(held.get(KTO_TAG), bool):
        raise ValueError(
            f"holds preferences ({KTO_TAG}), which are not learnt here: keep the good answers, "
            f"without {KTO_TAG}"
        )


def refuse_beside_a_text(held: Mapping[str, Any], form: str) -> None:
    """Raise for what stands beside a text and cannot be honoured.

    A text may stand in any table: a column counts where it holds what weights and media are.

    Args:
        held: the columns that hold something.
        form: the one that holds the text.

    Raises:
        ValueError: media, weights of records, or which tokens count.
    """
    if _BESIDE.isdisjoint(held):  # as nearly always, and quickly told
        return
    texts = {name for name in (*_WEIGHTS, *_MEDIA) if isinstance(held.get(name), str)} - {form}
    left_out = texts | {"labels", form}
    counting = {name: value for name, value in held.items() if name not in left_out}
    for name in texts.intersection(_WEIGHTS):
        with contextlib.suppress(ValueError):  # a text that is not a number is about something else
            counting[name] = float(held[name])
    _refuse_beside(counting, "a text", "leave it out, and the records that should not count")


def refuse_beside_a_chat(held: Mapping[str, Any]) -> None:
    """Raise for what stands beside a chat and cannot be honoured.

    Raises:
        ValueError: media, weights of records, preferences, tools under another name, or which
            tokens count.
    """
    _refuse_media(held, _PLACES_OF_MEDIA, "a chat")
    _refuse_beside(held, "a chat", "give each message a weight of 0 or 1")
    _refuse_label(held, "a chat")
    _refuse_reasoning(held, "a chat", "make it a key of the message that it belongs to")
    if str(held.get("mask", "User")).lower() not in ("user", "human"):
        raise ValueError(
            f"has mask {held['mask']!r} beside a chat, and what the assistant says is learnt: give "
            "each message a weight of 0 or 1"
        )
    if found := [name for name in _TOOLS if not is_empty(held.get(name))]:
        raise ValueError(
            f"holds {found[0]} beside a chat, and definitions of tools are read from tools: name "
            f"it so, give it in chat_template_kwargs if the chat template reads {found[0]}, or "
            "remove it"
        )
    if found := [name for name in _SYSTEM if not is_empty(held.get(name))]:
        raise ValueError(
            f"holds {found[0]} beside a chat, and what the system says is read from system: name "
            "it so, give it in chat_template_kwargs if the chat template reads it, or remove it"
        )
    if not is_empty(held.get(_EARLIER)):
        raise ValueError(
            f"holds {_EARLIER} beside a chat: put those turns at the beginning of the chat, or "
            "remove it"
        )
    _refuse_telling(held, "a chat")


def refuse_beside_a_completion(held: Mapping[str, Any]) -> None:
    """Raise for what stands beside a prompt and a completion that are texts.

    Raises:
        ValueError: what `refuse_beside_a_chat` refuses, or what only a chat template writes.
    """
    _refuse_media(held, _PLACES_OF_MEDIA, "a completion")
    _refuse_beside(held, "a completion", "leave it out, and the records that should not count")
    _refuse_label(held, "a completion")
    _refuse_reasoning(held, "a completion", "make it part of the completion, or leave it out")
    if not is_empty(held.get(_AFTER)):
        raise ValueError(
            f"holds {_AFTER} beside a prompt and a completion: put it into the prompt, between the "
            "tokens that the model has for a text to fill in, or remove it"
        )
    if found := [
        name for name in (*OF_CHATS, *_TOOLS, *_SYSTEM, _EARLIER) if not is_empty(held.get(name))
    ]:
        raise ValueError(
            f"holds {found[0]} beside a prompt and a completion that are texts, and only a chat "
            "template writes it: write both as lists of messages, or make it part of the prompt"
        )
    _refuse_telling(held, "a completion")


def refuse_read_by_template(passed_over: Iterable[str], names: Collection[str]) -> None:
    """Raise for a column beside a chat that the chat template reads by name, and is not given.

    Args:
        passed_over: the columns of a record that hold something and are not used.
        names: that the chat templates read.

    Raises:
        ValueError: there is one.
    """
    if found := sorted(set(passed_over).intersection(names)):
        name = found[0]
        way = (
            ""
            if name in FIXED
            else f'give it as {{"chat_template_kwargs": {{"{name}": ...}}}}, or '
        )
        raise ValueError(
            f"holds {name} beside a chat, which the chat template reads, and columns are not given "
            f"to it: {way}remove the column"
        )


_OTHER_KINDS = {*PREFERENCES, STEPWISE, KTO_TAG}
_BESIDE = {*_MEDIA, *_WEIGHTS, *_FLAGS, *OPPOSITE, *_MASKS}


def is_empty(value: Any) -> bool:
    """Whether a value is none: nothing but white space, no items."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, (Sequence, Mapping)) and not value)


def _refuse_media(held: Mapping[str, Any], names: Iterable[str], what: str) -> None:
    if found := [name for name in names if not is_empty(held.get(name))]:
        raise ValueError(
            f"holds {found[0]} beside {what}, and only text is learnt: leave such records out"
        )


def _refuse_beside(held: Mapping[str, Any], what: str, remedy: str) -> None:
    _refuse_media(held, _MEDIA, what)
    if found := [name for name in _WEIGHTS if not _weighs_nothing(held.get(name))]:
        raise ValueError(
            f"has {found[0]} {held[found[0]]!r} beside {what}, and records are not weighted: "
            f"{remedy}"
        )
    if found := [name for name in (*_FLAGS, *OPPOSITE) if held.get(name) is (name in OPPOSITE)]:
        raise ValueError(
            f"has {found[0]} {held[found[0]]!r} beside {what}, and all records are learnt: {remedy}"
        )
    if found := [name for name in _MASKS if _is_of_numbers(held.get(name))]:
        raise ValueError(
            f"has {found[0]} beside {what}, which counts single tokens, and the tokens are made "
            f"here: {remedy}"
        )


def _refuse_telling(held: Mapping[str, Any], what: str) -> None:
    """Raise for a column of no known name that tells by its words and by what it holds."""
    for name in filter(may_tell, held.keys() - {*OF_CHATS, *_WEIGHTS}):
        value = held[name]
        if isinstance(value, list) and tells_what_is_learnt(name, value):
            raise ValueError(
                f"has {name} {value!r} beside {what}, which seems to say what is learnt: give each "
                "message a weight of 0 or 1, or remove the column"
            )
        if isinstance(value, str) and value.lstrip().startswith("["):
            with contextlib.suppress(ValueError):  # a text that only begins with a bracket
                value = parse(value)
        if defines_tools(name, value):
            raise ValueError(
                f"holds {name} beside {what}, and definitions of tools are read from tools, beside "
                "a chat: name it so, or remove it"
            )


def _refuse_reasoning(held: Mapping[str, Any], what: str, remedy: str) -> None:
    texts = [name for name in _REASONING if isinstance(held.get(name), str)]
    if found := [name for name in texts if not is_empty(held[name])]:
        raise ValueError(f"holds {found[0]} beside {what}, where nothing writes it: {remedy}")


def _refuse_label(held: Mapping[str, Any], what: str) -> None:
    """KTO's labels are true and false, which some files hold as 1 and 0."""
    label = held.get("label")
    if isinstance(label, (bool, int)) and label in (0, 1):
        raise ValueError(
            f"holds {what} and label ({label!r}), which are preferences and not learnt here: keep "
            "the good answers, without label, or give it another name if it means something else"
        )


def _weighs_nothing(value: Any) -> bool:
    """Whether a weight is none, or 1 wherever it stands."""
    return is_empty(value) or all(
        item == 1 for item in (value if isinstance(value, list) else [value])
    )


def _is_of_numbers(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], (bool, int, float))
