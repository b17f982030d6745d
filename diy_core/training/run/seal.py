"""What a checkpoint was made with, which is sealed into its position and compared later.

    {"config":  what config.yaml says, but for what may differ (`resuming.MAY_DIFFER`),
     "model":   what model/config.json says,
     "tokenizer", "data", "validation": SHA-256, of the tokenizer and of what describes the tokens,
     "changes": [{"step": 50, "key": "optimizer.learning_rate", "old": 0.001, "new": 0.0005}]}

The position has a SHA-256 of its own, and a switch of framework hands it on. Checkpoints of earlier
versions have none of this, and are taken as they are.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from diy_core.checkpoints.hf.directory import CONFIG
from diy_core.checkpoints.training_run import POSITION, checkpoint_path
from diy_core.data import VALIDATION, tokenizer_hash
from diy_core.data.files import DESCRIPTION, file_hash
from diy_core.errors import CheckpointError
from diy_core.system.outside import is_there
from diy_core.text.tokenizer_files import read_json
from diy_core.training.checkpoints.files import read_position
from diy_core.training.run.allowed_changes import NOTHING, READING, Allowed
from diy_core.training.run.resume import MAY_DIFFER, apart, flat
from diy_core.training.state import Position

_NONE = "not given"
# Of the sums: under which option each is known, and what it is the sum of.
_SUMS = {
    "tokenizer": ("data.tokenizer", "the tokenizer in model/ (SHA-256)"),
    "data": ("data.train", "the tokens of the training data (SHA-256)"),
    "validation": ("data.validation", "the tokens of the validation data (SHA-256)"),
}
# What a position in the data holds, and under which option that is known.
_OF_DATA = {
    "data": "data.train",
    "seed": "seed",
    "batch_size": "batch_size",
    "sequence_length": "sequence_length",
    "packing": "data.packing",
}
Seal = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Change:
    """One thing that is no longer what a checkpoint was made with.

    Attributes:
        key: the option that it belongs to.
        where: the file, or what it is.
        old: when the checkpoint was made.
        new: as it is now.
    """

    key: str
    where: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.where}: {self.key}: {_shown(self.old)}, now {_shown(self.new)}"


def made_anew(keys: Iterable[str]) -> set[str]:
    """What a run keeps (`model`, `data`) that has to be made again as options of it changed."""
    keys = set(keys)
    data = {"data"} if keys & READING else set()
    model = any(key.partition(".")[0] == "model" or key == "data.tokenizer" for key in keys)
    return data | ({"model"} if model else set())


def newest_seal(checkpoints: Path, steps: Iterable[int]) -> tuple[Path, Seal] | None:
    """The newest checkpoint that can be read, and what it was made with; None: nothing says that.

    Args:
        checkpoints: of a run.
        steps: of the checkpoints there, rising.
    """
    for step in sorted(steps, reverse=True):
        path = checkpoint_path(checkpoints, step)
        try:
            position = Position.from_json(read_position(path / POSITION), path)
        except CheckpointError:
            continue  # what is wrong with it is said where it is read as a whole
        return None if position.made_with is None else (path, position.made_with)
    return None


def seal_of(run: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint that is made now is made with.

    Args:
        run: the directory of the run.
        config: `as_dict` of its config.

    Raises:
        CheckpointError: a file of the run that cannot be read.
    """
    kept = {key: value for key, value in config.items() if key not in MAY_DIFFER}
    data = config.get("data")
    data = data if isinstance(data, Mapping) else {}
    train = _prepared(data.get("train"), run / "data")
    validation: Path | None = train / VALIDATION
    if isinstance(data.get("validation"), str):
        validation = _prepared(data["validation"], run / "validation")
    elif not data.get("validation"):
        validation = None
    model = run / "model"
    return {
        # As JSON gives it back: a YAML file may hold dates.
        "config": json.loads(json.dumps(kept, default=str)),
        "model": read_json(model / CONFIG),
        "tokenizer": tokenizer_hash(model) if is_there(model / "tokenizer.json") else None,
        "data": _sum(train),
        "validation": None if validation is None else _sum(validation),
    }


