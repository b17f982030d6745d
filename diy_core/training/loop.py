"""The training loop, once for both twins.

Where steps run in the background, one is begun before the result of the one before is read, so that
the device never waits for the host; a result that is there is read at once. Wherever something else
happens than the next step (an evaluation, a checkpoint, the end) every result has been read before.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from diy_core.training.checkpoints.retention import Keeper
from diy_core.training.config import TrainConfig
from diy_core.training.evaluation import evaluate, evaluation_line, is_evaluation_due
from diy_core.training.log.json_lines import JsonLines
from diy_core.training.log.metrics import Events, Metrics
from diy_core.training.log.plot import Plot
from diy_core.training.log.progress import Clock, Report, process_memory
from diy_core.training.log.skipped_steps import Uncounted, skipped_line, too_many_skipped
from diy_core.training.protocols import Batch, Pieces, StepResult, TrainingError, is_ready
from diy_core.training.run.directory import RunDirectory
from diy_core.training.schedule import learning_rate
from diy_core.training.signals import Interruption
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
        self._warm = False  # a step of this process was read
        self._start, self._uncounted = position.step, Uncounted(config, report.say)
        trainer = pieces.trainer
        positions = config.batch_size * config.sequence_length
        self._clock = Clock(positions, trainer.flops_per_token, trainer.matmul_peak)
        logs = directory.metrics_file, directory.evaluations_file
        self._metrics = Metrics(*logs, position.step, report.say)
        self._plot = Plot(directory.plot_file, self._metrics, report.say)
        self._timings = JsonLines(directory.timings_file, position.step, report.say)
        self._events = Events(directory.tensorboard, position.step)
        self._keeper = Keeper(
            pieces.store,
            config,
            directory.checkpoints,
            self._metrics.evaluations,
            report.say,
            saved=position.step,
            lost=self._metrics.lost_evaluations,
        )
        self._keeper.holding = position.skipped_in_a_row > 0

    def run(self) -> Position:
        """Take the steps."""
        self._say_what_is_missing()
        begun = self._position.step  # one more than were read, while a result is pending
        while True:
            if self._is_boundary(begun):
                self._read_pending()
                self._evaluate_if_due()
                self._save_if_due()
            if self._is_the_end(begun):
                break
            with self._interruption.answering("saving and leaving after this step"):
                begun = self._begin_step(begun)
        self._read_pending()
        self._uncounted.finish(self._position.step - self._start)
        self._save_at_the_end()
        return self._position

    def _say_what_is_missing(self) -> None:
        config, step = self._config, self._position.step
        if not self._metrics.complete:
            self._report.say(
                f"{self._directory.metrics_file} lacks lines of steps before {step}: the run goes "
                "on, its curves have a gap"
            )
        if config.eval_every and self._pieces.validation is None:
            self._report.say(
                f"eval_every is {config.eval_every}, but there is no validation data: nothing is "
                "evaluated (data.validation says where to take it from)"
            )
        if not self._is_the_end(step):
            self._keeper.say_if_there_is_no_room()

    def _begin_step(self, begun: int) -> int:
        """Begin the next step, and read what is there of those before; returns how many began."""
        rate = learning_rate(self._config.optimizer, begun, self._config.steps)
        batch = self._next_batch(begun)
        if not self._warm and self._pending is None:
            first = "compiling the step" if self._pieces.trainer.compiles else "the first step"
            self._directory.doing(first)
        result = self._pieces.trainer.train_step(batch, rate, begun)
        self._read_pending()
        self._pending = _Pending(rate, result)
        if is_ready(result):  # else two steps would seem to end at the same moment
            self._read_pending()
        return begun + 1

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
            or is_evaluation_due(config, step)
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
        uncounted = skipped and not tokens  # says nothing about the weights, good or bad
        if uncounted:
            loss = norm = math.nan  # a mean of nothing, whatever a twin makes of it
        streak = old.skipped_in_a_row + 1 if skipped else 0
        self._position = dataclasses.replace(
            old,
            step=old.step + 1,
            tokens=old.tokens + (0 if skipped else tokens),
            skipped_steps=old.skipped_steps + skipped,
            skipped_in_a_row=old.skipped_in_a_row if uncounted else streak,
        )
        self._keeper.holding = self._position.skipped_in_a_row > 0
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
        if uncounted:
            self._uncounted.add(self._position.step - self._start)
        elif skipped:
            self._skip(loss, norm)

    def _show(self, row: dict[str, Any]) -> None:
        step = row["step"]
        due = step % self._config.log_every == 0 or step == self._config.last_step
        if not self._warm:
            self._clock.reset(step)  # the first step was the compiler's, whatever came before it
            self._warm = True
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
            self._clock.reset(step)  # what is compiled is not fast yet
            self._timing = {"memory": None}
        self._report.step(row, self._timing, due)

    def _skip(self, loss: float, norm: float) -> None:
        """Report a skipped step, and end the run where there were too many."""
        position = self._position
        self._report.say(skipped_line(position, loss, norm))
        if position.skipped_in_a_row >= self._config.max_skipped_steps:
            self._plot.draw()
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
            or not is_evaluation_due(self._config, step)
            or step in self._metrics.evaluations
        ):
            return
        if not self._warm:
            self._directory.doing("evaluating, before the first step")
        found = evaluate(self._pieces, self._interruption)
        if found is None:
            return  # it is made up for when the run goes on
        row = self._metrics.evaluation(step, *found)
        names = ("loss", "perplexity", "tokens")
        self._events.write(step, {f"validation/{name}": row[name] for name in names})
        self._report.say(evaluation_line(row))
        self._clock.reset(step)

    def _save_if_due(self) -> None:
        """Save, but not while steps are skipped: what made them so may be in the weights."""
        step = self._position.step
        if self._position.skipped_in_a_row or self._is_the_end(step):
            return
        best = self._config.keep_best and self._metrics.is_best(step)
        if self._keeper.saved != step and (best or _is_due(self._config.checkpoint_every, step)):
            self._save()

    def _save_at_the_end(self) -> None:
        step, keeper = self._position.step, self._keeper
        with self._interruption.answering("leaving after this checkpoint"):
            if keeper.saved != step:
                self._save(last=True)
            keeper.finish()
        self._plot.draw()
        if keeper.saved != step:
            raise keeper.no_room(step)

    def _is_the_end(self, step: int) -> bool:
        return step >= self._config.last_step or self._interruption.received is not None

    def _save(self, last: bool = False) -> None:
        self._position = dataclasses.replace(self._position, data=self._pieces.data.state())
        position = self._position
        self._directory.require_held()
        self._keeper.save(position.step, position.to_json(), self._sync, last)
        self._plot.draw(pause=_PAUSE)
        self._clock.reset(position.step)

    def _sync(self) -> None:
        """A checkpoint never knows more steps than the metrics."""
        self._metrics.sync()
        self._timings.sync()


def _is_due(every: int, step: int) -> bool:
    return every > 0 and step % every == 0
