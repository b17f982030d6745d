"""Full disks, files that may not grow, read-only places: one clear error, and nothing is lost.

    python -m tests.torture disks --trials 40 --seed 0

A small tmpfs stands for the full disk. Mounting one needs a mount name space (`unshare -m`, or
`unshare -Urm` for users who may); where the system permits none, `name_space` says why.
"""

from __future__ import annotations

import functools
import random
import re
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from parity.convert.formats import convert
from tests.torture.common import (
    KINDS,
    MEDIUM,
    Figures,
    put,
    remains,
    remove,
    shards,
    snapshot,
    target_of,
    write_model,
)
from tests.torture.forks import ForkServer, Run

_REASONS = re.compile("No space left on device|File too large|[Rr]ead-only file system")
_PAGE = 4096


@functools.cache
def name_space() -> list[str]:
    """The command that gives a process mounts of its own.

    Raises:
        PermissionError: the system does not permit it.
    """
    errors = []
    for options in ("-m", "-Urm"):
        command = ["unshare", options, "sh", "-c", "mount -t tmpfs tmpfs /mnt"]
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except OSError as error:
            raise PermissionError(f"unshare: {error}") from error
        if done.returncode == 0:
            return ["unshare", options]
        errors.append(done.stderr.strip())
    raise PermissionError("; ".join(errors))


def run_limits(
    trials: int, seed: int, folder: Path, server: ForkServer, kinds: Sequence[str] = KINDS
) -> list[Figures]:
    """Conversions in which no file may grow beyond a size, at random sizes (RLIMIT_FSIZE).

    Raises:
        AssertionError: no clear error, a loss, or remains; it names what reproduces it.
    """
    place = _Place(folder, folder, folder, server)
    return [place.run(f"file limit, {kind}", kind, trials, seed, place.limited) for kind in kinds]


def run_mounts(
    trials: int, seed: int, folder: Path, server: ForkServer, kinds: Sequence[str] = KINDS
) -> list[Figures]:
    """Conversions to a disk that fills up, in bytes or in files, and to a read-only one.

    Args:
        server: in a mount name space of its own.

    Raises:
        AssertionError: no clear error, a loss, or remains; it names what reproduces it.
    """
    disk = folder / "disk"
    disk.mkdir()
    place = _Place(folder, disk, server.root / str(disk.resolve()).lstrip("/"), server)
    place.mount("-t", "tmpfs", "tmpfs")
    runs: dict[str, Callable[[str, random.Random, bool], Run]] = {
        "disk full": place.full,
        "disk out of inodes": place.out_of_inodes,
        "read-only": place.read_only,
    }
    return [
        place.run(f"{name}, {kind}", kind, trials if name != "read-only" else 2, seed, one)
        for name, one in runs.items()
        for kind in kinds
    ]


class _Place:
    """A directory to write into, and what stood there before.

    Args:
        folder: for sources.
        there: the directory, as the server calls it.
        here: the same, as this process calls it.
    """

    def __init__(self, folder: Path, there: Path, here: Path, server: ForkServer) -> None:
        self.there, self.here, self.server = there, here, server
        old = write_model(folder / "old-source", MEDIUM, 1)
        self.source = write_model(folder / "source", MEDIUM, 2)
        (folder / "kept").mkdir()
        self.old = {kind: target_of(kind, folder / "kept") for kind in KINDS}
        for kind, path in self.old.items():
            convert(old, path, to=kind, **shards(kind))

    def run(
        self,
        name: str,
        kind: str,
        trials: int,
        seed: int,
        one: Callable[[str, random.Random, bool], Run],
    ) -> Figures:
        figures = Figures(name)
        target = target_of(kind, self.here)
        for trial in range(trials):
            case = f"disks seed {seed}, {name}, trial {trial}"
            overwrite = trial % 2 == 0
            remove(target)
            if overwrite:
                put(self.old[kind], target)
            before = snapshot(target) if overwrite else {}
            done = one(kind, random.Random(case), overwrite)
            try:
                outcome = _judge(done, target, before)
            except AssertionError as error:
                raise AssertionError(f"{case}: {error}") from error
            figures.outcomes[outcome] += 1
            figures.seconds = max(figures.seconds or 0.0, done.seconds)
            remove(target)
        return figures

    def limited(self, kind: str, rng: random.Random, overwrite: bool) -> Run:
        # For GGUF the tokenizer's files go first, through the system's temporary directory.
        limit = int(10 ** rng.uniform(3.0 if kind == "gguf" else 0.0, 6.6))
        return self._convert(kind, overwrite, limit)

    def full(self, kind: str, rng: random.Random, overwrite: bool) -> Run:
        used = sum(_pages(f) for f in self.here.rglob("*"))
        self.mount("-o", f"remount,size={(used + rng.randint(1, 700)) * _PAGE}")
        done = self._convert(kind, overwrite)
        self.mount("-o", "remount,size=100M")
        return done

    def out_of_inodes(self, kind: str, rng: random.Random, overwrite: bool) -> Run:
        used = 1 + sum(1 for _ in self.here.rglob("*"))
        most = {"hf": 18, "orbax": 150, "gguf": 5}[kind]
        self.mount("-o", f"remount,nr_inodes={used + rng.randint(0, most)}")
        done = self._convert(kind, overwrite)
        self.mount("-o", "remount,nr_inodes=100k")
        return done

    def read_only(self, kind: str, rng: random.Random, overwrite: bool) -> Run:
        self.mount("-o", "remount,ro")
        done = self._convert(kind, overwrite)
        self.mount("-o", "remount,rw")
        return done

    def mount(self, *options: str) -> None:
        done = self.server.shell("mount", *options, str(self.there))
        assert done.code == 0, done.errors

    def _convert(self, kind: str, overwrite: bool, limit: int | None = None) -> Run:
        target = target_of(kind, self.there)
        return self.server.convert(self.source, target, kind, overwrite=overwrite, file_limit=limit)


def _pages(file: Path) -> int:
    return -(-file.stat().st_size // _PAGE) if file.is_file() else 1


def _judge(done: Run, target: Path, before: dict[str, str]) -> str:
    """`refused`, or `fitted` where there was room enough."""
    assert "Traceback" not in done.output + done.errors, done.errors[-2000:]
    assert remains(target) == [], f"it left {remains(target)}: {done.errors}"
    after = snapshot(target) if target.exists() else {}
    if done.code == 0:
        assert after, "it ended well, and nothing is there"
        assert after != before, "it ended well, and the old checkpoint is there"
        return "fitted"
    assert done.code == 2, f"exit code {done.code}: {done.errors}"
    assert after == before, "what stood there has changed"
    lines = done.errors.splitlines()
    clear = len(lines) == 1 and lines[0].startswith("parity convert: ") and len(lines[0]) < 500
    assert clear, f"no clear error: {done.errors}"
    assert _REASONS.search(lines[0]), f"it does not say why: {done.errors}"
    named = target.name in lines[0] and ".tmp-" not in lines[0]
    assert named, f"it does not say where, as that was given: {done.errors}"
    return "refused"
