"""The turns of a chat as data sets write them: OpenAI's messages, ShareGPT's from and value.

Whether an answer is to be learnt stands beside it under several names: `weight` (OpenAI, Mistral),
`train`, `training` and `train_on_turn` (axolotl), `loss` and `loss_scale` (ms-swift), a `loss_mask`
that is one number, and others. All take 0 and 1, false and true. `masked` (torchtune), `ignore` and
the like say the opposite. Any other name that seems to say it is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diy_core.data.json_values import parse
from diy_core.data.telling_names import tells_what_is_learnt

Turns = tuple[list[dict[str, Any]], list[bool]]

_FLAGS = (
    *("weight", "train", "training", "train_on_turn", "trainable"),
    *("loss", "loss_scale", "loss_weight", "compute_loss", "learn"),
)
OPPOSITE = ("masked", "is_masked", "ignore", "ignore_loss", "no_loss")
_EITHER = "mask"  # learnt in some data, left out in others
_PARTLY = ("train_detail", "training_detail", "loss_mask")  # which characters or tokens count
_WHOLE = "loss_mask"  # that is a flag where it is one number
_CALLS = {"tool_calls": list, "function_call": dict}
_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "system": "system",
    "developer": "developer",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
    "function_call": "assistant",
}


def read_turns(listed: Sequence[Any]) -> Turns:
    """The messages of a conversation, and for each whether an answer in it counts.

    Args:
        listed: objects with role and content, or with from and value.

    Raises:
        ValueError: an object that is neither, or a flag that cannot be honoured.
    """
    messages, counted = [], []
    for i, turn in enumerate(listed):
        if not isinstance(turn, dict):
            raise ValueError(f"message {i} must be an object with role and content, got {turn!r}")
        turn = {key: value for key, value in turn.items() if value is not None}
        said = _said(turn)
        count = _is_counted(turn, said, i)
        message = {key: value for key, value in turn.items() if key not in said}
        message |= _calls_in_text(message, i)
        if "from" in message and "role" not in message:
            message = _of_share_gpt(message, i)
        if count and message.get("role") != "assistant":
            raise ValueError(
                f"message {i} ({message.get('role')}) is marked as one to learn, and only what the "
                "assistant says is learnt: remove the mark"
            )
        if message.get("role") == "assistant" and isinstance(message.get(_EITHER), (bool, int)):
            raise ValueError(
                f"message {i} has mask {message[_EITHER]!r}, which means learnt in some data and "
                "left out in others: give it a weight of 0 or 1"
            )
        messages.append(message)
        counted.append(count is not False)
    return messages, counted


def _is_counted(turn: dict[str, Any], said: dict[str, Any], i: int) -> bool | None:
    """What the flags of a turn say; None: there are none."""
    if found := [key for key in _PARTLY if key not in said and turn.get(key)]:
        raise ValueError(
            f"message {i} has {found[0]}, which counts parts of an answer: split the answer into "
            "messages with a weight of 0 and 1"
        )
    other = turn.keys() - said.keys() - {*_PARTLY, _EITHER, *_CALLS}
    for key in sorted(other):
        if tells_what_is_learnt(key, turn[key]):
            raise ValueError(
                f"message {i} has {key} {turn[key]!r}, which seems to say whether it is learnt: "
                "call it weight (0 or 1), or remove it"
            )
    for key, value in said.items():
        if value not in (0, 1):
            raise ValueError(
                f"message {i} has {key} {value!r}, which can be 0 (false) or 1 (true): an answer "
                "counts, or does not"
            )
    counts = {bool(value) != (key in OPPOSITE) for key, value in said.items()}
    if len(counts) > 1:
        raise ValueError(f"message {i} has {said}, which contradict each other")
    return counts.pop() if counts else None


def _said(turn: dict[str, Any]) -> dict[str, Any]:
    """What says of a whole turn whether it is learnt."""
    names = (*_FLAGS, *OPPOSITE, *((_WHOLE,) if isinstance(turn.get(_WHOLE), (int, float)) else ()))
    return {key: turn[key] for key in names if key in turn}


def _calls_in_text(message: dict[str, Any], i: int) -> dict[str, Any]:
    """Calls that are JSON in a text, as tables without nested columns hold them.

    A template would write such a text letter by letter, one call for each.
    """
    found: dict[str, Any] = {}
    for key, kind in _CALLS.items():
        if not isinstance(text := message.get(key), str):
            continue
        try:
            calls = parse(text) if text.strip() else kind()
        except ValueError as error:
            raise ValueError(
                f"message {i} has {key} as a text that is not JSON: {error}"
            ) from error
        calls = kind() if calls is None else calls
        if not isinstance(calls, kind):
            what = "a list of calls" if kind is list else "an object"
            raise ValueError(
                f"message {i} has {key} as a text, and it must be {what}, got {text!r}"
            )
        found[key] = calls
    return found


def _of_share_gpt(turn: dict[str, Any], i: int) -> dict[str, Any]:
    speaker, value = turn["from"], turn.get("value")
    if not isinstance(speaker, str) or speaker not in _ROLES:
        raise ValueError(
            f"message {i} is from {speaker!r}, and known are {', '.join(_ROLES)}: write it with "
            "role and content"
        )
    if value is None and turn.keys().isdisjoint(_CALLS):
        raise ValueError(f"message {i} is from {speaker!r} and has no value: {sorted(turn)}")
    rest = {key: item for key, item in turn.items() if key not in ("from", "value")}
    if speaker == "function_call":
        return {"role": "assistant", "tool_calls": _calls(value, i), **rest}
    return {"role": _ROLES[speaker], "content": value, **rest}


def _calls(value: Any, i: int) -> list[dict[str, Any]]:
    """A call of a function, or a list of them, as JSON in a text."""
    try:
        found = parse(value) if isinstance(value, str) else value
    except ValueError as error:
        raise ValueError(f"message {i} calls a function with what {error}") from error
    calls = found if isinstance(found, list) else [found]
    for call in calls:
        if not isinstance(call, dict) or not {"name", "arguments"} <= call.keys():
            raise ValueError(
                f"message {i} calls a function and must hold its name and arguments, got {call!r}"
            )
    return [{"type": "function", "function": call} for call in calls]
