"""How Orbax lays out its directories, told by the names of files: here nothing calls Orbax.

DIR/state, DIR/config.json        what `parity convert` writes
DIR/_METADATA                     v0: StandardCheckpointer, PyTreeCheckpointer
DIR/ITEM/_METADATA                v1: save; one step of a CheckpointManager
DIR/100/ITEM/_METADATA            the steps of a CheckpointManager or a training Checkpointer
"""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

from diy_core.checkpoints.orbax.tree import require_regular_tree, require_size
from diy_core.errors import CheckpointError
from diy_core.system.lfs import refuse_lfs_pointer
from diy_core.system.outside import is_there, names_in, read_bytes
from diy_core.system.shell import command

STATE = "state"
_CONFIG = "config.json"
_TREE, _CHECKPOINT = ("_METADATA", "manifest.ocdbt"), "_CHECKPOINT_METADATA"
_OF_CHECKPOINTS = (_CHECKPOINT, "orbax.checkpoint", "commit_success.txt")  # what Orbax opens beside
_ITEMS = ("params", "model", STATE, "default", "train_state")  # the likeliest first
_STEP = re.compile(r"(?:.*\D)?(\d+)")  # 100, step_100, ckpt_00000100
_NAMED_STEP = re.compile(  # and not llama-3, which may be a model
    r"(?:(?:.*[\W_])?(?:global_?)?(?:step|ckpt|checkpoint|epoch|iter|iteration)s?[\W_]*)?\d+", re.I
)
_UNFINISHED, _FINISHED = "orbax-checkpoint-tmp", "commit_success.txt"
# What Orbax makes in a checkpoint with one tree, by relative path; `_` names, as _METADATA, are its
# own in every version.
_MADE = re.compile(
    r"_CHECKPOINT_METADATA|orbax\.checkpoint|commit_success\.txt|"
    rf"{STATE}(/(_[A-Za-z_]+(\.json)?|array_metadatas(/process_\d+)?"
    r"|(ocdbt\.process_\w+(/|$))?(manifest\.ocdbt|d(/\w+)?)?))?"
)


def is_made_by_orbax(name: str) -> bool:
    """Whether a path relative to a checkpoint is one of Orbax's own, and nobody else's."""
    return _MADE.fullmatch(name) is not None


@dataclasses.dataclass(frozen=True)
class Location:
    """Where in a directory the arrays lie.

    Attributes:
        checkpoint: the directory that Orbax calls the checkpoint.
        item: the name of the tree in it; None: the checkpoint is the tree.
        notes: what was chosen, and from what.
        older: of several steps, the newest before the one that was chosen which has its manifest.
    """

    checkpoint: Path
    item: str | None
    notes: tuple[str, ...] = ()
    older: Path | None = None

    @property
    def tree(self) -> Path:
        """The directory of the arrays."""
        return self.checkpoint if self.item is None else self.checkpoint / self.item

    @property
    def advice(self) -> str:
        """What to do where it cannot be read, to stand behind the reason, or nothing."""
        if self.older is None:
            return ""
        return f". The newest step before it that has its manifest is {self.older}: give that"


def is_whole(path: Path) -> bool:
    """True for a checkpoint with its config, as `parity convert` writes it.

    Others call folders `state`, too: one of Orbax's own files is there, in it or beside it.
    """
    if not (path / STATE).is_dir() or not is_there(path / _CONFIG):
        return False
    return _is_tree(path / STATE) or any(is_there(path / name) for name in _OF_CHECKPOINTS)


def is_orbax(path: Path) -> bool:
    """True for whatever `locate` finds arrays in, or would but for several items."""
    return _is_tree(path) or bool(_items(path)) or bool(_steps(path))


def locate(path: Path) -> Location:
    """The arrays of an Orbax directory: the only tree, or that of the newest step.

    Raises:
        CheckpointError: there is none, or there are several items and none is called as
            parameters are.
    """
    if is_whole(path):
        return Location(path, STATE)
    if _is_tree(path):
        return _at(path)
    if items := _items(path):
        return _choose(path, items)
    steps = _steps(path)
    if not steps:
        raise CheckpointError(path, "is not an Orbax checkpoint: no arrays of Orbax lie in it")
    newest = max(steps)
    found = locate(steps[newest])
    notes = _on_newer(path, steps[newest], newest)
    if len(steps) > 1:
        notes.append(
            f"step {newest} was read, the newest of {len(steps)}: give {steps[min(steps)]}, or "
            "another, for that step"
        )
    elif not _NAMED_STEP.fullmatch(steps[newest].name):
        notes.append(
            f"{steps[newest]} was read, as its name ends in a number, like that of a step: give it "
            "by that name if it is a checkpoint by itself"
        )
    older = (steps[number] for number in sorted(steps, reverse=True) if number < newest)
    return dataclasses.replace(
        found,
        notes=(*notes, *found.notes),
        older=next(filter(_has_all, older), None),
    )


