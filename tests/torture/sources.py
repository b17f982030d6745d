"""Sources that are replaced while they are converted, and what is not a file in place of one.

A conversion gives the model that was there before or the one that came, whole, or it is refused by
the name of what changed. Whatever has the name of a file, each command ends.

python -m tests.torture sources --trials 50 --seed 0
"""

from __future__ import annotations

import dataclasses
import os
import random
import shutil
import socket
import statistics
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

from parity.convert.formats import convert, open_checkpoint
from tests.torture.common import (
    KINDS,
    MEDIUM,
    TINY,
    Figures,
    content,
    put,
    remains,
    remove,
    shards,
    target_of,
    write_model,
)
from tests.torture.forks import ForkServer, Run

WAYS = ("files are replaced", "the folder is replaced", "a link is moved", "files are written to")
ODD = ("FIFO", "socket", "directory", "link to nothing", "link in a circle", "holes")
_HOLES = 1 << 40  # bytes
_MANIFEST = "diy_manifest.json"  # with it, sums would show a mixture


def run(
    trials: int,
    seed: int,
    folder: Path,
    server: ForkServer,
    kinds: Sequence[str] = KINDS,
    oddities: Sequence[str] = ODD,
) -> list[Figures]:
    """Replace the source of so many conversions of each kind, and put each oddity everywhere.

    Raises:
        AssertionError: a mixture, remains, a traceback, a wait; it names what reproduces it.
    """
    found = []
    for kind in kinds:
        found.append(_Replaced(kind, folder / kind, server).run(trials, seed))
        found.append(_odd(kind, folder / f"odd-{kind}", server, oddities))
    return found


class _Replaced:
    """A source, another that takes its place, and where the source is converted to."""

    def __init__(self, kind: str, folder: Path, server: ForkServer) -> None:
        self.kind, self.server, self.folder = kind, server, folder
        folder.mkdir(parents=True)
        # The same shapes, so that a mixture could be loaded; the configs differ, too.
        old = write_model(folder / "old", dataclasses.replace(MEDIUM, rope_theta=5e3), 1)
        new = write_model(folder / "new", MEDIUM, 2)
        self.contents = {path.name: content(open_checkpoint(path)) for path in (old, new)}
        for path in (old, new):
            convert(path, target_of(kind, self._kept(path.name)), to=kind, **shards(kind))
            if kind != "gguf":  # which has its sums inside
                (target_of(kind, self._kept(path.name)) / _MANIFEST).unlink()
        self.target = folder / "target"

    def _kept(self, name: str) -> Path:
        path = self.folder / f"kept-{name}"
        path.mkdir(exist_ok=True)
        return path

    def run(self, trials: int, seed: int) -> Figures:
        figures = Figures(f"replaced, {self.kind}")
        duration = statistics.median(self._trial(None, 0.0).seconds for _ in range(5))
        for trial in range(trials):
            case = f"sources seed {seed}, {self.kind}, trial {trial}"
            rng = random.Random(case)
            way, moment = WAYS[trial % len(WAYS)], rng.uniform(0.0, duration)
            done = self._trial(way, moment)
            try:
                outcome = self._judge(done)
            except (AssertionError, ValueError, OSError) as error:
                raise AssertionError(f"{case}, {way} after {moment:.4f} s: {error}") from error
            figures.outcomes[outcome] += 1
            tenths = figures.tenths.setdefault(outcome, [0] * 10)
            tenths[int(moment / duration * 10)] += 1
        figures.note = f"in the {duration * 1000:.0f} ms of a conversion, in {len(WAYS)} ways"
        return figures

    def _trial(self, way: str | None, moment: float) -> Run:
        """A conversion, and after so many seconds another source in the place of the first."""
        remove(self.target)
        for name in ("old", "new"):
            put(self._kept(name), self.folder / f"place-{name}")
        for name in ("link", "next"):
            (self.folder / name).unlink(missing_ok=True)
        (self.folder / "link").symlink_to("place-old")
        (self.folder / "next").symlink_to("place-new")
        source = target_of(self.kind, self.folder / "link")
        timer = threading.Timer(moment, lambda: way is None or self._replace(way))
        timer.start()
        done = self.server.convert(source, self.target, "hf", overwrite=False)
        timer.join()
        return done

    def _replace(self, way: str) -> None:
        old, new = (self.folder / f"place-{name}" for name in ("old", "new"))
        if way == "a link is moved":
            os.replace(self.folder / "next", self.folder / "link")
            return
        if way == "the folder is replaced":
            old.rename(self.folder / "place-aside")
            new.rename(old)
            shutil.rmtree(self.folder / "place-aside")
            return
        for file in sorted(path for path in new.rglob("*") if path.is_file()):
            there = old / file.relative_to(new)
            there.parent.mkdir(parents=True, exist_ok=True)
            if way == "files are replaced" or not there.exists():
                os.replace(file, there)
                continue
            times = there.stat().st_atime_ns, there.stat().st_mtime_ns
            there.write_bytes(file.read_bytes())
            os.utime(there, ns=times)

    def _judge(self, done: Run) -> str:
        """What came of it: `old` or `new`, whole, or `refused`."""
        if done.code == 0:
            found = content(open_checkpoint(self.target))
            names = [name for name, wanted in self.contents.items() if wanted == found]
            assert names, "a mixture of both models"
            return names[0]
        assert done.code == 2, f"exit code {done.code}: {done.errors}"
        assert "Traceback" not in done.errors, done.errors
        assert not os.path.lexists(self.target), "something is at the destination"
        assert not remains(self.target), "something is beside the destination"
        return "refused"


def _odd(kind: str, folder: Path, server: ForkServer, oddities: Sequence[str]) -> Figures:
    """Each oddity in place of each file of a checkpoint."""
    folder.mkdir()
    kept = target_of(kind, folder / "kept")
    kept.parent.mkdir()
    convert(write_model(folder / "model", TINY, 1), kept, to=kind)
    files = [path for path in kept.rglob("*") if path.is_file()] if kept.is_dir() else [kept]
    figures = Figures(f"no file, {kind}", seconds=0.0)
    for file in sorted(files):
        for odd in oddities:
            source, target = target_of(kind, folder), folder / "target"
            put(kept, source)
            remove(target)
            put_odd(source / file.relative_to(kept), odd)
            (done,) = server.together([["convert", str(source), str(target), "--to", "hf"]])
            case = f"{file.relative_to(kept.parent)} is a {odd}: {done.errors}"
            assert done.code in (0, 2), f"{case}: exit code {done.code}"
            assert "Traceback" not in done.errors, case
            assert target.exists() == (done.code == 0), case
            figures.outcomes["refused" if done.code else "converted without it"] += 1
            figures.seconds = max(figures.seconds or 0.0, done.seconds)
    figures.note = f"{len(files)} files, {len(oddities)} oddities"
    return figures


def put_odd(path: Path, kind: str) -> None:
    """Put one of `ODD` in place of a file."""
    path.unlink()
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "holes":
        path.touch()
        os.truncate(path, _HOLES)
    elif kind == "socket":
        # An address may have 100 bytes, so it is bound at a short one.
        with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as server:
            server.bind(f"{folder}/x")
            os.rename(f"{folder}/x", path)
    else:
        path.symlink_to("gone" if kind == "link to nothing" else path.name)
