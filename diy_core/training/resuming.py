"""How a run is continued, and which may be: those that come to the same numbers."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# Where a run lies, how far it goes today, and how often it saves, evaluates and reports.
MAY_DIFFER = frozenset(
    {
        "run_dir",
        "stop_at",
        "checkpoint_every",
        "eval_every",
        "log_every",
        "keep_last",
        "keep_every",
        "keep_best",
    }
)


def command_to_go_on(program: str, run_dir: str | Path, options: Sequence[str] = ()) -> str:
    """What to type to go on with a run, such as `diy-jax train --config ... --resume auto`.

    Args:
        program: such as `diy-jax train`.
        run_dir: of the run.
        options: that follow.
    """
    file = str(Path(run_dir) / "config.yaml")
    return shlex.join([*program.split(), "--config", file, "--resume", "auto", *options])


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What stands between two runs, a line `name: old, now new` for each field.

    Args:
        old: `as_dict` of the config that a run was started with.
        new: of the one that shall continue it.

    Returns:
        Lines for all fields that differ, except those of `MAY_DIFFER`.
    """
    left, right = _flat(old), _flat(new)
    return [
        f"{name}: {_shown(left, name)}, now {_shown(right, name)}" for name in _apart(left, right)
    ]


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The fields of `differences`, named `part.field`, with both values; None: not given."""
    left, right = _flat(one), _flat(other)
    return {name: [left.get(name), right.get(name)] for name in _apart(left, right)}


def _apart(left: Mapping[str, Any], right: Mapping[str, Any]) -> list[str]:
    return [
        name
        for name in {**left, **right}
        if name not in MAY_DIFFER
        and (name not in left or name not in right or not _same(left[name], right[name]))
    ]


def _same(left: Any, right: Any) -> bool:
    """Equal, and a number only to a number: 0 is not False, but 1 is 1.0."""
    return isinstance(left, bool) == isinstance(right, bool) and left == right


def _shown(flat: Mapping[str, Any], name: str) -> str:
    return repr(flat[name]) if name in flat else "not given"


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
