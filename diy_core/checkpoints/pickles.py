"""Pickled weights, told apart from other files whose names end as theirs do."""

from __future__ import annotations

from pathlib import Path

from diy_core.system.outside import open_regular

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_BEGINNINGS = (b"PK", b"\x80")  # of torch's archives; of a plain pickle, as torch 1.5 wrote them


def is_pickle(file: Path) -> bool:
    """True for pickled weights, by name; `.bin` means anything, so where no model is named, it is
    told by how the file begins."""
    if file.suffix not in PICKLES:
        return False
    if file.suffix != ".bin" or "model" in file.name or not file.is_file():
        return True
    with open_regular(file) as stream:
        return stream.read(2).startswith(_BEGINNINGS)
