"""A training run from its config to its last checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from diy_core.notes import notes_of_command
from diy_core.system.sources import unchanged_sources
from diy_core.system.standard_error import complain
from diy_core.training.checkpoints.files import whole_checkpoints
from diy_core.training.config import TrainConfig, as_dict
from diy_core.training.log.progress import Report
from diy_core.training.loop import train
from diy_core.training.protocols import Pieces, TrainingError
from diy_core.training.run.allowed_changes import NOTHING, Allowed
from diy_core.training.run.directory import RunDirectory, require_run_directory
from diy_core.training.run.model import origins
from diy_core.training.run.resume import next_command
from diy_core.training.run.seal import resealed, seal_of
from diy_core.training.signals import Interruption
from diy_core.training.start.announcement import first_line
from diy_core.training.start.restore import Verify, is_done, refuse_other_twin, restore
from diy_core.training.state import Position

EXIT_FAILED = 1

# (config, run directory, device or None) -> the twin's pieces, at step 0. The run directory is
# entered; the store writes into its `checkpoints`.
Assemble = Callable[[TrainConfig, RunDirectory, str | None], Pieces]


def start(
    program: str,
    config: TrainConfig,
    load: Callable[[], tuple[Assemble, Verify]],
    *,
    resume: bool,
    device: str | None,
    strict: bool,
    allowed: Allowed,
) -> int:
    """Say what begins, import the twin, and train; returns the exit code.

    Raises:
        ValueError: what `train_config` raises, or a run directory that cannot be one.
        OSError: a file cannot be read or written.
    """
    require_run_directory(config.run_dir)  # and not after the framework was imported
    if resume and not whole_checkpoints(Path(config.run_dir) / "checkpoints"):
        complain(f"nothing to resume in {config.run_dir}: a new run begins")
    if resume:
        refuse_other_twin(program, config.run_dir)
    if said := first_line(program, config, device):
        complain(said)
    assemble, verify = load()
    try:
        with notes_of_command(strict=strict):
            return train_config(
                config,
                assemble,
                verify,
                program=program,
                resume=resume,
                device=device,
                allowed=allowed,
            )
    except TrainingError as error:
        complain(f"{program}: {error}")
        return EXIT_FAILED


def train_config(
    config: TrainConfig,
    assemble: Assemble,
    verify: Verify,
    *,
    program: str,
    resume: bool = False,
    device: str | None = None,
    allowed: Allowed = NOTHING,
) -> int:
    """Train; returns the exit code: 0, or 130, 143 and 129 after a signal.

    Raises:
        TrainingError: the run cannot go on.
        ValueError: the run directory is in use, or holds another run; unusable data or checkpoints.
        OSError: a file cannot be read or written.
    """
    with (
        Report(config.last_step) as report,
        Interruption(report.last_words) as interruption,
        RunDirectory(config.run_dir, report.say, report.doing) as directory,
    ):
        going_on = directory.begin(config, resume=resume, allowed=allowed)
        if going_on and is_done(config, directory, verify):
            done = whole_checkpoints(directory.checkpoints)[-1]
            report.say(
                f"{config.run_dir} is finished: step {done} of {config.steps}"
                if done >= config.steps
                else f"{config.run_dir} is at step {done}, stop_at is {config.stop_at}"
            )
            report.say(next_command(program, directory.called, done, as_dict(config), device))
            return 0
        # Hours may lie between the model's config and its weights: data are prepared in between.
        with unchanged_sources(*from_where) if (from_where := origins(config)) else nullcontext():
            pieces = assemble(config, directory, device)
        if going_on:
            position = restore(config, pieces, directory, report, allowed)
        else:
            made_with = resealed(seal_of(directory.root, as_dict(config)))
            position = Position(seed=config.seed, made_with=made_with)
        begun = position.step
        position = train(config, pieces, directory, position, report, interruption)
        report.say(_outcome(config, begun, position.step, directory.checkpoints))
        if position.step:
            report.say(
                next_command(program, directory.called, position.step, as_dict(config), device)
            )
        return interruption.exit_code


def _outcome(config: TrainConfig, begun: int, step: int, checkpoints: Path) -> str:
    if step > begun:
        return f"saved step {step} of {config.steps} in {checkpoints}"
    if step:
        return f"no step was taken: step {step} of {config.steps} was saved before"
    return "no step was taken, and nothing was saved"
