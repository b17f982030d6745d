"""Shards tokenised by several processes. Ctrl-C lets each finish its own; a second one does not.

A packed file can only be unpacked from its beginning. One that makes several shards is unpacked
here, once, and its stretches are sent to whichever process is free.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path

from diy_core.data.contents import Contents
from diy_core.data.documents import Documents
from diy_core.data.encoding import Encoder
from diy_core.data.files import DataError
from diy_core.data.forms import form_of
from diy_core.data.shard_files import ShardFile
from diy_core.data.shards import Reading, tokenise
from diy_core.data.sources import Part
from diy_core.notes import CheckpointNote
from diy_core.system.stopping import STOPPING, code_of

_AHEAD = 2  # shards for each worker that are handed out: what is unpacked lies in memory
_Unpacked = Mapping[tuple[str, int], bytes]
_OF_THE_SYSTEM = (signal.SIG_DFL, signal.SIG_IGN)


def tokenise_all(
    shards: dict[int, tuple[ShardFile, list[Part]]],
    tokenizer: str | Path,
    reading: Reading,
    workers: int,
    done: Callable[[int], None],
    say: Callable[[str], None],
) -> None:
    """Make the files of the shards in `workers` processes. The first fault is raised.

    Args:
        shards: by number, the file to make and what it is made of.
        tokenizer: of `Encoder`; each process loads its own.
        reading: how sources are read.
        workers: processes.
        done: is told the number of each shard, in order.
        say: is told what an interrupt leads to.
    """
    others = set(multiprocessing.active_children())
    executor = ProcessPoolExecutor(
        min(workers, len(shards)),
        mp_context=multiprocessing.get_context("spawn"),  # a fork would copy locks that are held
        initializer=_start_worker,
        initargs=(tokenizer, reading),
    )

    def leave(number: int) -> None:
        if number != signal.SIGINT:  # which others than people may send twice
            return
        for worker in set(multiprocessing.active_children()) - others:
            worker.kill()

    def finish_first() -> None:
        i, future = pending.popleft()
        future.result()
        done(i)

    unpacker = _Unpacker([parts for _, parts in shards.values()])
    pending: deque[tuple[int, Future[None]]] = deque()
    try:
        for i, (file, parts) in shards.items():
            try:
                unpacked = unpacker.unpack(parts)
            except DataError as error:
                failed: Future[None] = Future()  # raised in its turn: the first fault is
                failed.set_exception(error)
                pending.append((i, failed))
                break
            with _interrupts_held():
                pending.append((i, executor.submit(_work, file, parts, unpacked)))
            if len(pending) >= _AHEAD * workers:
                finish_first()
        while pending:
            finish_first()
    except KeyboardInterrupt as error:
        with _on_interrupt(leave):
            atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)  # Python ends in peace
            again = " again" if code_of(error) == 128 + signal.SIGINT else ""
            say(f"\nfinishing the shards in hand; Ctrl-C{again} leaves at once")
            executor.shutdown(wait=True, cancel_futures=True)
        raise
    finally:
        with _on_interrupt(leave):  # after a fault too, the shards at hand are finished and kept
            executor.shutdown(wait=True, cancel_futures=True)


class _Unpacker:
    """Unpacks the files that several shards need, each once, as long as shards come in order."""

    def __init__(self, shards: Sequence[Sequence[Part]]) -> None:
        needed = Counter(path for parts in shards for path in {part.path for part in parts})
        often = (path for path, shards in needed.items() if shards > 1)
        self._shared = {path for path in often if form_of(path).packing}
        self._contents = Contents()

    def unpack(self, parts: Sequence[Part]) -> _Unpacked:
        """The stretches of these files that a shard is made of.

        Raises:
            DataError: of `Contents.read`.
        """
        return {
            (part.path, part.start): self._contents.read(
                part.path, part.start, part.stop, part.sha256
            )
            for part in parts
            if part.path in self._shared
        }


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Ctrl-C, sent to all, is the parent's, and takes effect when this is over.

    Workers that are started in here inherit the mask. The parent's other threads may not have it,
    and a signal that one of them takes would reach Python all the same.
    """
    received: list[int] = []
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with _on_interrupt(received.append):
            yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if received:
            signal.raise_signal(received[0])


@contextlib.contextmanager
def _on_interrupt(react: Callable[[int], None]) -> Iterator[None]:
    """What Ctrl-C and its like do inside; only the main thread can say so, and hears of it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in STOPPING}
    answered = [number for number in STOPPING if before[number] not in (None, *_OF_THE_SYSTEM)]
    for number in answered:
        signal.signal(number, lambda number, frame: react(number))
    try:
        yield
    finally:
        for number in answered:
            signal.signal(number, before[number])


_worker: tuple[Encoder, Documents]


def _start_worker(tokenizer: str | Path, reading: Reading) -> None:
    global _worker
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CheckpointNote)  # the parent has said them
        encoder = Encoder(tokenizer)
    reader = Documents(reading.separator, reading.field, encoder.template_names)
    _worker = encoder, reader


def _end_with_parent() -> None:
    """A parent that is killed cannot say so, and its workers would wait for it forever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def _work(file: ShardFile, parts: Sequence[Part], unpacked: _Unpacked) -> None:
    encoder, reader = _worker
    reader.contents.unpacked = unpacked
    file.save(tokenise(parts, encoder, reader))
