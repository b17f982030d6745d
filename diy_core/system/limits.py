"""How much a file from outside may ask of this program, in memory and in time.

What comes with a checkpoint or a config was written by somebody else, and half a kilobyte can ask
for all memory. Each limit is far above what honest files need. One way raises any of them:

    DIY_LIMITS=template_seconds=60,yaml_items=100000 diy-torch generate ...

docs/limits.md lists them for users; a test holds the two together.
"""

from __future__ import annotations

import functools
import os

VARIABLE = "DIY_LIMITS"
_DEFAULTS = {
    "file_bytes": 64 << 20,  # a file that is read whole; a tokenizer.json has up to 35 MB
    "config_bytes": 1 << 18,
    # Of the largest Llama (126 layers) header and index have 0.15 MB; Python needs 20 times that.
    "header_bytes": 2 << 20,
    "json_depth": 100,
    "json_items": 4_000_000,  # 262,144 tokens and 514,000 merges in pairs are 3,200,000
    "document_bytes": 128 << 20,  # a text for training; it is tokenised at 100 bytes a token
    "record_bytes": 24 << 20,  # a line of JSON; with one rare character it takes 4 times that
    "record_items": 500_000,  # beside its texts; each takes up to 200 bytes
    "parquet_footer": 8 << 20,  # bytes; as many row groups and columns take 20 times that
    "parquet_bytes": 192 << 20,  # of memory for a batch of rows, beside 8 times what it has on disk
    "yaml_bytes": 1 << 17,  # Python reads 0.13 MB in a second, and each file several times
    "yaml_items": 10_000,  # with all aliases written out
    "yaml_depth": 32,
    "gguf_bytes": 80 << 20,  # of metadata; with 262,144 tokens and the tokenizer's files 50 MB
    "gguf_items": 2_000_000,  # in lists; 262,144 tokens, their types and merges are 1,100,000
    "gguf_entries": 10_000,  # of metadata
    "gguf_tensors": 20_000,
    "tokenizer_seconds": 2,  # of a processor, for the text that each tokenizer is tried on
    "tokenizer_bytes": 256 << 20,  # of memory
    "tokenizer_output": 1 << 18,  # characters that all of its steps write, of 4,000
    "template_characters": 1 << 18,
    "template_seconds": 3,  # of a processor, for one text
    "template_bytes": 256 << 20,  # of memory; a text of 32 MB takes less
    "template_output": 1 << 24,  # characters of one text
    "prompt_bytes": 1 << 20,  # of a text to continue; tokenizing it takes 2 s and 250 bytes each
}


def limit(name: str) -> int:
    """The limit of that name, as the environment has it or by default.

    Raises:
        ValueError: the environment variable cannot be read.
    """
    return _limits(os.environ.get(VARIABLE, ""))[name]


def how_to_raise(name: str) -> str:
    """What an error says of a limit that was exceeded."""
    return f"if you trust the file, {VARIABLE}={name}=N raises the limit"


@functools.lru_cache(maxsize=4)
def _limits(text: str) -> dict[str, int]:
    limits = dict(_DEFAULTS)
    for word in filter(None, text.replace(" ", "").split(",")):
        name, _, value = word.partition("=")
        if name not in _DEFAULTS:
            raise ValueError(
                f"{VARIABLE}: there is no limit {name!r}; there are {', '.join(_DEFAULTS)}"
            )
        if not value.isdecimal() or not 0 < len(value) < 19:
            raise ValueError(f"{VARIABLE}: {name} must be a whole number, got {value!r}")
        limits[name] = int(value)
    return limits
