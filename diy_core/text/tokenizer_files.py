"""Reading the files that stand around `tokenizer.json` in a Hugging Face directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diy_core.system.hub_cache import hint
from diy_core.system.lfs import refuse_lfs_pointer
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
_COPY = "; copy it from the model's source"
ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object; an absent file is an empty one.

    Raises:
        CheckpointError: something is there that cannot be read, or is not a JSON object.
    """
    if not is_there(file):
        return {}
    refuse_lfs_pointer(file)
    return parse_object(read_bytes(file), file)


def what_instead(path: Path) -> str:
    """What a directory without `tokenizer.json` has instead, and what to do, for the error."""
    if said := hint(path):
        return said
    for name in VOCABULARIES:
        if is_there(path / name):
            return (
                f", only {name}: transformers' AutoTokenizer.from_pretrained(...)"
                f".save_pretrained(...) turns it into one{_COPY}"
            )
    return _COPY
