"""kill -9 at random moments: what is there afterwards is the old checkpoint or the new one, whole.

python -m tests.torture kills --trials 200 --seed 0
"""

from __future__ import annotations

import dataclasses
import random
import statistics
from collections.abc import Sequence
from pathlib import Path

from diy_core.checkpoints.transfer import check
from diy_core.errors import CheckpointError
from parity.convert.formats import convert, open_checkpoint
from tests.torture.common import (
    KINDS,
    MEDIUM,
    Figures,
    content,
    put,
    remains,
    remove,
    shards,
    snapshot,
    target_of,
    write_model,
)
from tests.torture.forks import ForkServer, Run

_REMEASURED = 25  # trials
_KEPT = "README.md"


def run(
    trials: int,
    seed: int,
    folder: Path,
    server: ForkServer,
    kinds: Sequence[str] = KINDS,
) -> list[Figures]:
    """Kill that many conversions of each kind, with and without --overwrite.

    Raises:
        AssertionError: a mixture, a loss, or remains; it names what reproduces it.
    """
    found = []
    for kind in kinds:
        victim = _Victim(kind, folder / kind, server)
        for overwrite in (True, False):
            found.append(victim.kill(trials, seed, overwrite))
    return found


class _Victim:
    """An old and a new model, and the place where the one becomes the other."""

    def __init__(self, kind: str, folder: Path, server: ForkServer) -> None:
        self.kind, self.server = kind, server
        folder.mkdir(parents=True)
        # The same shapes, so that a mixture could be loaded; the configs differ, too.
        old = write_model(folder / "old-source", dataclasses.replace(MEDIUM, rope_theta=5e3), 1)
        self.source = write_model(folder / "source", MEDIUM, 2)
        self.target = target_of(kind, folder)
        self.old = target_of(kind, folder / "kept")
        self.old.parent.mkdir()
        convert(old, self.old, to=kind, **shards(kind))
        if kind == "hf":
            (self.old / _KEPT).write_text("what else is in a directory stays there\n")
        sources = {"old": old, "new": self.source}
        self.contents = {name: content(open_checkpoint(path)) for name, path in sources.items()}
        assert self.contents["old"] != self.contents["new"]
        self.old_files = snapshot(self.old)

    def kill(self, trials: int, seed: int, overwrite: bool) -> Figures:
        mode = "with" if overwrite else "without"
        figures = Figures(f"kill -9, {self.kind}, {mode} --overwrite")
        durations, dirty = [], 0
        for trial in range(trials):
            case = f"kills seed {seed}, {self.kind}, {mode} --overwrite, trial {trial}"
            rng = random.Random(case)
            if trial % _REMEASURED == 0:  # other programs come and go
                durations.append(self._measure(overwrite))
            duration = durations[-1]
            moment = rng.uniform(0.0, duration)
            self._prepare(overwrite)
            done = self._convert(overwrite, moment)
            left = len(remains(self.target))
            try:
                outcome = self._judge(done, overwrite)
                self._next_run(outcome, overwrite, fail_first=rng.random() < 0.5)
            except (AssertionError, CheckpointError, ValueError, OSError) as error:
                raise AssertionError(f"{case}, killed after {moment:.4f} s: {error}") from error
            dirty += left > 0
            figures.outcomes[outcome] += 1
            tenths = figures.tenths.setdefault(outcome, [0] * 10)
            tenths[int(moment / duration * 10)] += 1
        figures.note = (
            f"in the {min(durations) * 1000:.0f} to {max(durations) * 1000:.0f} ms of a "
            f"conversion; {dirty} left remains, and the next run removed them"
        )
        return figures

    def _measure(self, overwrite: bool) -> float:
        seconds = []
        for _ in range(5):
            self._prepare(overwrite)
            done = self._convert(overwrite)
            assert done.code == 0, done.errors
            seconds.append(done.seconds)
            self._expect("new", overwrite)
        return statistics.median(seconds)

    def _prepare(self, overwrite: bool) -> None:
        if overwrite:
            put(self.old, self.target)
        else:
            remove(self.target)

    def _convert(self, overwrite: bool, moment: float | None = None) -> Run:
        return self.server.convert(
            self.source, self.target, self.kind, overwrite=overwrite, kill_after=moment
        )

    def _judge(self, done: Run, overwrite: bool) -> str:
        """What is there: `old`, `new`, `absent`, or `finished` (before the kill, so new)."""
        assert done.killed or done.code == 0, f"exit code {done.code}: {done.errors}"
        if not self.target.exists():
            assert done.killed, "it ended well, and nothing is there"
            assert not overwrite, "the old checkpoint is gone"
            return "absent"
        files = snapshot(self.target)
        if overwrite and files == self.old_files:
            assert done.killed, "it ended well, and the old checkpoint is there"
            self._expect("old", overwrite)
            return "old"
        self._expect("new", overwrite)
        return "new" if done.killed else "finished"

    def _expect(self, which: str, overwrite: bool) -> None:
        reader = open_checkpoint(self.target)
        check(reader, reader.require_manifest(), lambda what, done, total: None)
        assert content(reader) == self.contents[which], f"it is not the {which} checkpoint"
        if self.kind == "hf" and overwrite:
            kept = snapshot(self.target).get(_KEPT)
            assert kept == self.old_files[_KEPT], f"{_KEPT} in the directory was lost"

    def _next_run(self, outcome: str, overwrite: bool, fail_first: bool) -> None:
        """The next run removes what the killed one left: one that succeeds, and one that fails."""
        before = snapshot(self.target) if self.target.exists() else {}
        if outcome != "absent" and (fail_first or not overwrite):
            message = "nothing, and replaced a checkpoint"
            try:
                self._again(overwrite=False)
            except CheckpointError as error:
                message = str(error)
            assert "exists already: overwrite=True" in message, f"without --overwrite: {message}"
            assert snapshot(self.target) == before, "a run that was refused changed something"
        else:
            self._again(overwrite=overwrite)
            self._expect("new", overwrite)
        assert remains(self.target) == [], f"the next run left {remains(self.target)}"

    def _again(self, overwrite: bool) -> None:
        convert(self.source, self.target, to=self.kind, **shards(self.kind), overwrite=overwrite)
