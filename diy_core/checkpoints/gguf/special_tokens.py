"""The special tokens that a GGUF file names by id, known even where its tokenizer is not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diy_core.system.json_file import write_json

_ROLE_KEYS = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}
# What llama.cpp takes where a file of these models is silent.
_UNSAID = {"llama": {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}}


class SpecialTokens:
    """The ids in the `tokenizer.ggml.*` entries, checked.

    Args:
        metadata: the file's entries by name.
        count: of tokens: ids are below it.

    Attributes:
        by_role: ids by role, `bos_token` and so on, where the file names one.
        ends: what ends a generation: the end of the text, and that of a turn.
        notes: ids beyond the tokens, which stand for nothing and are left out.

    Raises:
        ValueError: an id that is not an integer.
    """

    def __init__(self, metadata: Mapping[str, Any], count: int) -> None:
        self.notes: list[str] = []
        self._metadata, self._count = metadata, count
        self._unsaid = _UNSAID.get(str(metadata.get("tokenizer.ggml.model")), {})
        ids = {role: self.id(key) for role, key in _ROLE_KEYS.items()}
        self.by_role = {role: token_id for role, token_id in ids.items() if token_id is not None}
        ends = [self.id("eos_token_id"), self.id("eot_token_id")]
        self.ends = list(dict.fromkeys(token_id for token_id in ends if token_id is not None))

    def id(self, key: str) -> int | None:
        """The id under `tokenizer.ggml.KEY`; None: the file names none, or none that is a token."""
        value = self._metadata.get(f"tokenizer.ggml.{key}", self._unsaid.get(key))
        if value is None:
            return None
        words = f"tokenizer.ggml.{key} is {value!r}, and ids are 0 to {self._count - 1}"
        if not isinstance(value, int):
            raise ValueError(words)
        if 0 <= value < self._count:
            return value
        if (note := f"{words}: it was left out") not in self.notes:
            self.notes.append(note)
        return None

    def in_config(self) -> dict[str, int]:
        """What a config.json says of them."""
        roles = ("bos_token", "eos_token", "pad_token")
        return {f"{role}_id": self.by_role[role] for role in roles if role in self.by_role}

    def write(self, directory: Path) -> None:
        """Write generation_config.json: what begins, ends and pads, a turn's end included."""
        ids = {
            "bos_token_id": self.by_role.get("bos_token"),
            "eos_token_id": self.ends[0] if len(self.ends) == 1 else self.ends or None,
            "pad_token_id": self.by_role.get("pad_token"),
        }
        known = {key: value for key, value in ids.items() if value is not None}
        if known:
            write_json(directory / "generation_config.json", known)
