"""Reading the files that stand around `tokenizer.json` in a Hugging Face directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diy_core.lfs import refuse_lfs_pointer
from diy_core.system.outside import is_there, read_bytes
from diy_core.system.parsing import parse_object

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
    return parse_object(read_bytes(file), file)


def other_kind(path: Path) -> str:
    """What the directory has instead, for the error."""
    for name in VOCABULARIES:
        if is_there(path / name):
            return (
                f", only {name}: transformers' AutoTokenizer.from_pretrained(...)"
                ".save_pretrained(...) turns it into one"
            )
    return ""
