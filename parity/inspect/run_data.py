"""The data that two runs stand in: whether they are the same tokens, and what differs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diy_core.data.files import DESCRIPTION, file_hash
from diy_core.errors import CheckpointError
from diy_core.text.tokenizer_files import read_json
from diy_core.training.state import Position

KEY = "data.data"  # of a position, where it is flat: the sha256 of data.json
Descriptions = Mapping[str, Mapping[str, Any]]


def descriptions(runs: Sequence[Path], configs: Sequence[Mapping[str, Any]]) -> Descriptions:
    """What `data.json` of the runs' training data says, by the sha256 that positions hold.

    Args:
        runs: the directories, which keep the tokens of a text that was named.
        configs: what their `config.yaml` says, which names data that were prepared before.
    """
    found: dict[str, Mapping[str, Any]] = {}
    for run, config in zip(runs, configs, strict=True):
        data = config.get("data")
        named = data.get("train") if isinstance(data, Mapping) else None
        folders = [run / "data", *([Path(named)] if isinstance(named, str) else [])]
        for file in (folder / DESCRIPTION for folder in folders):
            try:
                found[file_hash(file)] = read_json(file)
            except (OSError, CheckpointError):
                continue  # moved or damaged since: `data_difference` says that it is not known
    return found


def meaning(position: Position, known: Descriptions) -> dict[str, Any]:
    """A position in which data are named by their tokens, where these are known."""
    values, name = position.to_json(), data_of(position)
    del values["made_with"]  # configs and data are compared by themselves
    if name is not None and name in known:
        values["data"] = {**values["data"], "data": _tokens(known[name])}
    return values


def data_difference(one: Position, other: Position, known: Descriptions) -> dict[str, Any] | None:
    """How the data of two positions differ; None: they have one description, or name none.

    Returns:
        `same`: whether the tokens are, None if that is not known. `unknown`: the sides whose
        description is not there any more. `differ`: the keys of `data.json` that differ, with both
        values; a file by its sha256.
    """
    names = [data_of(position) for position in (one, other)]
    if None in names or names[0] == names[1]:
        return None
    unknown = [side for side, name in zip("AB", names, strict=True) if name not in known]
    if unknown:
        return {"same": None, "unknown": unknown, "differ": {}}
    left, right = (_flat(known[str(name)]) for name in names)
    differ = {
        key: [left.get(key), right.get(key)]
        for key in {**left, **right}
        if left.get(key) != right.get(key)
    }
    same = _tokens(known[str(names[0])]) == _tokens(known[str(names[1])])
    return {"same": same, "unknown": [], "differ": differ}


def in_words(found: Mapping[str, Any]) -> str:
    """A line about what `data_difference` found."""
    if found["same"] is None:
        sides = " and ".join(found["unknown"])
        return (
            f"{DESCRIPTION} differs, and that of {sides} is not where the config names the data: "
            "whether the tokens are the same is not known"
        )
    listed = [
        f"{key} ({values[0]!r} in A, {values[1]!r} in B)" if _is_short(values) else key
        for key, values in found["differ"].items()
    ]
    if found["same"]:
        return f"the same tokens; their {DESCRIPTION} differs in {', '.join(listed)}"
    return f"other tokens: {', '.join(listed)}"


def data_of(position: Position) -> str | None:
    """The sha256 of `data.json` that a position holds; None: none."""
    name = position.data.get("data") if isinstance(position.data, Mapping) else None
    return name if isinstance(name, str) else None


def _tokens(description: Mapping[str, Any]) -> str:
    """What stands for all that batches are made of: ids, where documents end, which count."""
    flat = _flat(description)
    made_of = {key: flat[key] for key in sorted(flat) if key == "dtype" or key.endswith(".bin")}
    return hashlib.sha256(json.dumps(made_of).encode()).hexdigest()


def _flat(description: Mapping[str, Any]) -> dict[str, Any]:
    """Each file as a key of its own."""
    files = description.get("files")
    sums = {
        name: entry.get("sha256") if isinstance(entry, Mapping) else entry
        for name, entry in (files.items() if isinstance(files, Mapping) else ())
    }
    return {key: value for key, value in description.items() if key != "files"} | sums


def _is_short(values: Sequence[Any]) -> bool:
    return all(isinstance(value, (int, float, type(None))) for value in values)
