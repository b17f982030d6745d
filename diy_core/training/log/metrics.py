"""`metrics.jsonl` and the files beside it, each of which reads as one run.

    metrics.jsonl      {"step": 7, "loss": 2.1, "grad_norm": 0.8, "learning_rate": 0.001,
                        "tokens": 512, "total_tokens": 3584, "skipped": false}
    evaluations.jsonl  {"step": 10, "loss": 2.0, "perplexity": 7.4, "tokens": 4096}

A line for each step, counted from 1, so that step 7 is what the checkpoint of step 7 holds; and a
line for each evaluation, that of step 0 before the first step. `tokens` are those that the loss
counts; what is not finite is null, as are loss and norm of a step in which no token counts. Nothing
in them depends on the clock, so a run that was killed and resumed has the same bytes as one that
was not. Seconds are in `timings.jsonl`.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from diy_core.system.disk import DiskFull, naming_full_disks
from diy_core.system.outside import is_there
from diy_core.training.log.json_lines import JsonLines, aside

_MOST = math.log(1.7e308)  # above it exp overflows


class Metrics:
    """What a run computed so far.

    Args:
        steps: the file `metrics.jsonl`.
        evaluations: the file `evaluations.jsonl`.
        last_step: of the checkpoint from which the run goes on; 0: it begins.
        say: is told which lines were damaged.

    Attributes:
        losses: (step, loss) of every step that was not skipped.
        evaluations: the validation loss by step.
        complete: False where lines of the steps before `last_step` are missing.
        lost_evaluations: True where lines of evaluations were damaged, now or in an earlier start.
    """

    def __init__(
        self,
        steps: Path,
        evaluations: Path,
        last_step: int,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._steps = JsonLines(steps, last_step, say)
        # A run that begins has not evaluated, whatever began here before.
        self._evaluations = JsonLines(evaluations, last_step or -1, say)
        self.lost_evaluations = is_there(aside(evaluations))
        self.losses: list[tuple[int, float]] = []
        self.evaluations: dict[int, float] = {}
        for row in self._steps.kept:
            self._note_step(row)
        for row in self._evaluations.kept:
            self._note_evaluation(row)
        self.complete = len(self._steps.kept) == last_step
        self._steps.kept.clear()

    def step(
        self,
        step: int,
        *,
        loss: float,
        grad_norm: float,
        learning_rate: float,
        tokens: int,
        total_tokens: int,
        skipped: bool,
    ) -> dict[str, Any]:
        """Add what a step computed; returns the line."""
        row = {
            "step": step,
            "loss": finite(loss),
            "grad_norm": finite(grad_norm),
            "learning_rate": learning_rate,
            "tokens": tokens,
            "total_tokens": total_tokens,
            "skipped": skipped,
        }
        self._steps.write(row)
        self._note_step(row)
        return row

    def evaluation(self, step: int, loss: float, tokens: int) -> dict[str, Any]:
        """Add an evaluation: the mean loss over so many tokens; returns the line."""
        perplexity = math.exp(loss) if loss < _MOST else math.inf
        values = {"loss": finite(loss), "perplexity": finite(perplexity), "tokens": tokens}
        row = {"step": step, **values}
        self._evaluations.write(row)
        self._note_evaluation(row)
        return row

    def is_best(self, step: int) -> bool:
        """Whether the evaluation of this step has the lowest loss so far."""
        loss = self.evaluations.get(step, math.inf)
        earlier = (other for at, other in self.evaluations.items() if at < step)
        return loss < min(earlier, default=math.inf)

    def sync(self) -> None:
        """Return when the disk holds all lines."""
        self._steps.sync()
        self._evaluations.sync()

    def close(self) -> None:
        """Close the files."""
        self._steps.close()
        self._evaluations.close()

    def _note_step(self, row: Mapping[str, Any]) -> None:
        if row["loss"] is not None and not row["skipped"]:
            self.losses.append((row["step"], row["loss"]))

    def _note_evaluation(self, row: Mapping[str, Any]) -> None:
        self.evaluations[row["step"]] = math.inf if row["loss"] is None else row["loss"]


def finite(number: float) -> float | None:
    """The number, or None, which is JSON's null: JSON knows no NaN and no infinity."""
    return number if math.isfinite(number) else None


class Events:
    """TensorBoard's events, as its own writer of records writes them.

    Args:
        path: the directory; events of an earlier start of the run lie in files of their own.
        last_step: TensorBoard shall not show what earlier starts wrote beyond this step.
    """

    def __init__(self, path: Path, last_step: int) -> None:
        # Late: it takes half a second.
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary, self._records = Event, Summary, RecordWriter
        path.mkdir(exist_ok=True)
        self._path = path
        self._begin()
        self._add(step=last_step + 1, session_log=SessionLog(status=SessionLog.START))

    def _begin(self) -> None:
        # TensorBoard reads the files in the order of their names.
        name = f"events.out.tfevents.{time.time_ns():020d}.{socket.gethostname()}.{os.getpid()}"
        self._file = (self._path / name).open("wb", buffering=0)
        self._add(file_version="brain.Event:2")

    def write(self, step: int, values: Mapping[str, float | None]) -> None:
        """Add a point for each value that is not None; on a full disk they are lost."""
        if os.fstat(self._file.fileno()).st_nlink > 1:  # a backup by `cp -al` keeps what it has
            self._file.close()
            self._begin()
        points = [
            self._summary.Value(tag=name, simple_value=value)
            for name, value in values.items()
            if value is not None
        ]
        self._add(step=step, summary=self._summary(value=points))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _add(self, **event: Any) -> None:
        record = io.BytesIO()
        self._records(record).write(self._event(wall_time=time.time(), **event).SerializeToString())
        start, written = self._file.tell(), 0
        with contextlib.suppress(DiskFull), naming_full_disks(Path(self._file.name)):
            written = self._file.write(record.getvalue())
        if written < len(record.getvalue()):  # half a record would hide all that come after it
            self._file.truncate(start)
            self._file.seek(start)
