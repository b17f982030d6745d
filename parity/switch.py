"""A training run of one twin as a run of the other, which goes on where it stands."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import yaml

from diy_core.checkpoints.atomic import atomic_directory
from diy_core.config import DIYConfig
from diy_core.errors import CheckpointError
from diy_core.training.checkpoint_store import FORMS, CheckpointStore
from diy_core.training.export import find_checkpoint
from diy_core.training.run_directory import RunDirectory, checkpoint_path
from diy_jax.training_store import TrainingStore as JaxStore
from diy_torch.training_store import TrainingStore as TorchStore

_STORES: tuple[type[CheckpointStore], ...] = (TorchStore, JaxStore)
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
        CheckpointError: no such checkpoint, it is damaged, or `new_run` exists.
        ValueError: another process trains in `run`.
    """
    run, new_run = Path(run), Path(new_run)
    find_checkpoint(run, step)  # before anything is made: the lock would make a directory
    with RunDirectory(run, report) as old:
        path = find_checkpoint(run, step)
        source, target = _direction(path)
        config = DIYConfig.from_pretrained(old.model)
        checkpoint = source.open(path, config)
        values = old.read_config() | {"run_dir": str(new_run)}
        new_run.parent.mkdir(parents=True, exist_ok=True)
        with atomic_directory(new_run, overwrite=False) as folder:
            _copy_history(run, folder)
            text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
            (folder / "config.yaml").write_text(text, encoding="utf-8")
            (folder / "checkpoints").mkdir()
            written = checkpoint_path(folder / "checkpoints", int(path.name))
            target.write(written, checkpoint.layout, checkpoint.parts(_PART), checkpoint.position)
            _compare(target, written, config, checkpoint.manifest.tensors)
    return FORMS[target.form]


def _direction(path: Path) -> tuple[type[CheckpointStore], type[CheckpointStore]]:
    """The store that wrote a checkpoint, and the other one."""
    for source, target in (_STORES, _STORES[::-1]):
        if (path / source.form).exists():
            return source, target
    raise CheckpointError(path, f"is of neither twin: it has none of {', '.join(FORMS)}")


def _copy_history(run: Path, folder: Path) -> None:
    for name in _HISTORY:
        if (run / name).is_dir():
            shutil.copytree(run / name, folder / name)
        elif (run / name).is_file():
            shutil.copyfile(run / name, folder / name)


def _compare(store: type[CheckpointStore], path: Path, config: DIYConfig, wanted: object) -> None:
    """Read a new checkpoint back; its sums are those of the old one."""
    written = store.open(path, config)
    for _ in written.read_all():
        pass
    if written.manifest.tensors != wanted:
        raise CheckpointError(path, "does not hold what was to be written")
