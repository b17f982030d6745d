"""Reading the files that stand around `tokenizer.json` in a Hugging Face directory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diy_core.errors import CheckpointError

ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def token_ids(path: Path, name: str, value: Any) -> list[int]:
    """The ids of a config entry that may be an integer, a list, or null."""
    values = value if isinstance(value, list) else [] if value is None else [value]
    if any(isinstance(i, bool) or not isinstance(i, int) or i < 0 for i in values):
        raise CheckpointError(path, f"{name} must be a token id or a list of them, got {value!r}")
    return values


def special_tokens(settings: Mapping[str, Any]) -> dict[str, str]:
    """Text by role; a token is written as its text or as an object with `content`."""
    found = {role: settings.get(role) for role in ROLES}
    texts = {r: t.get("content") if isinstance(t, Mapping) else t for r, t in found.items()}
    return {role: text for role, text in texts.items() if isinstance(text, str)}


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object; an absent file is an empty one."""
    if not file.is_file():
        return {}
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(file, f"is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(file, f"must hold a JSON object, got {type(values).__name__}")
    return values


def other_kind(path: Path) -> str:
    """What the directory has instead, for the error."""
    for name in ("tokenizer.model", "vocab.json"):
        if (path / name).is_file():
            return (
                f", only {name}: transformers' AutoTokenizer.from_pretrained(...)"
                ".save_pretrained(...) turns it into one"
            )
    return ""
