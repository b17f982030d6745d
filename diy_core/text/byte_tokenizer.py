"""The tokenizer that needs no files: a token for each byte, and one that ends a document.

A model that was trained with it gets them all the same, so that `generate` and transformers can ask
it: a `tokenizer.json` without merges, in GPT-2's writing of bytes as letters
(https://github.com/openai/gpt-2/blob/master/src/encoder.py, `bytes_to_unicode`).
"""

from __future__ import annotations

import json
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from diy_core.system.json_file import write_json
from diy_core.system.outside import read_bytes

BYTES = "bytes"  # what a config and the command line call it
END_TOKEN_ID = 256
_END_TOKEN = "<|endoftext|>"
_FILE = "tokenizer.json"
_MOST = 1 << 16  # bytes of it; those of other tokenizers are often megabytes


def write_byte_tokenizer(folder: Path) -> None:
    """Write the tokenizer files of a Hugging Face directory; a text that ends is followed by 256.

    Args:
        folder: exists; files of the same names are replaced.
    """
    (folder / _FILE).write_text(_backend().to_str(pretty=True) + "\n", encoding="utf-8")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": _END_TOKEN}
    write_json(folder / "tokenizer_config.json", settings)
    write_json(folder / "generation_config.json", {"eos_token_id": END_TOKEN_ID})


def is_byte_tokenizer(folder: Path) -> bool:
    """Whether the `tokenizer.json` of a directory is the one that is written here."""
    try:
        found = json.loads(read_bytes(folder / _FILE, _MOST))
    except ValueError:  # another one, which who reads it will say more about
        return False
    return bool(found == json.loads(_backend().to_str()))


def _backend() -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE(_letters(), []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([_END_TOKEN])
    return backend


def _letters() -> dict[str, int]:
    """The letter that stands for each byte: itself where it can be seen, else one from 256 on."""
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), 256)]
    unseen = [byte for byte in range(256) if byte not in seen]
    return {chr(byte): byte for byte in seen} | {chr(256 + i): b for i, b in enumerate(unseen)}
