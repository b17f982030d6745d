"""The ids that end a generation, and the one that fills short rows."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from diy_core.errors import CheckpointError
from diy_core.text.backend import Backend
from diy_core.text.tokenizer_files import read_json

_NONE = -1  # what SentencePiece, and the first Llama's config.json, write for "no such token"


@dataclasses.dataclass(frozen=True)
class Ends:
    """What the files say, without ids that no model of theirs can give.

    Attributes:
        eos: every id that ends a generation.
        pad: the id that fills short rows, or None.
        notes: which ids were dropped.
    """

    eos: list[int]
    pad: int | None
    notes: list[str]


def read_ends(path: Path, backend: Backend) -> Ends:
    """Read both out of the config files and the special tokens.

    Where generation_config.json is silent, config.json speaks: so does transformers.

    Raises:
        CheckpointError: something that is not an id.
    """
    values = read_json(path / "config.json")
    rows = values.get("vocab_size")
    for key, value in read_json(path / "generation_config.json").items():
        if value is not None:
            values[key] = value
    ids = {
        role: backend.tokenizer.token_to_id(text) for role, text in backend.special_tokens.items()
    }
    eos = values.get("eos_token_id")
    pad = ids.get("pad_token", values.get("pad_token_id"))
    limit = rows if isinstance(rows, int) else backend.tokenizer.get_vocab_size()
    notes: list[str] = []
    found = {
        name: _within(_token_ids(path, name, value), name, limit, notes)
        for name, value in (
            ("eos_token_id", ids.get("eos_token") if eos is None else eos),
            ("pad_token_id", pad),
        )
    }
    return Ends(found["eos_token_id"], next(iter(found["pad_token_id"]), None), notes)


def _token_ids(path: Path, name: str, value: Any) -> list[int]:
    """The ids of an entry that may be an integer, a list, or null."""
    values = value if isinstance(value, list) else [] if value is None else [value]
    if any(isinstance(i, bool) or not isinstance(i, int) or i < _NONE for i in values):
        raise CheckpointError(path, f"{name} must be a token id or a list of them, got {value!r}")
    return values


def _within(ids: list[int], name: str, limit: int, notes: list[str]) -> list[int]:
    """The ids that the model has a row for; of the others, a note."""
    if _NONE in ids:
        notes.append(f"{name} is {_NONE}, which is not a token: it was left out")
    if beyond := [i for i in ids if i >= limit]:
        notes.append(
            f"{name} {', '.join(map(str, beyond))} was left out: it is beyond the vocabulary of "
            f"{limit} and can never be generated"
        )
    return [i for i in ids if 0 <= i < limit]