def _prepared(source: Any, kept: Path) -> Path:
    """Where the tokens of a source are: it was prepared before, or the run keeps them."""
    if isinstance(source, str) and is_there(Path(source) / DESCRIPTION):
        return Path(source)
    return kept


def _sum(data: Path) -> str | None:
    return file_hash(data / DESCRIPTION) if is_there(data / DESCRIPTION) else None


def changes_between(old: Seal, new: Seal) -> list[Change]:
    """What differs between two seals; data that are not there now are not compared."""
    found = []
    for part, where, prefix in (
        ("config", "config.yaml", ""),
        ("model", f"model/{CONFIG}", "model."),
    ):
        left, right = flat(old[part]), flat(new[part])
        found += [
            Change(prefix + name, where, left.get(name, _NONE), right.get(name, _NONE))
            for name in apart(left, right, may_differ=() if prefix else MAY_DIFFER)
        ]
    for name, (key, what) in _SUMS.items():
        if old[name] != new[name] and (new[name] is not None or name == "tokenizer"):
            found.append(Change(key, what, old[name] or _NONE, new[name] or _NONE))
    return found


def refuse_changes(
    where: object, changes: Sequence[Change], allowed: Allowed = NOTHING
) -> list[Change]:
    """Raise for changes that were not said to be deliberate; returns those that were.

    Args:
        where: the checkpoint.
        changes: of `changes_between`.
        allowed: what may have changed.

    Raises:
        ValueError: it names each with both values, and says what to do.
    """
    if refused := [change for change in changes if change.key not in allowed]:
        lines = "\n".join(f"  {change}" for change in refused)
        keys = ",".join(dict.fromkeys(change.key for change in changes))
        raise ValueError(
            f"{where} was made with something else than this run has now, and would go on as "
            f"another run:\n{lines}\nPut back what was there, or, where the change is meant, add "
            f"--allow-changes {keys}"
        )
    return list(changes)


def resealed(
    now: Seal, old: Seal | None = None, changes: Iterable[Change] = (), step: int = 0
) -> dict[str, Any]:
    """The seal of what follows: as it is now, with all changes that ever were.

    Args:
        now: of `seal_of`.
        old: of the checkpoint that the run goes on from; None: it has none.
        changes: between the two.
        step: of that checkpoint.
    """
    made = [
        {"step": step, "key": change.key, "old": change.old, "new": change.new}
        for change in changes
    ]
    return {**now, "changes": [*((old or {}).get("changes", [])), *made]}


def place_in_data(position: Any, now: Any, allowed: Allowed) -> Any:
    """A position in data, in which what may have changed is what it is now.

    Args:
        position: of the checkpoint.
        now: a position in the data as they are.
        allowed: what may have changed.
    """
    if not isinstance(position, Mapping) or not isinstance(now, Mapping):
        return position
    changed = {name: now[name] for name, key in _OF_DATA.items() if name in now and key in allowed}
    return {**position, **changed}


def require_same_model(checkpoint: Path, seal: Seal | None) -> None:
    """Raise where the model's config is not the one that a checkpoint was made with.

    Args:
        checkpoint: its folder, in its run.
        seal: of its position.

    Raises:
        CheckpointError: it names each entry with both values.
    """
    file = checkpoint.parents[1] / "model" / CONFIG
    if seal is None:
        return
    left, right = flat(seal["model"]), flat(read_json(file))
    faults = [
        f"{name} is {_shown(right.get(name, _NONE))}, and was {_shown(left.get(name, _NONE))} when "
        f"checkpoint {int(checkpoint.name)} was made: put that back"
        for name in apart(left, right, may_differ=())
    ]
    if faults:
        raise CheckpointError(file, faults)


def _shown(value: Any) -> str:
    return _NONE if value == _NONE else f"{value!r:.100}"
