"""A training run where a model was meant: it is exported first."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from diy_core.errors import CheckpointError

# What each twin calls its arrays in a checkpoint of a run, and its program.
FORMS = {"state.safetensors": "diy-torch", "orbax": "diy-jax"}


def refuse_training_run(path: Path) -> None:
    """Raise for the directory of a run, and for what a run keeps inside.

    Raises:
        CheckpointError: it is one; the message has the command that makes a model of it.
    """
    whole = path.absolute()
    run = next((folder for folder in (whole, *whole.parents[:3]) if _is_run(folder)), None)
    inside = whole.relative_to(run).parts if run else ()
    if run is None or (inside and inside[0] not in ("checkpoints", "model")):
        return
    step = inside[1] if inside[1:] and inside[1].isdecimal() else None
    if (program := _program(run, step)) is None:
        raise CheckpointError(path, "is a training run without a checkpoint, and no model yet")
    shown = run if path.is_absolute() else Path(os.path.relpath(run))
    words = [program, "export", str(shown), *(["--step", str(int(step))] if step else [])]
    command = shlex.join([*words, "--out", "DIR"])
    raise CheckpointError(path, f"is a training run and not a model: `{command}` makes one of it")


def _is_run(folder: Path) -> bool:
    return (
        (folder / "config.yaml").is_file()
        and (folder / "checkpoints").is_dir()
        and (folder / "model" / "config.json").is_file()
    )


def form_of(checkpoint: Path) -> str | None:
    """What the arrays in a checkpoint of a run are called, one of `FORMS`; None: there are none."""
    return next((form for form in FORMS if (checkpoint / form).exists()), None)


def _program(run: Path, step: str | None) -> str | None:
    """The twin that wrote a checkpoint; step None: the newest one."""
    for folder in sorted((run / "checkpoints").glob(step or "[0-9]*"), reverse=True):
        if form := form_of(folder):
            return FORMS[form]
    return None
