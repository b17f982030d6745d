"""A training run where a model was meant: it is exported first."""

from __future__ import annotations

import dataclasses
import fnmatch
import os
import re
from pathlib import Path

from diy_core.errors import CheckpointError
from diy_core.system.outside import names_in, read_text
from diy_core.system.shell import command

# What each twin calls its arrays in a checkpoint of a run, and its program.
FORMS = {"state.safetensors": "diy-torch", "orbax": "diy-jax"}
# A run writes all its options; a config that somebody wrote by hand has some.
_OPTIONS = ("run_dir", "model", "data", "steps", "stop_at", "batch_size", "optimizer", "loss")
POSITION = "position.json"  # in each checkpoint: where the run stood
_DESCRIBING = ["config.yaml", "model/config.json"]  # the run's options, and its model


def checkpoint_path(checkpoints: Path, step: int) -> Path:
    """Where the checkpoint of a step lies. Both stores put it there whole, by a rename."""
    return checkpoints / f"{step:08d}"


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a path lies in a run.

    Attributes:
        run: the directory of the run, relative if the path is.
        room: of the run's own, that the path lies in, such as `checkpoints`; empty: the run itself.
        step: of the checkpoint that the path lies in; None: in none.
    """

    run: Path
    room: str
    step: int | None


def place_in_run(path: Path) -> Place | None:
    """Where a path lies in a run, whether it exists or not; None: in no run."""
    whole = path.absolute()
    run = next((folder for folder in (whole, *whole.parents[:3]) if _is_run(folder)), None)
    if run is None:
        return None
    room, step = (*whole.relative_to(run).parts, "", "")[:2]
    return Place(
        run if path.is_absolute() else Path(os.path.relpath(run)),
        room,
        int(step) if room == "checkpoints" and step.isdecimal() else None,
    )


def refuse_training_run(path: Path) -> None:
    """Raise for the directory of a run, and for what a run keeps inside.

    Raises:
        CheckpointError: it is one; the message has the command that makes a model of it. Or it is
            one of which a file is missing; the message names it.
    """
    place = place_in_run(path)
    if place is None:
        refuse_incomplete_run(path)
    if place is None or place.room not in ("", "checkpoints", "model"):
        return
    if (program := program_of(place.run, place.step)) is None:
        raise CheckpointError(path, "is a training run without a checkpoint, and no model yet")
    step = [] if place.step is None else ["--step", str(place.step)]
    export = command(program, "export", place.run, *step, "--out", "DIR")
    raise CheckpointError(path, f"is a training run and not a model: `{export}` makes one of it")


def refuse_incomplete_run(path: Path) -> None:
    """Raise for what holds checkpoints of a run, or is one, and has lost what says what they are.

    Raises:
        CheckpointError: it does; the message names the files.
    """
    run = path.absolute()
    if run.parent.name == "checkpoints":
        run = run.parent
    if run.name == "checkpoints":
        run = run.parent
    if (run / "config.json").is_file() or not any(run.glob(f"checkpoints/[0-9]*/{POSITION}")):
        return
    missing = [name for name in _DESCRIBING if not (run / name).is_file()]
    if not missing or (program := program_of(run)) is None:
        return
    what = "is" if run == path.absolute() else f"lies in {run},"
    export = command(program, "export", run, "--out", "DIR")
    remedy = f", or make a model of it (`{export}`)" if missing == _DESCRIBING[:1] else ""
    raise CheckpointError(
        path,
        f"{what} a training run of {program} without {' and '.join(missing)}: put back what was "
        f"there{remedy}",
    )


def _is_run(folder: Path) -> bool:
    return (
        (folder / "config.yaml").is_file()
        # Without its checkpoints, of which people make room, it is still a run.
        and ((folder / "checkpoints").is_dir() or (folder / "metrics.jsonl").is_file())
        and (folder / "model" / "config.json").is_file()
        and has_marks_of_run(folder)
    )


def has_marks_of_run(folder: Path) -> bool:
    """Whether files that only a run of ours has are there: other programs use its names, too.

    Any of them will do, as the others may be damaged: a config.yaml with all our options, or a
    checkpoint, called after its step, with a file that ours have.
    """
    names = names_in(folder / "checkpoints") if (folder / "checkpoints").is_dir() else []
    steps = [folder / "checkpoints" / name for name in names if name.isdecimal()]
    if any((step / name).exists() for step in steps for name in (POSITION, *FORMS)):
        return True
    try:
        text = read_text(folder / "config.yaml", "yaml_bytes")
    except CheckpointError:
        return False
    return all(re.search(rf"(?m)^{option}:", text) for option in _OPTIONS)


def form_of(checkpoint: Path) -> str | None:
    """What the arrays in a checkpoint of a run are called, one of `FORMS`; None: there are none."""
    return next((form for form in FORMS if (checkpoint / form).exists()), None)


def program_of(run: Path, step: int | None = None) -> str | None:
    """The twin that wrote a checkpoint; step None: the newest one."""
    name = "[0-9]*" if step is None else checkpoint_path(run, step).name
    names = fnmatch.filter(names_in(run / "checkpoints"), name)
    for folder in (run / "checkpoints" / found for found in reversed(names)):
        if form := form_of(folder):
            return FORMS[form]
    return None
