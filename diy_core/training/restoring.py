"""From which checkpoint a run goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from diy_core.checkpoints.training_run import FORMS, form_of
from diy_core.errors import CheckpointError
from diy_core.training.checkpoint_store import OtherTwinError
from diy_core.training.config import TrainConfig
from diy_core.training.interfaces import Pieces
from diy_core.training.json_lines import logged_steps
from diy_core.training.progress import Report
from diy_core.training.run_directory import RunDirectory, checkpoint_path, whole_checkpoints
from diy_core.training.state import Position

# (folder of a checkpoint, directory with the config.json of its model); raises CheckpointError.
# Both twins: `CheckpointStore.verify`.
Verify = Callable[[Path, Path], None]


def refuse_other_twin(program: str, run_dir: str | Path) -> None:
    """Raise for a run whose newest checkpoint the other twin wrote; only names of files are read.

    Args:
        program: that shall go on with it, such as `diy-jax train`.
        run_dir: of the run.

    Raises:
        OtherTwinError: it is the other twin's.
    """
    own, checkpoints = program.split()[0], Path(run_dir) / "checkpoints"
    steps = whole_checkpoints(checkpoints)
    newest = checkpoint_path(checkpoints, steps[-1]) if steps else None
    writer = FORMS.get(form_of(newest) or "") if newest else None
    if newest and writer and own in FORMS.values() and writer != own:
        raise OtherTwinError(newest, writer, own)


def is_done(config: TrainConfig, directory: RunDirectory, verify: Verify) -> bool:
    """Whether the newest checkpoint is that of the last step or a later one, and can be read.

    One that cannot be read is none: `restore` says so, and goes on from the one before. Nor is a
    run done that was interrupted in its last evaluation.

    Raises:
        ValueError: the model's config in the run directory cannot be used.
    """
    steps = whole_checkpoints(directory.checkpoints)
    if not steps or steps[-1] < config.last_step:
        return False
    try:
        verify(checkpoint_path(directory.checkpoints, steps[-1]), directory.model)
    except CheckpointError:
        return False
    evaluated = logged_steps(directory.evaluations_file)
    return steps[-1] < config.steps or not evaluated or config.steps in evaluated


def restore(
    config: TrainConfig, pieces: Pieces, directory: RunDirectory, report: Report
) -> Position:
    """Take the newest checkpoint that can be read; the trainer and the data go on from there.

    Raises:
        CheckpointError: none can be read; it is the newest one's, and says what to do.
        OtherTwinError: they are the other twin's.
        ValueError: the data is no longer what it was.
    """
    newest: CheckpointError | None = None
    steps = sorted(pieces.store.steps(), reverse=True)
    for i, step in enumerate(steps):
        where = checkpoint_path(directory.checkpoints, step)
        try:
            position = Position.from_json(pieces.store.restore(step), where)
            if (position.step, position.seed) != (step, config.seed):
                raise CheckpointError(where, f"is of step {position.step}, seed {position.seed}")
        except OtherTwinError:
            raise
        except CheckpointError as error:
            newest = newest or error
            then = ", the one before is tried" if steps[i + 1 :] else ""
            report.say(f"checkpoint {step} cannot be read{then}: {error}")
            continue
        pieces.data.restore(position.data)
        report.say(f"going on from step {step} of {config.steps}")
        return position
    if newest is None:
        raise CheckpointError(directory.checkpoints, "holds no whole checkpoint")
    raise CheckpointError(
        newest.where,
        f"{'; '.join(newest.faults)}. No checkpoint of the run can be read: with "
        f"{directory.checkpoints} moved away, --resume auto begins at step 0",
    ) from newest