def config_directory(path: Path, config: str | Path | None = None) -> Path:
    """The directory of the config.json that belongs to an Orbax checkpoint.

    Args:
        path: the checkpoint, as it was given.
        config: what the user named, a config.json or a directory with one; None: it lies beside
            the arrays, or beside the steps.

    Raises:
        CheckpointError: there is none.
    """
    if config is not None:
        named = Path(config)
        folder = named.parent if named.name == _CONFIG else named
        if not is_there(folder / _CONFIG):
            raise CheckpointError(config, f"is neither a {_CONFIG} nor a directory with one")
        return folder
    location = locate(path)
    inside = (path, location.tree, location.checkpoint)
    beside = [place.parent for place in inside if _STEP.fullmatch(place.name)]
    found = next((place for place in (*inside, *beside) if is_there(place / _CONFIG)), None)
    if found is None:
        naming = command("parity", "convert", path, "DST", "--config", "DIR")
        raise CheckpointError(
            path,
            f"is an Orbax checkpoint without a {_CONFIG}, so nothing says which model it is: "
            f"`{naming}` takes that of DIR, a Hugging Face directory of the same model, and so "
            "does config='DIR' in from_pretrained of the JAX twin",
        )
    return found


def require_regular_files(location: Location) -> None:
    """Look at, and record, the files that Orbax opens by itself.

    Raises:
        CheckpointError: something else than a regular file is among them, a Git LFS pointer, or
            one that cannot be read; or the one that says what the others hold is missing.
    """
    files = require_regular_tree(location.tree)
    for file in (location.checkpoint / name for name in _OF_CHECKPOINTS):
        if is_there(file):
            require_size(file)
    for file in files:
        refuse_lfs_pointer(file)
    if lacking := _lacks(location.tree):
        raise CheckpointError(
            location.tree,
            f"has no {lacking}, without which Orbax cannot read it: it was not saved, or not "
            f"copied, to its end{location.advice}",
        )


def _lacks(tree: Path) -> str | None:
    """The file that a tree of arrays cannot be read without, if it is not there."""
    description, manifest = (tree / name for name in _TREE)
    if not is_there(description):
        return description.name
    try:
        says = json.loads(read_bytes(description, "header_bytes"))
    except (ValueError, RecursionError):  # Orbax will say more about it
        return None
    needed = isinstance(says, dict) and says.get("use_ocdbt") is True
    return manifest.name if needed and not is_there(manifest) else None


def _has_all(step: Path) -> bool:
    """Whether a step can be recommended."""
    try:
        return _lacks(locate(step).tree) is None
    except CheckpointError:
        return False


def _on_newer(path: Path, chosen: Path, number: int) -> list[str]:
    """A note on a directory that is named like a newer step but was never finished."""
    newer = [
        (int(step[1]), item)
        for item in _folders(path)
        if (step := _STEP.fullmatch(item.name))
        and int(step[1]) > number
        and _prefix(item) == _prefix(chosen)
    ]
    if not newer:
        return []
    _, last = max(newer)
    return [f"{last} was passed over: it is named like a newer step, but was never finished"]


def _choose(path: Path, items: list[str]) -> Location:
    if len(items) == 1:
        return _at(path / items[0])
    chosen = next((name for name in _ITEMS if name in items), None)
    if chosen is None:
        raise CheckpointError(
            path,
            f"holds several trees, {', '.join(items)}: give the one with the parameters, as "
            f"{path / items[0]}",
        )
    others = ", ".join(name for name in items if name != chosen)
    note = f"{chosen} was read, and {others} left out"
    return dataclasses.replace(_at(path / chosen), notes=(note,))


def _at(tree: Path) -> Location:
    """A tree inside of a checkpoint is asked for by its name there."""
    inside = not is_there(tree / _CHECKPOINT) and is_there(tree.parent / _CHECKPOINT)
    return Location(tree.parent, tree.name) if inside else Location(tree, None)


def _is_tree(path: Path) -> bool:
    return any(is_there(path / name) for name in _TREE)


def _folders(path: Path) -> list[Path]:
    items = [path / name for name in names_in(path) if _UNFINISHED not in name]
    return [item for item in items if item.is_dir()]


def _items(path: Path) -> list[str]:
    return [item.name for item in _folders(path) if _is_tree(item) and not _is_step(item)]


def _is_step(path: Path) -> bool:
    """A tree that is a checkpoint by itself and is named like a step."""
    return is_there(path / _CHECKPOINT) and _STEP.fullmatch(path.name) is not None


def _steps(path: Path) -> dict[int, Path]:
    """The finished steps in a directory, by number; none where it is one of models.

    Steps of one run are called alike but for the number. Where a rename is not atomic, as in cloud
    storage, Orbax marks the steps that are finished.
    """
    steps = {
        int(step[1]): item
        for item in _folders(path)
        if (step := _STEP.fullmatch(item.name))
        and (_is_tree(item) or _items(item))
        and not _is_model(item)
    }
    if len({_prefix(item) for item in steps.values()}) > 1:
        return {}
    marked = {number: item for number, item in steps.items() if is_there(item / _FINISHED)}
    return marked or steps


def _is_model(path: Path) -> bool:
    """A checkpoint with its config, whose name ends in a number and is not that of a step."""
    return is_there(path / _CONFIG) and not _NAMED_STEP.fullmatch(path.name)


def _prefix(step: Path) -> str:
    return step.name.rstrip("0123456789")
