"""What a run says of steps that were skipped, and of too many of them in a row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from diy_core.training.interfaces import TrainingError
from diy_core.training.state import Position

_ADVICE = (
    "Begin a run in another run_dir with a lower optimizer.learning_rate, more "
    "optimizer.warmup_steps, a smaller optimizer.clip_norm or dtype float32; if the loss was never "
    "finite, look at the model's weights and the data"
)


def skipped_line(position: Position, loss: float, norm: float) -> str:
    """One line about the step that was skipped last."""
    return (
        f"step {position.step} was skipped: loss {loss}, gradient norm {norm} "
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
        f"gradient that is not finite. {left}. {_ADVICE}"
    )
