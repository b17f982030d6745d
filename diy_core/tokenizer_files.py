"""Reading the files that stand around `tokenizer.json` in a Hugging Face directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from diy_core.errors import CheckpointError
from diy_core.lfs import refuse_lfs_pointer
from diy_core.system.outside import is_there, read_bytes

SETTINGS = "tokenizer_config.json"
# What tokenizers are stored as where there is no tokenizer.json, or beside it.
VOCABULARIES = (
    "tokenizer.model",
    "vocab.json",
    "tekken.json",
    "tiktoken.model",
    "spiece.model",
    "sentencepiece.model",
    "sentencepiece.bpe.model",
    "vocab.txt",
)
ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object; an absent file is an empty one.

    Raises:
        CheckpointError: something is there that cannot be read, or is no JSON object.
    """
    if not is_there(file):
        return {}
    refuse_lfs_pointer(file)
    return parse_object(file, read_bytes(file))


def parse_object(file: Path, content: bytes) -> dict[str, Any]:
    """A JSON object, out of the content of a file.

    Raises:
        CheckpointError: it is something else.
    """
    try:
        values = json.loads(content.decode("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CheckpointError(file, f"is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(file, f"must hold a JSON object, got {type(values).__name__}")
    return values


def other_kind(path: Path) -> str:
    """What the directory has instead, for the error."""
    for name in VOCABULARIES:
        if is_there(path / name):
            return (
                f", only {name}: transformers' AutoTokenizer.from_pretrained(...)"
                ".save_pretrained(...) turns it into one"
            )
    return ""
