"""From which checkpoint a run goes on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

from diy_core.checkpoints.training_run import FORMS, checkpoint_path, form_of
from diy_core.errors import CheckpointError
from diy_core.training.checkpoints.files import whole_checkpoints
from diy_core.training.checkpoints.store import OtherTwinError
from diy_core.training.config import TrainConfig, as_dict
from diy_core.training.log.json_lines import logged_steps
from diy_core.training.log.progress import Report
from diy_core.training.protocols import Pieces
from diy_core.training.run.allowed_changes import NOTHING, Allowed
from diy_core.training.run.directory import RunDirectory
from diy_core.training.run.seal import (
    changes_between,
    place_in_data,
    refuse_changes,
    resealed,
    seal_of,
)
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
    config: TrainConfig,
    pieces: Pieces,
    directory: RunDirectory,
    report: Report,
    allowed: Allowed = NOTHING,
) -> Position:
    """Take the newest checkpoint that can be read; the trainer and the data go on from there.

    Args:
        config: of the run.
        pieces: at their beginning.
        directory: entered and begun.
        report: is told what could not be read, and what was changed on purpose.
        allowed: what may differ from what the checkpoint was made with.

    Returns:
        Where the run stands, sealed with what it has now.

    Raises:
        CheckpointError: none can be read; it is the newest one's, and says what to do.
        OtherTwinError: they are the other twin's.
        ValueError: config, model or data are no longer what they were.
    """
    now = seal_of(directory.root, as_dict(config))
    newest: CheckpointError | None = None
    steps = sorted(pieces.store.steps(), reverse=True)
    for i, step in enumerate(steps):
        where = checkpoint_path(directory.checkpoints, step)
        try:
            position = Position.from_json(pieces.store.restore(step), where)
            _require_place(position, step, where)
        except OtherTwinError:
            raise
        except CheckpointError as error:
            newest = newest or error
            then = ", the one before is tried" if steps[i + 1 :] else ""
            report.say(f"checkpoint {step} cannot be read{then}: {error}")
            continue
        old = position.made_with
        changes = [] if old is None else changes_between(old, now)
        for change in refuse_changes(where, changes, allowed):
            report.say(f"changed on purpose at step {step}: {change}")
        if position.seed != config.seed and (old is None or "seed" not in allowed):
            raise CheckpointError(where, f"is of seed {position.seed}, the run of {config.seed}")
        pieces.data.restore(place_in_data(position.data, pieces.data.state(), allowed))
        report.say(f"continuing from step {step} of {config.steps}")
        made_with = resealed(now, old, changes, step)
        return dataclasses.replace(position, seed=config.seed, made_with=made_with)
    if newest is None:
        raise CheckpointError(directory.checkpoints, "holds no whole checkpoint")
    raise CheckpointError(
        newest.where,
        f"{'; '.join(newest.faults)}. No checkpoint of the run can be read: with "
        f"{directory.checkpoints} moved away, --resume auto begins at step 0",
    ) from newest


def _require_place(position: Position, step: int, where: Path) -> None:
    """Raise for a position that is not where the checkpoint of this step stands."""
    if position.step != step:
        raise CheckpointError(where, f"is of step {position.step}")
    if not isinstance(position.data, Mapping):
        raise CheckpointError(where, f"holds no position in the data, but {position.data!r:.100}")
    if (index := position.data.get("next_index", step)) != step:  # a step takes one batch
        raise CheckpointError(
            where, f"stands at batch {index!r:.50} of the data after {step} steps"
        )
