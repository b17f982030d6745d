"""What a run says of steps that were skipped, of too many in a row, and of those with no label.

A batch in which no token counts (long prompts, answers that stand in other rows) has no loss and
no gradient. Its step changes nothing, as one that is not finite, but nothing is wrong with the run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from diy_core.training.config import TrainConfig
from diy_core.training.protocols import TrainingError
from diy_core.training.state import Position

_ADVICE = (
    "Begin a run in another run_dir with a lower optimizer.learning_rate, more "
    "optimizer.warmup_steps, a smaller optimizer.clip_norm (not 0) or dtype float32; if the loss "
    "was never finite, look at the model's weights and the data"
)


class Uncounted:
    """The steps of this start of a run in which no token counted.

    Args:
        config: of the run.
        report: is told of the first one, the tenth, the hundredth, ... and of all at the end.
    """

    def __init__(self, config: TrainConfig, report: Callable[[str], None]) -> None:
        self._rows, self._length = config.batch_size, config.sequence_length
        self._report, self._count = report, 0

    def add(self, steps: int) -> None:
        """One more, after so many steps in all."""
        self._count += 1
        if math.log10(self._count).is_integer():
            self._say(steps)

    def finish(self, steps: int) -> None:
        """Say how many there were, unless it was the one of which that was said."""
        if self._count > 1:
            self._say(steps)

    def _say(self, steps: int) -> None:
        if self._count == steps:
            first = "the first step" if steps == 1 else f"any of the first {steps:,} steps"
            what = f"no token was counted in {first}, and nothing was learnt"
        else:
            what = (
                f"no token was counted in {self._count:,} of {steps:,} steps, which changed nothing"
            )
        self._report(
            f"{what}: prompts or padding fill the batch. With a longer sequence_length (now "
            f"{self._length}) or a larger batch_size (now {self._rows}) there are fewer such steps"
        )


def skipped_line(position: Position, loss: float, norm: float) -> str:
    """One line about the step that was skipped last."""
    large = ", too large to be squared" if math.isfinite(loss) and math.isfinite(norm) else ""
    return (
        f"step {position.step} was skipped: loss {loss}, gradient norm {norm}{large} "
        f"({position.skipped_in_a_row} in a row, {position.skipped_steps} in all)"
    )


def too_many_skipped(position: Position, steps: Sequence[int], checkpoints: Path) -> TrainingError:
    """The error that ends the run.

    Args:
        position: behind the last skipped step.
        steps: of the whole checkpoints.
        checkpoints: where they lie.
    """
    last_good = position.step - position.skipped_in_a_row
    before = [step for step in steps if step <= last_good]
    left = (
        f"The newest checkpoint from before them is that of step {before[-1]} in {checkpoints}; "
        f"`export --step {before[-1]}` makes a model of it, to begin another run from"
        if before
        else f"There is no checkpoint from before them in {checkpoints}"
    )
    return TrainingError(
        f"{position.skipped_in_a_row} steps in a row, up to {position.step}, had a loss or a "
        f"gradient that is not finite, or a gradient too large to be squared. {left}. {_ADVICE}"
    )
