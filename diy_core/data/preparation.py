"""Tokenise once: sources to a directory of token files.

The work is cut into shards, each tokenised by whichever process is free and kept beside the output.
A run that was killed or interrupted goes on with the shards that are missing; the output appears
whole at the end.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import multiprocessing
import multiprocessing.connection
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import tokenizers
from rich.console import Console
from rich.progress import Progress

from diy_core.checkpoints.atomic import atomic_directory, recover
from diy_core.data.encoding import Encoder
from diy_core.data.files import DESCRIPTION, FORMAT, DataError
from diy_core.data.merge import merge
from diy_core.data.shards import Reading, is_whole, save, shard_file, tokenise
from diy_core.data.sources import Part, Source, find, plan, unused, with_escapes
from diy_core.data.token_data import TokenData

_PLAN = "plan.json"


def prepare(
    sources: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    tokenizer: str | Path,
    validation: float = 0.0,
    separator: str | None = None,
    field: str = "text",
    workers: int = 1,
    overwrite: bool = False,
    progress: bool = False,
) -> TokenData:
    r"""Tokenise sources into a directory that `TokenData` opens.

    The output depends on the sources, the tokenizer and the options, to the byte; not on `workers`.
    Documents that hold nothing but white space are left out.

    Args:
        sources: files, directories (what ends in .txt, .md, .jsonl, .ndjson, .parquet below them),
            patterns (`**` too), or `builtin:pydoc`, the help texts of Python. A text file is one
            document. A line of a JSONL file and a row of a parquet file is one: a text, or a chat
            in `messages`.
        out: the directory to write. The shards are kept in `.OUT.parts` beside it meanwhile.
        tokenizer: a Hugging Face directory, or "bytes" (ids 0 to 255, and 256 ends a document).
        validation: share of the documents that goes to `out/validation`, at least one. They are
            those whose tokens have the smallest hashes, so equal documents stay together and the
            order does not matter.
        separator: what stands between the documents of a text file; `\n`, `\r` and `\t` are
            understood, as one types them in a shell.
        field: where JSONL and parquet hold the text.
        workers: processes. They are spawned: a script that asks for more than one needs
            `if __name__ == "__main__":`.
        overwrite: replace prepared data at `out`.
        progress: say on standard error what goes on: a bar on a terminal, and what a separator did
            not separate.

    Raises:
        DataError: a source that is missing, empty or cannot be read, with its place; no documents;
            `out` exists, or another process prepares it.
        CheckpointError: no readable tokenizer.
        ValueError: an option out of range.
    """
    if not 0 <= validation < 1:
        raise ValueError(f"validation must be a share from 0 up to 1, got {validation}")
    if workers < 1:
        raise ValueError(f"workers must be 1 or more, got {workers}")
    if separator == "":
        raise ValueError("separator must not be empty: None makes each text file one document")
    separator = None if separator is None else with_escapes(separator)
    out = Path(os.path.realpath(out))
    _check_target(out, overwrite)
    encoder = Encoder(tokenizer)
    paths = find(sources)
    files, shards = plan(paths, separator)
    if progress and separator and (said := unused(paths, separator)):
        print(said, file=sys.stderr)
    reading = Reading(separator, field)
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = out.with_name(f".{out.name}.parts")
    with _locked(folder):
        _begin_or_go_on(folder, _settings(encoder, reading, files))
        todo = {i: shard for i, shard in enumerate(shards) if not is_whole(shard_file(folder, i))}
        console = Console(stderr=True)
        with Progress(console=console, disable=not (progress and console.is_terminal)) as bar:
            sizes = [sum(part.size for part in shard) for shard in shards]
            done = sum(sizes) - sum(sizes[i] for i in todo)
            task = bar.add_task("tokenising", total=sum(sizes), completed=done)
            for i in _tokenise_all(todo, folder, tokenizer, encoder, reading, workers):
                bar.advance(task, sizes[i])
        with atomic_directory(out, overwrite=overwrite) as temporary:
            merge(
                [shard_file(folder, i) for i in range(len(shards))],
                temporary,
                validation,
                {
                    "tokenizer": encoder.hash,
                    "vocab_size": encoder.vocab_size,
                    "end_token_ids": encoder.end_token_ids,
                    "sources": [dataclasses.asdict(file) for file in files],
                },
            )
        shutil.rmtree(folder)
    return TokenData(out)


def _check_target(out: Path, overwrite: bool) -> None:
    recover(out)
    if not out.exists():
        return
    if not overwrite:
        raise DataError(out, "exists already: --overwrite (overwrite=True) replaces it")
    if not out.is_dir() or (any(out.iterdir()) and not (out / DESCRIPTION).is_file()):
        raise DataError(out, f"is not replaced: it has no {DESCRIPTION}, so it is no prepared data")


def _settings(encoder: Encoder, reading: Reading, files: Sequence[Source]) -> str:
    """All that decides about a shard's bytes."""
    settings = {
        "format": FORMAT,
        "tokenizers": tokenizers.__version__,
        "tokenizer": encoder.hash,
        "vocab_size": encoder.vocab_size,
        "end_token_ids": encoder.end_token_ids,
        "chat_template": encoder.chat_template,
        "special_tokens": encoder.special_tokens,
        "reading": dataclasses.asdict(reading),
        "sources": [dataclasses.asdict(file) for file in files],
    }
    return json.dumps(settings, indent=1)


def _begin_or_go_on(folder: Path, settings: str) -> None:
    """Keep the shards of a run with the same settings; those of any other are dropped."""
    file = folder / _PLAN
    if file.is_file() and file.read_text(encoding="utf-8") == settings:
        return
    file.unlink(missing_ok=True)
    for old in folder.iterdir():
        old.unlink()
    file.write_text(settings, encoding="utf-8")


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """The folder, for one process at a time; the system drops the lock when the process ends."""
    folder.mkdir(exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(folder, "another process is preparing this data: wait for it") from None
        yield
    finally:
        os.close(descriptor)


def _tokenise_all(
    shards: dict[int, list[Part]],
    folder: Path,
    tokenizer: str | Path,
    encoder: Encoder,
    reading: Reading,
    workers: int,
) -> Iterator[int]:
    """Make the files of the shards; yields their numbers in order. The first fault is raised."""
    if workers == 1 or len(shards) < 2:
        for i, parts in shards.items():
            save(tokenise(parts, encoder, reading), shard_file(folder, i))
            yield i
        return
    executor = ProcessPoolExecutor(
        min(workers, len(shards)),
        mp_context=multiprocessing.get_context("spawn"),  # a fork would copy locks that are held
        initializer=_start_worker,
        initargs=(tokenizer, reading, folder),
    )
    try:
        with _interrupts_blocked():
            futures = {i: executor.submit(_work, i, parts) for i, parts in shards.items()}
        for i, future in futures.items():
            future.result()
            yield i
    finally:
        # After Ctrl-C or a fault each worker ends the shard at hand, which is kept.
        executor.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Workers are started in here and inherit the mask: Ctrl-C, sent to all, is the parent's."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_worker: tuple[Encoder, Reading, Path]


def _start_worker(tokenizer: str | Path, reading: Reading, folder: Path) -> None:
    global _worker
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker = Encoder(tokenizer), reading, folder


def _end_with_parent() -> None:
    """A parent that is killed cannot say so, and its workers would wait for it forever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def _work(index: int, parts: Sequence[Part]) -> None:
    encoder, reading, folder = _worker
    save(tokenise(parts, encoder, reading), shard_file(folder, index))
