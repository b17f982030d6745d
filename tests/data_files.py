"""Sources and prepared data as the tests of data make and read them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from diy_core.data import TokenData
from tests.tiny_checkpoints import put_tokenizer

END = "<|end|>"


def tokenizer(path: Path, *, vocab_size: int | None = None, end: str | None = END) -> Path:
    """A byte-level tokenizer with a few merges, of a model with this vocab_size."""
    path.mkdir()
    put_tokenizer(path, eos_token=end)
    if vocab_size is not None:
        (path / "config.json").write_text(json.dumps({"vocab_size": vocab_size}))
    return path


def texts(data: TokenData) -> list[str]:
    """The documents of byte-tokenised data; each must end with 256 and hold no other."""
    rows = [data[i].tolist() for i in range(len(data))]
    assert all(row[-1] == 256 and 256 not in row[:-1] for row in rows)
    return [bytes(row[:-1]).decode() for row in rows]


def files(path: Path) -> dict[str, str]:
    found = sorted(p for p in path.rglob("*") if p.is_file())
    return {str(p.relative_to(path)): hashlib.sha256(p.read_bytes()).hexdigest() for p in found}


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
