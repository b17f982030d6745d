"""What the name of a file says: the kind of its content, and how it is packed."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

KINDS = {".txt": "text", ".md": "text", ".jsonl": "jsonl", ".ndjson": "jsonl"}
KINDS |= {".jsonlines": "jsonl", ".parquet": "parquet", ".pq": "parquet", ".json": "json"}
PACKINGS = {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd", ".bz2": "bzip2", ".xz": "xz"}
# Several files in one, or packed in a way that is not read.
_ARCHIVES = {".zip", ".tar", ".tgz", ".tbz", ".tbz2", ".txz", ".tzst", ".7z", ".rar"}
_ARCHIVES |= {".z", ".lz", ".lz4", ".lzma", ".lzo", ".br", ".sz"}


@dataclass(frozen=True)
class Form:
    """The form of a file.

    Attributes:
        kind: `text`, `jsonl`, `json` (lines, or something else: its content says so), `parquet`;
            `archive`: it has to be unpacked first; None: the ending says nothing.
        packing: a value of `PACKINGS`, or "" for a file that is not packed.
        ending: such as `.jsonl.gz`.
    """

    kind: str | None
    packing: str
    ending: str


def form_of(path: str | Path) -> Form:
    """The form of a file by its name alone."""
    name = os.path.basename(os.fspath(path).rstrip("/")).lower()
    packed = _suffix(name)
    packing = PACKINGS.get(packed, "")
    inner = _suffix(name.removesuffix(packed) if packing else name)
    ending = inner + packed if packing else inner
    if inner in _ARCHIVES:
        return Form("archive", "", ending)
    return Form(KINDS.get(inner), packing, ending)


def _suffix(name: str) -> str:
    """As `Path.suffix`, in a tenth of its time: this is asked many times of each file."""
    at = name.rfind(".")
    return name[at:] if 0 < at < len(name) - 1 else ""
