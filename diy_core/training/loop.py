"""The training loop, once for both twins.

Where steps run in the background, one is begun before the result of the one before is read, so that
the device never waits for the host; a result that is there is read at once. Wherever something else
happens than the next step (an evaluation, a checkpoint, the end) every result has been read before.
"""

from __future__ import annotations

import dataclasses
import math
import time
from typing import Any

from diy_core.training.config import TrainConfig
from diy_core.training.disk import DiskFull, naming_full_disks
from diy_core.training.interfaces import Batch, Pieces, StepResult, TrainingError
from diy_core.training.metrics import Events, JsonLines, Metrics
from diy_core.training.plot import draw_losses
from diy_core.training.progress import Clock, Report, process_memory
from diy_core.training.run_directory import RunDirectory
from diy_core.training.saving import Keeper
from diy_core.training.schedule import learning_rate
from diy_core.training.signals import Interruption
from diy_core.training.skipping import skipped_line, too_many_skipped
from diy_core.training.state import Position

_PAUSE = 30.0  # seconds between two drawings of the curves


def train(
    config: TrainConfig,
    pieces: Pieces,
    directory: RunDirectory,
    position: Position,
    report: Report,
    interruption: Interruption,
) -> Position:
    """Take steps up to `config.last_step` or a signal, and leave a checkpoint of the last one.

    Args:
        config: of the run.
        pieces: trainer, store and data, standing at `position`.
        directory: entered and begun.
        position: `Position(seed=config.seed)`, or what `restore` returned.
        report: entered.
        interruption: entered.

    Returns:
        Where the run stands now.

    Raises:
        TrainingError: too many skipped steps in a row, the data ended, or the disk has no room for
            the last checkpoint.
        OSError: a file cannot be written, for another reason than a full disk.
    """
    run = _Run(config, pieces, directory, position, report, interruption)
    try:
        return run.run()
    finally:
        run.close()


@dataclasses.dataclass
class _Pending:
    """A step whose result was not read yet."""

    learning_rate: float
    result: StepResult


