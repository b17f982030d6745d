"""Orbax for checkpoints of models and of training: the system's errors, arrays in chunks.

Only this file and `orbax_store.py` call Orbax, through its v1 interface.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from orbax.checkpoint import v1 as ocp

from diy_core.checkpoints.orbax.tree import require_regular_tree
from diy_core.mapping import flatten, unflatten
from diy_core.system.memory import returning_buffers
from diy_core.system.translated import translated, words_of

# Orbax keeps an array as one chunk unless told otherwise, and then holds it several times.
_CHUNK = 16 << 20  # bytes
READING = threading.Lock()  # reports are switched off for the whole process
_NOBODY_WAITS = "Event loop is closed"  # for the rest of what failed
_PATIENCE = 50  # tenths of a second that a failed write may go on for


def save_tree(path: Path, parts: Iterable[Any]) -> None:
    """Write a nested dict of numpy arrays, part by part; `path` must not exist.

    Raises:
        OSError: the disk is full, ...
    """
    path = path.absolute()  # Orbax silently finds nothing at a relative path
    with without_reports(), plain_errors(path), settled(path.parent), context():
        for part in parts:
            ocp.partial.save(path, part)
        ocp.partial.finalize(path)


def load_tree(path: Path, layout: Any) -> Any:
    """The arrays of a nested dict of `Stored`, as numpy, each in the dtype of its `Stored`.

    Orbax silently casts what is of another dtype: whoever reads compares with a sum.

    Raises:
        CheckpointError: Orbax cannot read them.
    """
    path = path.absolute()  # Orbax silently finds nothing at a relative path
    wanted: dict[tuple[str, ...], Any] = {
        (kind, name): np.empty(stored.shape, stored.dtype)
        for kind, leaves in layout.items()
        for name, stored in leaves.items()
    }
    require_regular_tree(path)
    with as_unreadable(path), READING, returning_buffers(), without_reports(), context():
        loaded = ocp.load(path, unflatten(wanted))
    return {
        kind: {name: np.asarray(leaf) for name, leaf in leaves.items()}
        for kind, leaves in loaded.items()
    }


def names_in_tree(path: Path) -> list[tuple[str, ...]]:
    """The paths of all arrays in a tree, of which none is read.

    Raises:
        CheckpointError: Orbax cannot read it.
    """
    path = path.absolute()  # Orbax silently finds nothing at a relative path
    require_regular_tree(path)
    with as_unreadable(path), without_reports():
        found = ocp.metadata(path).metadata
        if not isinstance(found, Mapping):  # it failed without an error
            raise ValueError(f"it finds no arrays: {found!r:.200}")
    return list(flatten(found))


@contextlib.contextmanager
def plain_errors(path: Path) -> Iterator[None]:
    """The system's error instead of a ValueError that has it among a thousand other characters."""
    try:
        yield
    except ValueError as error:
        if code := re.search(r"\[os_error_code='(\d+)'\]", str(error)):
            raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from error
        raise


@contextlib.contextmanager
def settled(folder: Path) -> Iterator[None]:
    """After an error, wait for Orbax's other writes, which would make removed folders anew."""
    try:
        yield
    except BaseException:
        seen: list[tuple[str, int]] = []
        for _ in range(_PATIENCE):
            time.sleep(0.1)
            now = [(name, len(files)) for name, _, files in os.walk(folder)]
            if now == seen:
                break
            seen = now
        raise


@contextlib.contextmanager
def without_reports() -> Iterator[None]:
    """Orbax raises an error, and also prints it from each of its threads, hundreds of lines of it.

    After an error it stays so: what went on beside the thing that failed may end at any time.
    """
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    usual, usual_of_threads = sys.unraisablehook, sys.excepthook
    if _is_no_report in loggers[0].filters:  # inside of another, or after an error
        yield
        return

    def hook(unraisable: sys.UnraisableHookArgs) -> None:
        if str(unraisable.exc_value) != _NOBODY_WAITS:
            usual(unraisable)

    def hook_of_threads(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        """Threads of C++ report here what they cannot raise."""
        if str(error) != _NOBODY_WAITS:
            usual_of_threads(kind, error, trace)

    for logger in loggers:
        logger.addFilter(_is_no_report)
    sys.unraisablehook, sys.excepthook = hook, hook_of_threads
    yield
    for logger in loggers:
        logger.removeFilter(_is_no_report)
    sys.unraisablehook, sys.excepthook = usual, usual_of_threads


def _is_no_report(record: logging.LogRecord) -> bool:
    return record.exc_info is None and "Failed to get metadata" not in record.getMessage()


def as_unreadable(path: Path, advice: str = "") -> translated:
    """Inside, an error of Orbax is one of the checkpoint, and says what to do.

    Args:
        path: the checkpoint.
        advice: what to do.
    """

    def said(error: BaseException) -> str:
        return f"Orbax cannot read it: {words_of(error).split(' [tensorstore_spec')[0]}{advice}"

    return translated(path, said)


def context() -> ocp.Context:
    """In which arrays are read in part, and written in chunks without compression."""
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    context.array.saving.storage_options.chunk_byte_size = _CHUNK
    # Weights hardly shrink, and compressing them takes half of the time.
    context.array.saving.use_compression = False
    return context
