"""Between any two kinds of checkpoint on disk.

No framework is imported for Hugging Face directories and GGUF files; Orbax needs JAX.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from diy_core.checkpoints.dtypes import dtype_of
from diy_core.checkpoints.gguf.reader import GGUFReader
from diy_core.checkpoints.gguf.writer import GGUFWriter
from diy_core.checkpoints.hf.directory import HFReader
from diy_core.checkpoints.hf.side_files import SIDE_NAMES
from diy_core.checkpoints.hf.writer import MAX_SHARD_SIZE, HFWriter
from diy_core.checkpoints.interface import Reader, Writer
from diy_core.checkpoints.kinds import KINDS, article, kind_of, require_name
from diy_core.checkpoints.transfer import Progress, Summary, transfer
from diy_core.errors import CheckpointError, listed
from diy_core.system.held import real
from diy_core.system.places import as_path, place
from diy_core.system.requirements import require

__all__ = ["KINDS", "READERS", "WRITERS", "convert", "default_kind", "kind_of", "open_checkpoint"]


def _orbax() -> ModuleType:
    require("an Orbax checkpoint", "jax", "flax", "orbax", extra="jax")
    from diy_jax import orbax_store

    return orbax_store


def _orbax_reader(path: Path, **options: Any) -> Reader:
    reader: Reader = _orbax().OrbaxReader(path, **options)
    return reader


def _orbax_writer(path: Path, *arguments: Any, **options: Any) -> Writer:
    writer: Writer = _orbax().OrbaxWriter(path, *arguments, **options)
    return writer


READERS: dict[str, Callable[..., Reader]] = {
    "hf": HFReader,
    "orbax": _orbax_reader,
    "gguf": GGUFReader,
}
WRITERS: dict[str, Callable[..., Writer]] = {
    "hf": HFWriter,
    "orbax": _orbax_writer,
    "gguf": GGUFWriter,
}


def open_checkpoint(
    path: str | Path, *, untie: bool = False, config: str | Path | None = None
) -> Reader:
    """A checkpoint of any kind, recognised, to read tensors from.

    Args:
        path: a Hugging Face directory, an Orbax checkpoint or a GGUF file.
        config: of an Orbax checkpoint that has none: a config.json, or a directory with one.
        untie: give a model whose head is tied to the embedding a head of its own.

    Raises:
        NotInstalled: it is an Orbax checkpoint, and JAX is not installed.
        CheckpointError: it is none of them, or it is damaged; or another kind than Orbax was given
            a config.
    """
    kind = kind_of(path)
    options = {} if config is None else {"config": config}
    if options and kind != "orbax":
        raise CheckpointError(
            path,
            f"is {article(KINDS[kind])} {KINDS[kind]}, which has a config of its own: leave "
            "config out",
        )
    return READERS[kind](path, untie=untie, **options)


def convert(
    source: str | Path,
    destination: str | Path,
    *,
    to: str | None = None,
    dtype: str | None = None,
    max_shard_size: int | None = None,
    overwrite: bool = False,
    verify: bool = True,
    untie: bool = False,
    config: str | Path | None = None,
    strict: bool = False,
    progress: Progress = lambda what, done, total: None,
) -> Summary:
    """From any kind of checkpoint to any other, a group of tensors at a time.

    Args:
        source: a Hugging Face directory, an Orbax checkpoint or a GGUF file; it is recognised.
        destination: written whole or not at all.
        to: `hf`, `orbax` or `gguf`. None: `gguf` where the destination ends in `.gguf`, `orbax`
            for a Hugging Face directory, else `hf`.
        dtype: of all tensors, `float32`, `bfloat16`, ...; None keeps each as it is.
        max_shard_size: bytes of one safetensors file of a Hugging Face directory; None: 5 GB.
        overwrite: replace an existing destination of that kind.
        verify: check the source against its manifest if it has one, and read everything back
            before it moves into place.
        untie: give a model whose head is tied to the embedding a head of its own.
        config: of an Orbax checkpoint that has none: a config.json, or a directory with one and
            the tokenizer.
        strict: refuse a source that is odd; else what was odd is in the summary's `notes`.
        progress: called often, with what is done, and bytes of how many.

    Returns:
        What was written: tensors, bytes, seconds, and notes.

    Raises:
        NotInstalled: an Orbax checkpoint, where JAX is not installed.
        CheckpointError: a source that is damaged, a value that `dtype` cannot hold, or a
            destination that is in the way. Nothing is left behind then.
        ValueError: an unknown kind or dtype, or a destination that is named as another kind.
    """
    source, destination = as_path(source, "source"), place(destination, "destination")
    reader = open_checkpoint(source, untie=untie, config=config)
    kind = to or default_kind(reader.kind, destination)
    if kind not in WRITERS:
        raise ValueError(
            f"to={kind!r} is not a kind of checkpoint: choose one of {listed(sorted(WRITERS))}"
        )
    if kind != "gguf" and destination.suffix == ".gguf":
        raise ValueError(
            f"{destination} is the name of a GGUF file: leave to={kind!r} or the .gguf out"
        )
    if kind != "hf" and max_shard_size is not None:
        raise ValueError(
            f"max_shard_size ({max_shard_size}) is of Hugging Face directories, and {destination} "
            f"becomes {article(KINDS[kind])} {KINDS[kind]}, without shards: leave it out"
        )
    require_name(destination, kind)
    if real(destination) in {real(file) for file in (source, *reader.files)}:
        raise CheckpointError(destination, "is the source itself")
    if source.is_dir() and real(destination).is_relative_to(real(source)):
        raise CheckpointError(
            destination,
            f"lies inside of the source, {source}, which stays as it is: choose a "
            "place outside of it",
        )
    if destination.is_dir() and real(source).is_relative_to(real(destination)):
        raise CheckpointError(
            destination, f"holds the source, {source}, and would be replaced: choose another place"
        )
    options: dict[str, Any] = {"overwrite": overwrite}
    if kind == "hf":
        # A former model's tokenizer does not stay: it would be taken for the new one's.
        options |= {"max_shard_size": max_shard_size or MAX_SHARD_SIZE, "drop": SIDE_NAMES}
    return transfer(
        reader,
        functools.partial(WRITERS[kind], destination, **options),
        dtype=None if dtype is None else dtype_of(dtype),
        verify=verify,
        strict=strict,
        progress=progress,
    )


def default_kind(source: str, destination: Path) -> str:
    """What a destination becomes where nobody says it."""
    if destination.suffix == ".gguf":
        return "gguf"
    return "orbax" if source == "hf" else "hf"