class _Run:
    def __init__(
        self,
        config: TrainConfig,
        pieces: Pieces,
        directory: RunDirectory,
        position: Position,
        report: Report,
        interruption: Interruption,
    ) -> None:
        self._config, self._pieces, self._directory = config, pieces, directory
        self._report, self._interruption = report, interruption
        self._position = position
        self._pending: _Pending | None = None
        self._timing: dict[str, Any] = {}
        self._drawn = time.monotonic()
        trainer = pieces.trainer
        positions = config.batch_size * config.sequence_length
        self._clock = Clock(positions, trainer.flops_per_token, trainer.matmul_peak)
        self._metrics = Metrics(directory.metrics_file, directory.evaluations_file, position.step)
        self._timings = JsonLines(directory.timings_file, position.step)
        self._events = Events(directory.tensorboard, position.step)
        self._keeper = Keeper(
            pieces.store,
            config,
            directory.checkpoints,
            self._metrics.evaluations,
            report.say,
            saved=position.step,
        )
        self._keeper.holding = position.skipped_in_a_row > 0
        if not self._metrics.complete:
            report.say(
                f"{directory.metrics_file} lacks lines of steps before {position.step}: the run "
                "goes on, its curves have a gap"
            )

    def run(self) -> Position:
        """Take the steps."""
        begun = self._position.step  # one more than were read, while a result is pending
        while True:
            if self._is_boundary(begun):
                self._read_pending()
                self._evaluate_if_due()
                self._save_if_due()
            if begun >= self._config.last_step or self._interruption.received:
                break
            rate = learning_rate(self._config.optimizer, begun, self._config.steps)
            batch = self._next_batch(begun)
            result = self._pieces.trainer.train_step(batch, rate, begun)
            begun += 1
            self._read_pending()
            self._pending = _Pending(rate, result)
            if _is_ready(result):  # else two steps would seem to end at the same moment
                self._read_pending()
        self._read_pending()
        self._save_at_the_end()
        return self._position

    def close(self) -> None:
        """Wait for the checkpoint that is being written, and close the files."""
        self._keeper.finish()
        for file in (self._metrics, self._timings, self._events):
            file.close()

    def _is_boundary(self, step: int) -> bool:
        """Whether something else than the next step may come next."""
        config = self._config
        return (
            step >= config.last_step
            or _is_due(config.eval_every, step)
            or _is_due(config.checkpoint_every, step)
        )

    def _next_batch(self, step: int) -> Batch:
        try:
            return next(self._pieces.data)
        except StopIteration:
            raise TrainingError(f"the data ended after {step} steps: give more of it") from None

    def _read_pending(self) -> None:
        """Wait for the result of the last step but one, and write it down."""
        if self._pending is None:
            return
        rate, result = self._pending.learning_rate, self._pending.result
        self._pending = None
        loss, norm, tokens = float(result.loss), float(result.grad_norm), int(result.tokens)
        skipped, old = bool(result.skipped), self._position
        self._position = dataclasses.replace(
            old,
            step=old.step + 1,
            tokens=old.tokens + (0 if skipped else tokens),
            skipped_steps=old.skipped_steps + skipped,
            skipped_in_a_row=old.skipped_in_a_row + 1 if skipped else 0,
        )
        self._keeper.holding = skipped
        row = self._metrics.step(
            self._position.step,
            loss=loss,
            grad_norm=norm,
            learning_rate=rate,
            tokens=tokens,
            total_tokens=self._position.tokens,
            skipped=skipped,
        )
        self._show(row)
        if skipped:
            self._skip(loss, norm)

    def _show(self, row: dict[str, Any]) -> None:
        step = row["step"]
        due = step % self._config.log_every == 0 or step == self._config.last_step
        if due:
            memory = self._pieces.trainer.memory()
            self._timing = {
                **self._clock.read(step),
                "memory": process_memory() if memory is None else memory,
            }
            self._timings.write({"step": step, **self._timing})
            names = ("loss", "grad_norm", "learning_rate")
            self._events.write(step, {f"train/{name}": row[name] for name in names})
            self._events.write(
                step, {f"speed/{name}": value for name, value in self._timing.items()}
            )
        elif not self._timing:
            self._clock.reset(step)  # the first steps were the compiler's
            self._timing = {"memory": None}
        self._report.step(row, self._timing, due)

    def _skip(self, loss: float, norm: float) -> None:
        """Report a skipped step, and end the run where there were too many."""
        position = self._position
        self._report.say(skipped_line(position, loss, norm))
        if position.skipped_in_a_row >= self._config.max_skipped_steps:
            self._draw()
            # One that is being written may be the newest from before.
            self._keeper.finish()
            raise too_many_skipped(
                position, self._pieces.store.steps(), self._directory.checkpoints
            )

    def _evaluate_if_due(self) -> None:
        """Evaluate, unless that was done before the run was interrupted here."""
        step, validation = self._position.step, self._pieces.validation
        if (
            validation is None
            or not _is_due(self._config.eval_every, step)
            or step in self._metrics.evaluations
        ):
            return
        total, tokens = 0.0, 0
        for batch in validation():
            if self._interruption.received:
                return  # it is made up for when the run goes on
            loss, counted = self._pieces.trainer.evaluate(batch)
            total += float(loss)
            tokens += int(counted)
        mean = total / tokens if tokens else math.nan
        row = self._metrics.evaluation(step, mean, tokens)
        names = ("loss", "perplexity", "tokens")
        self._events.write(step, {f"validation/{name}": row[name] for name in names})
        self._report.say(f"step {step}: validation loss {mean:.4f}, perplexity {row['perplexity']}")
        self._clock.reset(step)

    def _save_if_due(self) -> None:
        """Save, but not while steps are skipped: what made them so may be in the weights."""
        step = self._position.step
        if self._position.skipped_in_a_row:
            return
        best = self._config.keep_best and self._metrics.is_best(step)
        if self._keeper.saved != step and (best or _is_due(self._config.checkpoint_every, step)):
            self._save()

    def _save_at_the_end(self) -> None:
        step = self._position.step
        if self._keeper.saved != step:
            self._save()
        self._keeper.finish()
        self._draw()
        if self._keeper.saved != step:
            raise TrainingError(
                f"there was no room for a checkpoint of step {step}: free some in "
                f"{self._directory.checkpoints}, then --resume auto goes on from the newest one"
            )

    def _save(self) -> None:
        self._position = dataclasses.replace(self._position, data=self._pieces.data.state())
        self._keeper.save(self._position.step, self._position.to_json(), self._sync)
        self._draw(pause=_PAUSE)
        self._clock.reset(self._position.step)

    def _sync(self) -> None:
        """A checkpoint never knows more steps than the metrics."""
        self._metrics.sync()
        self._timings.sync()

    def _draw(self, pause: float = 0.0) -> None:
        """Draw the curves, unless that was done less than so many seconds ago."""
        if time.monotonic() - self._drawn < pause:
            return
        path = self._directory.plot_file
        try:
            with naming_full_disks(path):
                draw_losses(path, self._metrics.losses, self._metrics.evaluations)
        except DiskFull as error:
            self._report.say(f"{path} was not drawn: {error.strerror}")
        self._drawn = time.monotonic()


def _is_due(every: int, step: int) -> bool:
    return every > 0 and step % every == 0


def _is_ready(result: StepResult) -> bool:
    """Whether reading it does not wait: JAX's scalars can tell, others are there from the start."""
    ready = getattr(result.loss, "is_ready", None)
    return ready is None or ready()
