"""Opening a checkpoint of any kind: recognised, and read by the reader of its kind."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from diy_core.checkpoints.hf.directory import HFReader
from diy_core.checkpoints.interface import Reader
from diy_core.checkpoints.kinds import KINDS, article, kind_of, refuse_kind
from diy_core.checkpoints.orbax.layout import config_directory
from diy_core.errors import CheckpointError, naming
from diy_core.system.places import as_path
from diy_core.system.shell import command
from diy_core.text.tokenizer import Tokenizer

MakeReader = Callable[..., Reader]


def _open_gguf(path: Path, **options: Any) -> Reader:
    from diy_core.checkpoints.gguf.reader import GGUFReader  # other kinds do without its library

    return GGUFReader(path, **options)


# Those that need no framework.
READERS: Mapping[str, MakeReader] = {"hf": HFReader, "gguf": _open_gguf}


def open_with(
    path: str | Path,
    readers: Mapping[str, MakeReader],
    *,
    config: str | Path | None = None,
    **options: Any,
) -> Reader:
    """A checkpoint, to read tensors from.

    Args:
        path: what was given.
        readers: by kind; a kind that is not among them is refused.
        config: of an Orbax checkpoint that has none: a config.json, or a directory with one.
        options: for the reader.

    Raises:
        CheckpointError: it is not a checkpoint, is of a kind without a reader, or is damaged; or a
            config was given for a kind other than Orbax. The message says what it is and what
            to do.
    """
    path = as_path(path)
    kind = kind_of(path)
    refuse_kind(path, kind, readers, config)
    if config is not None:
        if kind != "orbax":
            raise CheckpointError(
                path,
                f"is {article(KINDS[kind])} {KINDS[kind]}, which has a config of its own: leave "
                "config out",
            )
        options["config"] = config
    return readers[kind](path, **options)


def tokenizer_of(path: str | Path) -> Tokenizer:
    """The tokenizer of a checkpoint of any kind.

    Raises:
        CheckpointError: it is not a checkpoint, it has no tokenizer, or one that cannot be read.
    """
    path = Path(path)
    kind = kind_of(path)
    if kind == "hf":
        return Tokenizer.from_pretrained(path)
    if kind == "orbax":
        return Tokenizer.from_pretrained(config_directory(path))
    with tempfile.TemporaryDirectory() as folder, naming(Path(folder), path):
        reader = _open_gguf(path)
        reader.copy_side_files(Path(folder))
        if not (Path(folder) / "tokenizer.json").is_file():
            why = next((note for note in reader.notes if "tokenizer" in note), "has no tokenizer")
            making = command("parity", "convert", path, "DIR", "--to", "hf")
            raise CheckpointError(path, f"{why}; `{making}` makes a directory to put it into")
        return Tokenizer.from_pretrained(folder, where=path)
