"""Columns that say how a record is learnt in a way that is not done here: refused by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# Columns of other kinds of training, where they hold texts or lists; of KTO_TAG true or false.
PREFERENCES = ("rejected", "rejected_response", "rejected_messages", "non_preferred_output")
KTO_TAG, STEPWISE = "kto_tag", "completions"
_WEIGHTS = ("weight", "sample_weight", "loss_weight", "weights", "sample_weights", "loss_weights")
_MEDIA = ("images", "image", "videos", "video", "audios", "audio")
# Which tokens count, where the data come as token ids.
_MASKS = ("completion_mask", "assistant_masks", "assistant_mask", "loss_mask", "labels")
_OF_CHATS = ("tools", "functions", "documents", "system", "system_prompt", "chat_template_kwargs")
COLUMNS = {*PREFERENCES, KTO_TAG, STEPWISE, *_WEIGHTS, *_MEDIA, *_MASKS, "label", "mask"}


def refuse_other_kinds(held: Mapping[str, Any]) -> None:
    """Raise for a record that is made for another kind of training.

    Raises:
        ValueError: it is.
    """
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


def refuse_beside_a_chat(held: Mapping[str, Any]) -> None:
    """Raise for what stands beside a chat and cannot be honoured.

    Raises:
        ValueError: media, weights of records, or which tokens count.
    """
    _refuse_beside(held, "a chat", "give each message a weight of 0 or 1")
    if str(held.get("mask", "User")).lower() not in ("user", "human"):
        raise ValueError(
            f"has mask {held['mask']!r} beside a chat, and what the assistant says is learnt: give "
            "each message a weight of 0 or 1"
        )


def refuse_beside_a_completion(held: Mapping[str, Any]) -> None:
    """Raise for what stands beside a prompt and a completion that are texts.

    Raises:
        ValueError: what `refuse_beside_a_chat` refuses, or what only a chat template writes.
    """
    _refuse_beside(held, "a completion", "leave it out, and the records that should not count")
    if found := [name for name in _OF_CHATS if not is_empty(held.get(name))]:
        raise ValueError(
            f"holds {found[0]} beside a prompt and a completion that are texts, and only a chat "
            "template writes it: write both as lists of messages, or make it part of the prompt"
        )


def is_empty(value: Any) -> bool:
    """Whether a value is none: nothing but white space, no items."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, (Sequence, Mapping)) and not value)


def _refuse_beside(held: Mapping[str, Any], what: str, remedy: str) -> None:
    if found := [name for name in _MEDIA if not is_empty(held.get(name))]:
        raise ValueError(
            f"holds {found[0]} beside {what}, and only text is learnt: leave such records out"
        )
    if found := [name for name in _WEIGHTS if not is_empty(held.get(name)) and held[name] != 1]:
        raise ValueError(
            f"has {found[0]} {held[found[0]]!r} beside {what}, and records are not weighted: "
            f"{remedy}"
        )
    if found := [name for name in _MASKS if _is_of_numbers(held.get(name))]:
        raise ValueError(
            f"has {found[0]} beside {what}, which counts single tokens, and the tokens are made "
            f"here: {remedy}"
        )


def _is_of_numbers(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], (bool, int, float))
