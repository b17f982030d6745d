"""A checkpoint of any kind as the Hugging Face directory that a check reads."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from diy_core.checkpoints.manifest import MANIFEST
from diy_core.errors import naming
from diy_core.notes import settle
from parity.convert.formats import convert, kind_of


@contextlib.contextmanager
def as_directory(path: str | Path) -> Iterator[Path]:
    """Inside, a Hugging Face directory: the one that was given, or a temporary conversion.

    Raises:
        CheckpointError: it is not a checkpoint, or a damaged one.
    """
    if kind_of(path) == "hf":
        yield Path(path)
        return
    with tempfile.TemporaryDirectory(prefix="parity-") as folder:
        directory = Path(folder) / "model"
        with naming(directory, Path(path)):
            done = convert(path, directory, to="hf")
            settle(path, done.notes)
            if not done.source_verified:  # sums of our own making would agree with anything
                (directory / MANIFEST).unlink()
            yield directory
