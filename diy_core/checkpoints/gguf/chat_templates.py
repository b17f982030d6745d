"""Chat templates as llama.cpp keeps them in a GGUF file.

tokenizer.chat_template         the default one
tokenizer.chat_template.NAME    any other; a name has letters, digits and underscores
tokenizer.chat_templates        the names of the others
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from diy_core.text.chat.templates import DEFAULT

_KEY = "tokenizer.chat_template"


def template_metadata(templates: Mapping[str, str], notes: list[str]) -> dict[str, Any]:
    """The entries for templates by name.

    Args:
        templates: them.
        notes: gets a sentence for each whose name here is not that with underscores for all else,
            as another template has that one.
    """
    names = _names([name for name in templates if name != DEFAULT], notes)
    named = {names[name]: templates[name] for name in names}
    found: dict[str, Any] = {f"{_KEY}.{name}": text for name, text in named.items()}
    if named:
        found[f"{_KEY}s"] = sorted(named)
    if DEFAULT in templates:
        found[_KEY] = templates[DEFAULT]
    return found


def _names(ours: Sequence[str], notes: list[str]) -> dict[str, str]:
    """A name of its own for each template; one that needs no change keeps it."""
    plain = {name: re.sub(r"[^A-Za-z0-9_]", "_", name) or "_" for name in ours}
    owners = {name: name for name in ours if plain[name] == name}
    for name in ours:
        called = plain[name]
        for number in itertools.count(2):
            if owners.setdefault(called, name) == name:
                break
            called = f"{plain[name]}_{number}"
        if called != plain[name]:
            notes.append(
                f"chat template {name!r} is called {called!r} in the GGUF file, as "
                f"{plain[name]!r} is chat template {owners[plain[name]]!r}"
            )
    return {name: called for called, name in owners.items()}


def templates_of(metadata: Mapping[str, Any]) -> dict[str, str]:
    """The templates by name.

    Raises:
        ValueError: an entry is not a text, or there are two default templates.
    """
    found = {DEFAULT: metadata[_KEY]} if _KEY in metadata else {}
    for key, value in metadata.items():
        if key.startswith(f"{_KEY}."):
            name = key.removeprefix(f"{_KEY}.") or DEFAULT
            if name in found and found[name] != value:
                raise ValueError(f"chat template {name!r} stands there twice: {_KEY} and {key}")
            found[name] = value
    if bad := [name for name, value in found.items() if not isinstance(value, str)]:
        raise ValueError(f"chat template {bad[0]!r} must be a text")
    return found


def as_setting(templates: Mapping[str, str]) -> str | list[dict[str, str]]:
    """What `chat_template` of a tokenizer_config.json holds for them."""
    if set(templates) == {DEFAULT}:
        return templates[DEFAULT]
    return [{"name": name, "template": text} for name, text in templates.items()]
