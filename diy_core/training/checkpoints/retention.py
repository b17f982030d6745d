"""When a checkpoint fits on the disk, and which ones are kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from diy_core.errors import CheckpointError
from diy_core.system.disk import DiskFull, described, naming_full_disks, require_room, spare
from diy_core.training.config import TrainConfig
from diy_core.training.evaluation import is_evaluation_due
from diy_core.training.protocols import Store, TrainingError


class Keeper:
    """Writes checkpoints into a store, and deletes those that need not be kept.

    Kept are the newest `keep_last`, every one whose step is a multiple of `keep_every`, and the one
    with the lowest validation loss. An old one is deleted only when what replaces it is whole. One
    that cannot be deleted is said, and tried again when the next is saved.

    Args:
        store: the twin's.
        config: of the run.
        folder: on the disk that the store writes to.
        evaluations: the validation loss by step; it grows as the run goes on.
        report: is told when the disk is full.
        saved: the step of the checkpoint that the run goes on from.
        lost: lines of `evaluations` are lost: each checkpoint whose line that may be is kept, as it
            may be the best.

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
        lost: bool = False,
    ) -> None:
        self.saved = self._newest = self._begun = saved
        self.holding = False
        self._error: DiskFull | None = None  # the last one
        self._last: int | None = None  # the step after which there is no other try
        self._told = False  # that the run goes on
        self._store, self._config, self._folder = store, config, folder
        self._evaluations, self._report = evaluations, report
        # They were damaged, and the run went back behind them.
        self._abandoned = {step for step in store.steps() if step > saved}
        self._unjudged = {
            step
            for step in store.steps()
            if lost and step <= saved and is_evaluation_due(config, step)
        } - evaluations.keys()
        self._kept_in_vain: set[int] = set()  # of those it was said that they cannot be deleted

    def say_if_there_is_no_room(self) -> None:
        """Before the first step: hours later would be late."""
        try:
            self._require_room()
        except DiskFull as error:
            self._told = True
            self._report(
                f"a checkpoint does not fit on the disk: {error.strerror} ({error.filename}). The "
                "run continues and tries again when the next one is due: free some space"
            )

    def save(
        self, step: int, extra: Mapping[str, Any], before: Callable[[], None], last: bool = False
    ) -> None:
        """Write a checkpoint; where the disk has no room for it, say so and go on without.

        Args:
            step: of the checkpoint.
            extra: goes into it.
            before: writes what has to be on the disk before it.
            last: the run ends here; where there is no room, `no_room` says so.
        """
        self._last = step if last else None
        self._settle()
        self._newest = step
        try:
            with naming_full_disks(self._folder):
                before()
                self._require_room()
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
        self.saved, self._error = 0, error
        if self._newest == self._last:
            return
        told, self._told = self._told or self._last is not None, True
        again = "" if told else ". The run goes on and tries again at the next"
        self._report(
            f"no checkpoint of step {self._newest}: {error.strerror} ({error.filename}){again}"
        )

    def no_room(self, step: int) -> TrainingError:
        """The error of a last checkpoint that found no room."""
        error, steps = self._error, self._store.steps()
        why = f"{error.strerror} ({error.filename})" if error else str(self._folder)
        then = f"goes on from step {steps[-1]}" if steps else "begins at step 0"
        return TrainingError(
            f"there was no room for a checkpoint of step {step}: {why}: free some, then --resume "
            f"auto {then}"
        )

    def _require_room(self) -> None:
        nbytes = self._store.nbytes()
        require_room(self._folder, nbytes + spare(nbytes))

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
        if self._config.keep_best:
            kept |= self._unjudged
        if not steps or steps[-1] == self._begun:
            kept |= self._abandoned  # until something takes their place
        for step in whole:
            if step not in kept:
                self._delete(step)
        self._abandoned &= kept

    def _delete(self, step: int) -> None:
        """Delete a checkpoint, or say why that cannot be: tidying up never ends a run."""
        try:
            self._store.delete(step)
        except (OSError, CheckpointError) as error:
            if step not in self._kept_in_vain:
                why = described(error) if isinstance(error, OSError) else str(error)
                self._report(
                    f"checkpoint {step:08d} could not be deleted, which is tried again later: {why}"
                )
            self._kept_in_vain.add(step)
