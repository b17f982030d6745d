"""From which checkpoint a run goes on."""

from __future__ import annotations

from diy_core.errors import CheckpointError
from diy_core.training.config import TrainConfig
from diy_core.training.interfaces import Pieces
from diy_core.training.progress import Report
from diy_core.training.run_directory import RunDirectory, checkpoint_path
from diy_core.training.state import Position


def restore(
    config: TrainConfig, pieces: Pieces, directory: RunDirectory, report: Report
) -> Position:
    """Take the newest checkpoint that can be read; the trainer and the data go on from there.

    Raises:
        CheckpointError: none can be read; it is the newest one's.
        ValueError: the data is no longer what it was.
    """
    newest: CheckpointError | None = None
    for step in reversed(pieces.store.steps()):
        where = checkpoint_path(directory.checkpoints, step)
        try:
            position = Position.from_json(pieces.store.restore(step), where)
            if (position.step, position.seed) != (step, config.seed):
                raise CheckpointError(where, f"is of step {position.step}, seed {position.seed}")
        except CheckpointError as error:
            newest = newest or error
            report.say(f"checkpoint {step} cannot be read, the one before is tried: {error}")
            continue
        pieces.data.restore(position.data)
        report.say(f"going on from step {step} of {config.steps}")
        return position
    if newest is None:
        raise CheckpointError(directory.checkpoints, "holds no whole checkpoint")
    raise newest
