"""When a checkpoint fits on the disk, and which ones are kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from diy_core.training.config import TrainConfig
from diy_core.training.disk import DiskFull, naming_full_disks, require_room
from diy_core.training.interfaces import Store

_SPARE = 64 << 20  # bytes that stay free, for metrics and for what a checkpoint holds beside arrays


class Keeper:
    """Writes checkpoints into a store, and deletes those that need not be kept.

    Kept are the newest `keep_last`, every one whose step is a multiple of `keep_every`, and the one
    with the lowest validation loss. An old one is deleted only when what replaces it is whole.

    Args:
        store: the twin's.
        config: of the run.
        folder: on the disk that the store writes to.
        evaluations: the validation loss by step; it grows as the run goes on.
        report: is told when the disk is full.
        saved: the step of the checkpoint that the run goes on from.

    Attributes:
        saved: the step of the last checkpoint that was written, as far as is known by now.
        holding: True: nothing is deleted, since steps are being skipped and the run may have to go
            back to any checkpoint that there is.
    """

    def __init__(
        self,
        store: Store,
        config: TrainConfig,
        folder: Path,
        evaluations: Mapping[int, float],
        report: Callable[[str], None],
        saved: int = 0,
    ) -> None:
        self.saved = self._newest = self._begun = saved
        self.holding = False
        self._store, self._config, self._folder = store, config, folder
        self._evaluations, self._report = evaluations, report
        # They were damaged, and the run went back behind them.
        self._abandoned = {step for step in store.steps() if step > saved}

    def save(self, step: int, extra: Mapping[str, Any], before: Callable[[], None]) -> None:
        """Write a checkpoint; where the disk has no room for it, say so and go on without.

        Args:
            step: of the checkpoint.
            extra: goes into it.
            before: writes what has to be on the disk before it.
        """
        self._settle()
        self._newest = step
        try:
            with naming_full_disks(self._folder):
                before()
                require_room(self._folder, self._store.nbytes() + _SPARE)
                self._store.save(step, extra)
            self.saved = step
        except DiskFull as error:
            self._skip(error)
        self._prune()

    def finish(self) -> None:
        """Return when the last checkpoint is whole and nothing is left that need not be kept."""
        self._settle()
        self._prune()

    def _settle(self) -> None:
        """Wait for the store; what it could not write in the background shows here."""
        try:
            with naming_full_disks(self._folder):
                self._store.wait()
            self._abandoned.discard(self.saved)  # replaced
        except DiskFull as error:
            self._skip(error)

    def _skip(self, error: DiskFull) -> None:
        self.saved = 0
        self._report(
            f"no checkpoint of step {self._newest}: {error.strerror} ({error.filename}). The run "
            "goes on and tries again at the next"
        )

    def _prune(self) -> None:
        if self.holding:
            return
        whole = self._store.steps()
        steps = [step for step in whole if step not in self._abandoned]
        kept = {self.saved, *steps[-self._config.keep_last :]}
        if self._config.keep_every:
            kept |= {step for step in steps if step % self._config.keep_every == 0}
        judged = [step for step in steps if step in self._evaluations]
        if judged and self._config.keep_best:
            kept.add(min(judged, key=lambda step: self._evaluations[step]))
        if not steps or steps[-1] == self._begun:
            kept |= self._abandoned  # until something takes their place
        for step in whole:
            if step not in kept:
                self._store.delete(step)
        self._abandoned &= kept
