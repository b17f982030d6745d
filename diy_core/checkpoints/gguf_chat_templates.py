"""Chat templates as llama.cpp keeps them in a GGUF file.

tokenizer.chat_template         the default one
tokenizer.chat_template.NAME    any other; a name has letters, digits and underscores
tokenizer.chat_templates        the names of the others
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from diy_core.chat_templates import DEFAULT

_KEY = "tokenizer.chat_template"


def template_metadata(templates: Mapping[str, str]) -> dict[str, Any]:
    """The entries for templates by name."""
    named = {
        re.sub(r"[^A-Za-z0-9_]", "_", name): text
        for name, text in templates.items()
        if name != DEFAULT
    }
    found: dict[str, Any] = {f"{_KEY}.{name}": text for name, text in named.items()}
    if named:
        found[f"{_KEY}s"] = sorted(named)
    if DEFAULT in templates:
        found[_KEY] = templates[DEFAULT]
    return found


def templates_of(metadata: Mapping[str, Any]) -> dict[str, str]:
    """The templates by name.

    Raises:
        ValueError: an entry that is no text.
    """
    found = {
        key.removeprefix(_KEY).removeprefix(".") or DEFAULT: value
        for key, value in metadata.items()
        if key == _KEY or key.startswith(f"{_KEY}.")
    }
    if bad := [name for name, value in found.items() if not isinstance(value, str)]:
        raise ValueError(f"chat template {bad[0]!r} must be a text")
    return found


def as_setting(templates: Mapping[str, str]) -> str | list[dict[str, str]]:
    """What `chat_template` of a tokenizer_config.json holds for them."""
    if set(templates) == {DEFAULT}:
        return templates[DEFAULT]
    return [{"name": name, "template": text} for name, text in templates.items()]
