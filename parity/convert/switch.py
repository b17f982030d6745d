"""A training run of one twin as a run of the other, which goes on where it stands."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import yaml

from diy_core.checkpoints.atomic import atomic_directory
from diy_core.checkpoints.training_run import FORMS, checkpoint_path, form_of
from diy_core.config import DIYConfig
from diy_core.errors import CheckpointError
from diy_core.system.disk import room_for
from diy_core.system.held import real
from diy_core.system.outside import is_there, open_regular, require_tree
from diy_core.system.places import made_directory, place
from diy_core.training.checkpoints.files import Arrays, Checkpoint
from diy_core.training.checkpoints.store import CheckpointStore
from diy_core.training.export import find_checkpoint, others_than
from diy_core.training.run.directory import RunDirectory
from diy_core.training.run.seal import require_same_model
from diy_core.training.state import Position
from diy_jax.training_store import TrainingStore as JaxStore
from diy_torch.training_store import TrainingStore as TorchStore

_STORES: tuple[type[CheckpointStore], ...] = (TorchStore, JaxStore)
_PIECE = 1 << 20  # bytes of a file
_PART = 256 << 20  # bytes in memory at a time; each costs Orbax a round over all that it has
# What a run is beside its checkpoints and its config. The plot is drawn anew.
_HISTORY = (
    *("metrics.jsonl", "evaluations.jsonl", "timings.jsonl", "tensorboard"),
    *("model", "data", "validation"),
)


def switch(
    run: str | Path,
    new_run: str | Path,
    *,
    step: int | None = None,
    report: Callable[[str], None] = lambda text: None,
) -> str:
    """Make a run of the other twin out of one checkpoint of a run, with its history.

    Weights, moments, counters and the position in the data go over to the bit, and are read back.

    Args:
        run: the directory of a run, which stays as it is.
        new_run: written whole or not at all; it must not exist.
        step: of the checkpoint; None: the newest.
        report: is told what the user should know.

    Returns:
        The program that goes on with it, `diy-torch` or `diy-jax`.

    Raises:
        CheckpointError: no such checkpoint, it is damaged, or `new_run` exists or lies in `run`.
        ValueError: another process trains in `run`.
        DiskFull: there is no room for it.
    """
    run, new_run = Path(run), place(new_run, "NEW_RUN")
    find_checkpoint(run, step)  # before anything is made: the lock would make a directory
    _check_target(run, new_run)
    with RunDirectory(run, report) as old:
        path = find_checkpoint(old.root, step)
        config = DIYConfig.from_pretrained(old.model)
        with _naming_others(path):
            source, target = _direction(path)
            checkpoint = source.open(path, config)
        require_same_model(path, Position.from_json(checkpoint.position, path).made_with)
        values = old.read_config() | {"run_dir": str(new_run)}
        history = _history(old.root)
        needed = sum(file.stat().st_size for file in history)
        needed += sum(a.nbytes for a in checkpoint.layout.values())
        advice = "Free some, or choose a NEW_RUN on another disk"
        with (
            made_directory(new_run.parent),
            room_for(new_run, needed, advice, at_once=True),
            atomic_directory(new_run, overwrite=False) as folder,
        ):
            for file in history:
                _copy(file, folder / file.relative_to(old.root))
            text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
            (folder / "config.yaml").write_text(text, encoding="utf-8")
            (folder / "checkpoints").mkdir()
            written = checkpoint_path(folder / "checkpoints", int(path.name))
            target.write(written, checkpoint.layout, _parts(checkpoint), checkpoint.position)
            _compare(target, written, config, checkpoint.manifest.tensors)
    return FORMS[target.form]


def _check_target(run: Path, new_run: Path) -> None:
    if new_run.exists() or new_run.is_symlink():
        raise CheckpointError(new_run, "exists already: choose another NEW_RUN, or remove it first")
    if real(new_run).is_relative_to(real(run)):
        raise CheckpointError(new_run, f"is inside of {run}: choose a NEW_RUN beside it")


@contextlib.contextmanager
def _naming_others(path: Path) -> Iterator[None]:
    """The error of a checkpoint that cannot be read says which ones may be taken instead."""
    try:
        yield
    except CheckpointError as error:
        *faults, last = error.faults
        raise CheckpointError(error.where, [*faults, f"{last}; {others_than(path)}"]) from error


def _parts(checkpoint: Checkpoint) -> Iterator[Arrays]:
    """The arrays of a checkpoint as they are read; errors of who writes them stay what they are."""
    with _naming_others(checkpoint.path):
        yield from checkpoint.parts(_PART)


def _direction(path: Path) -> tuple[type[CheckpointStore], type[CheckpointStore]]:
    """The store that wrote a checkpoint, and the other one."""
    form = form_of(path)
    for source, target in (_STORES, _STORES[::-1]):
        if source.form == form:
            return source, target
    raise CheckpointError(path, f"is of neither twin: it has none of {', '.join(FORMS)}")


def _history(run: Path) -> list[Path]:
    """The files of a run's history. A part that it does not have is not a fault: the data of a run
    may lie elsewhere; but nothing that is there and cannot be read is left behind.
    """
    files: list[Path] = []
    for part in (run / name for name in _HISTORY):
        if part.suffix == ".jsonl":
            files += [part] if is_there(part) else []
        elif os.path.lexists(part):
            files += require_tree(part)
    return files


def _copy(file: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    with open_regular(file) as source, to.open("wb") as copy:
        shutil.copyfileobj(source, copy, _PIECE)
    shutil.copystat(file, to)


def _compare(store: type[CheckpointStore], path: Path, config: DIYConfig, wanted: object) -> None:
    """Read a new checkpoint back; its sums are those of the old one."""
    written = store.open(path, config)
    for _ in written.read_all():
        pass
    if written.manifest.tensors != wanted:
        raise CheckpointError(path, "does not hold what was to be written")
