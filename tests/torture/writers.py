"""Eight writers to one place at the same time, while somebody adds files there.

    python -m tests.torture writers --trials 200 --seed 0

With --overwrite all of them end well, without it one does. What is there at the end is the model of
one of those, whole; of the files that were added none is lost, and nothing is left beside.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from diy_core.checkpoints.transfer import check
from parity.convert.formats import convert, open_checkpoint
from tests.torture.common import (
    KINDS,
    TINY,
    Figures,
    content,
    put,
    remains,
    remove,
    target_of,
    write_model,
)
from tests.torture.forks import ForkServer

_WRITERS = 8
_ROUNDS = {"orbax": 20}  # in one of so many trials: JAX takes a second to start in each writer


def run(
    trials: int, seed: int, folder: Path, server: ForkServer, kinds: Sequence[str] = KINDS
) -> list[Figures]:
    """So many times eight writers of each kind, with --overwrite and without.

    Raises:
        AssertionError: a mixture, a loss, remains, or no clear error; it names what reproduces it.
    """
    crowd = _Crowd(folder, server)
    return [
        crowd.run(kind, max(2, trials // _ROUNDS.get(kind, 1)), seed, overwrite)
        for kind in kinds
        for overwrite in (True, False)
    ]


class _Crowd:
    """Writers, each with a model of its own, and one place for all of them."""

    def __init__(self, folder: Path, server: ForkServer) -> None:
        self.folder, self.server = folder, server
        self.sources = [write_model(folder / f"source-{i}", TINY, i) for i in range(_WRITERS)]
        self.contents = [content(open_checkpoint(source)) for source in self.sources]
        (folder / "kept").mkdir()

    def run(self, kind: str, trials: int, seed: int, overwrite: bool) -> Figures:
        mode = "with" if overwrite else "without"
        figures, added = Figures(f"8 writers, {kind}, {mode} --overwrite"), 0
        target, old = target_of(kind, self.folder), target_of(kind, self.folder / "kept")
        convert(self.sources[0], old, to=kind, overwrite=True)
        for trial in range(trials):
            case = f"writers seed {seed}, {kind}, {mode} --overwrite, trial {trial}"
            if overwrite and trial % 2:
                put(old, target)
            else:
                remove(target)
            try:
                with _somebody_adding(target, random.Random(case), kind == "hf") as files:
                    ends = self._write(kind, target, overwrite)
                self._judge(target, ends, overwrite)
                for file, text in files.items():
                    assert file.exists(), f"{file.name} was lost of {len(files)}"
                    assert file.read_text() == text, f"{file.name} is another one"
            except AssertionError as error:
                raise AssertionError(f"{case}: {error}") from error
            added += len(files)
            figures.outcomes["written"] += ends.count("")
            figures.outcomes["refused"] += len(ends) - ends.count("")
        figures.note = f"in {trials} rounds; {added} files that somebody added are all there"
        return figures

    def _write(self, kind: str, target: Path, overwrite: bool) -> list[str]:
        """What each writer said of an error; nothing where it ended well."""
        more = ["--overwrite"] if overwrite else []
        commands = [
            ["convert", str(source), str(target), "--to", kind, *more] for source in self.sources
        ]
        ends = []
        for done in self.server.together(commands):
            assert done.code in (0, 2), f"exit code {done.code}: {done.errors}"
            assert "Traceback" not in done.errors, done.errors
            said = [line for line in done.errors.splitlines() if not line.startswith("note: ")]
            assert len(said) == (done.code != 0), done.errors
            ends.append("".join(said))
        return ends

    def _judge(self, target: Path, ends: list[str], overwrite: bool) -> None:
        if overwrite:
            assert not any(ends), f"one was refused: {next(filter(None, ends))}"
        else:
            assert ends.count("") == 1, f"{ends.count('')} wrote"
            assert all("exists already" in end for end in ends if end), ends
        reader = open_checkpoint(target)
        check(reader, reader.require_manifest(), lambda what, done, total: None)
        written = [one for one, end in zip(self.contents, ends, strict=True) if not end]
        assert content(reader) in written, "it is the model of none that ended well"
        assert remains(target) == [], f"they left {remains(target)}"


@contextlib.contextmanager
def _somebody_adding(target: Path, rng: random.Random, really: bool) -> Iterator[dict[Path, str]]:
    """Inside, files appear in the directory, every few milliseconds while it is there."""
    files: dict[Path, str] = {}
    stop = threading.Event()

    def add() -> None:
        while really and not stop.wait(rng.uniform(0.0, 0.01)):
            file = target / f"notes-{len(files)}"
            with contextlib.suppress(FileNotFoundError):  # it is not there yet
                file.write_text(text := f"{time.time_ns()}")
                files[file] = text

    thread = threading.Thread(target=add)
    thread.start()
    try:
        yield files
    finally:
        stop.set()
        thread.join()
