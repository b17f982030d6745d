"""A checkpoint of a run as a Hugging Face directory."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from diy_core.checkpoints.hf.side_files import copy_side_files
from diy_core.checkpoints.hf.writer import HFWriter
from diy_core.checkpoints.interface import Stored
from diy_core.checkpoints.kinds import KINDS, UnknownKind, kind_of
from diy_core.checkpoints.memory_reader import MemoryReader
from diy_core.checkpoints.training_run import checkpoint_path, place_in_run
from diy_core.checkpoints.transfer import transfer
from diy_core.config import DIYConfig
from diy_core.errors import CheckpointError
from diy_core.mapping import tensors
from diy_core.system.disk import require_room
from diy_core.system.held import real
from diy_core.system.places import made_directory, place
from diy_core.system.shell import command
from diy_core.system.sources import Sources
from diy_core.training.checkpoints.files import Checkpoint, whole_checkpoints
from diy_core.training.checkpoints.store import CheckpointStore, OtherTwinError
from diy_core.training.run.seal import require_same_model
from diy_core.training.state import Position


def find_checkpoint(run: str | Path, step: int | None) -> Path:
    """The checkpoint of a step; None: the newest.

    Raises:
        CheckpointError: no run there, or no such checkpoint; it lists those that there are.
    """
    folder = Path(run) / "checkpoints"
    steps = whole_checkpoints(folder)
    if not steps:
        raise CheckpointError(run, _what_it_is(Path(run)))
    if step is not None and step not in steps:
        listed = ", ".join(map(str, steps))
        raise CheckpointError(run, f"has no checkpoint of step {step}, only of {listed}")
    return checkpoint_path(folder, steps[-1] if step is None else step)


def _what_it_is(path: Path) -> str:
    """What is at a path where the checkpoints of a run are looked for, and what to give instead."""
    if not path.exists():
        return "does not exist: give the directory of a training run"
    place = place_in_run(path)
    begun = (path / "config.yaml").is_file() and (path / "checkpoints").is_dir()
    if begun or (place and not place.room):
        return (
            "is a training run that has saved no checkpoint yet: it saves one after each "
            "checkpoint_every steps, when it is interrupted, and at its end"
        )
    if place:
        step = "" if place.step is None else f" and step={place.step}"
        return f"lies in the training run {place.run}: give {place.run}{step}"
    try:
        kind = KINDS[kind_of(path)]
    except UnknownKind:
        return "is not a training run: it has no checkpoints/ with the steps of one"
    except CheckpointError as error:
        return f"is not a training run: it {error.faults[0]}"
    return f"is a model ({kind}), not a training run: give the directory that train wrote"


def export(
    store: type[CheckpointStore],
    run: str | Path,
    step: int | None,
    out: str | Path,
    *,
    overwrite: bool = False,
) -> str:
    """Write the weights of a checkpoint as a Hugging Face directory, and read them back.

    Args:
        store: of the twin that wrote the run.
        run: its directory; the run may be going on.
        step: of the checkpoint; None: the newest.
        out: written whole or not at all, with config.json and the tokenizer of the run.
        overwrite: replace a model that is there.

    Returns:
        A line for people.

    Raises:
        CheckpointError: no such checkpoint, it is damaged, or `out` is in the way.
        ValueError: `out` lies inside the run, which would take it for its own.
        DiskFull: there is no room for the model.
    """
    path, model = find_checkpoint(run, step), Path(run) / "model"
    out = place(out, "out")
    if real(out).is_relative_to(real(run)):
        raise ValueError(f"out ({out}) lies inside the run {run}: choose a directory outside of it")
    try:
        sources = Sources()
        with sources.recording():
            checkpoint = store.open(path, DIYConfig.from_pretrained(model))
        require_same_model(path, Position.from_json(checkpoint.position, path).made_with)
        source = _source(checkpoint, model)
        source.sources = sources
        with made_directory(out.parent):
            require_room(out.parent, sum(stored.nbytes for stored in source.stored.values()))
            transfer(source, functools.partial(HFWriter, out, overwrite=overwrite))
    except OtherTwinError as error:
        words = (error.program, "export", Path(run), "--step", str(int(path.name)))
        made_by = command(*words, "--out", Path(out))
        raise CheckpointError(
            path, f"was written by {error.program}: `{made_by}` makes a model of it"
        ) from error
    except CheckpointError as error:
        if not str(error.where).startswith(str(path)):
            raise
        raise CheckpointError(error.where, [*error.faults, others_than(path)]) from error
    return f"{out}: {len(source.stored)} tensors of step {int(path.name)}, read back and compared"


def others_than(path: Path) -> str:
    """What to take instead of a checkpoint that is damaged."""
    steps = [str(step) for step in whole_checkpoints(path.parent) if step != int(path.name)]
    if not steps:
        return "there is no other checkpoint in this run"
    return f"take another checkpoint, of step {', '.join(steps)}: step={steps[-1]}"


def _source(checkpoint: Checkpoint, model: Path) -> MemoryReader:
    config = DIYConfig.from_pretrained(model)
    stored = {tensor.hf: Stored(tensor.shape, checkpoint.dtype) for tensor in tensors(config)}

    def fetch(name: str) -> NDArray[Any]:
        return checkpoint.read([f"model/{name}"])[f"model/{name}"]

    return MemoryReader(
        str(checkpoint.path), config, stored, fetch, functools.partial(copy_side_files, model)
    )
