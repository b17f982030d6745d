"""tokenizer.json as JSON: what is asked of it before the `tokenizers` library runs it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from diy_core.errors import CheckpointError
from diy_core.system.lfs import refuse_lfs_pointer
from diy_core.system.outside import read_bytes
from diy_core.system.parsing import parse_json
from diy_core.text.tokens import token_of

FILE = "tokenizer.json"
BYTE_LEVEL = '"ByteLevel"'  # what a text that holds it splits by, somewhere


def read_text(file: Path) -> str:
    """The content of a tokenizer.json.

    Raises:
        CheckpointError: it cannot be read.
    """
    refuse_lfs_pointer(file)
    try:
        return read_bytes(file).decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(file, f"is not a readable tokenizer: {error}") from error


def parse(file: Path, text: str) -> dict[str, Any]:
    """The same as JSON.

    Raises:
        CheckpointError: it is not JSON, or none of a tokenizer.
    """
    state = parse_json(text, file, said="is not a readable tokenizer")
    if not isinstance(state, dict) or not isinstance(state.get("model"), dict):
        raise CheckpointError(file, "is not a readable tokenizer: it has no model")
    return state


def own_tokens(file: Path, state: Mapping[str, Any]) -> dict[int, AddedToken]:
    """The added tokens by id.

    Raises:
        CheckpointError: an entry that is not a token with an id.
    """
    own = {}
    for entry in state.get("added_tokens") or []:
        token = token_of(file, "added_tokens", entry)
        if isinstance(token, str) or not isinstance(entry.get("id"), int):
            raise CheckpointError(file, f"added_tokens must have objects with an id, got {entry!r}")
        own[entry["id"]] = token
    return own


def without_words(state: Mapping[str, Any]) -> str:
    """A tokenizer.json whose model is empty: reading a large one takes seconds."""
    empty = {"type": "BPE", "vocab": {}, "merges": []}
    return json.dumps({**state, "model": empty, "added_tokens": []})


def vocabulary_of(
    file: Path, state: Mapping[str, Any], name: str
) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges: what a class that is built anew keeps of the model.

    Raises:
        CheckpointError: the model is not BPE, as all of those classes are.
    """
    model = state["model"]
    kind = model.get("type") or ("BPE" if "merges" in model else None)  # old files name none
    if kind != "BPE":
        raise CheckpointError(
            file,
            f"has a {kind} model, and the tokenizer class {name} is a BPE: name "
            "PreTrainedTokenizerFast in tokenizer_config.json to take the file at its word",
        )
    try:
        pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
        return dict(model["vocab"]), [(left, right) for left, right in pairs]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(file, f"has no readable vocabulary and merges: {error!r}") from error
