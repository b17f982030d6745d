"""The last message left open, so that the model goes on with it: `continue_final_message`.

The end of the message is marked, and what the template writes from the mark on is cut off, as
transformers does it.
"""

from __future__ import annotations

from typing import Any

from diy_core.text.chat.messages import REASONING

_MARK = "CONTINUE_FINAL_MESSAGE_TAG "


def mark(
    messages: list[dict[str, Any]], key: str, template: str, where: str
) -> tuple[list[dict[str, Any]], str]:
    """Messages whose last one ends with a mark, and the text before it.

    Args:
        messages: plain data.
        key: what of the last message goes on, such as "content".
        template: Jinja source.
        where: what error messages call the template.

    Raises:
        ValueError: the last message has no such text, or the template does not read the key.
    """
    last = messages[-1]
    value = last.get(key)
    if value is None:
        raise ValueError(f"continue_final_message: the last message has no {key} to go on with")
    keys = [name for name in REASONING if last.get(name) == value] if key in REASONING else [key]
    if not any(name in template for name in keys):
        raise ValueError(f"continue_final_message: {where} does not read {key}")
    if isinstance(value, str):
        return [*messages[:-1], {**last, **dict.fromkeys(keys, value + _MARK)}], value
    parts = list(value) if isinstance(value, (list, tuple)) else []
    for i in reversed(range(len(parts))):
        if isinstance(parts[i], dict) and isinstance(parts[i].get("text"), str):
            text = parts[i]["text"]
            parts[i] = {**parts[i], "text": text + _MARK}
            return [*messages[:-1], {**last, key: parts}], text
    raise ValueError(f"continue_final_message: the {key} of the last message holds no text")


def cut(text: str, last: str, where: str) -> str:
    """What stands before the mark; white space there goes where the template trims messages.

    Raises:
        ValueError: the template changes the end of the last message, so it cannot go on.
    """
    at = text.rfind(_MARK.strip())
    if at < 0 or last.strip() not in text:
        raise ValueError(
            f"continue_final_message: {where} does not write the last message as it stands, so it "
            "cannot go on"
        )
    return text[:at] if text[at : at + len(_MARK)] == _MARK else text[:at].rstrip()
