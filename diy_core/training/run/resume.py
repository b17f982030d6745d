"""How a run is continued, and which may be: those that come to the same numbers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from diy_core.system.outside import is_there
from diy_core.system.places import unused_name
from diy_core.system.shell import command

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


def next_command(
    program: str,
    run_dir: str | Path,
    step: int,
    config: Mapping[str, Any],
    device: str | None = None,
) -> str:
    """What to type next, such as `to continue: diy-jax train --config ... --resume auto`.

    Args:
        program: such as `diy-jax train`.
        run_dir: of the run.
        step: at which it stands.
        config: `as_dict` of its config.
        device: that was asked for.

    Returns:
        A line, and a second one where the run is finished and its model can be asked: `export` and
        `generate`.
    """
    if step >= config["steps"]:
        return _commands_of_a_model(program.split()[0], Path(run_dir), device)
    words: list[str | Path] = [*program.split(), "--config"]
    words += [Path(run_dir) / "config.yaml", "--resume", "auto"]
    words += [] if device is None else ["--device", device]
    stop_at = config.get("stop_at")
    if stop_at is not None and step >= stop_at:
        words += ["--stop-at", "null"]
    return f"to continue: {command(*words)}"


def _commands_of_a_model(program: str, run: Path, device: str | None) -> str:
    out = Path(unused_name(f"{run}-model"))
    lines = f"to use the model: {command(program, 'export', run, '--out', out)}"
    if is_there(run / "model" / "tokenizer.json"):
        words: list[str | Path] = [program, "generate", out, "Once upon a time"]
        words += [] if device is None else ["--device", device]
        lines += f"\nthen: {command(*words)}"
    return lines


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What stands between two runs, a line `name: old, now new` for each field.

    Args:
        old: `as_dict` of the config that a run was started with.
        new: of the one that shall continue it.

    Returns:
        Lines for all fields that differ, except those of `MAY_DIFFER`.
    """
    return list(lines_of_differences(old, new).values())


def lines_of_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, str]:
    """The same lines, each under the name of its field."""
    left, right = flat(old), flat(new)
    return {
        name: f"{name}: {_shown(left, name)}, now {_shown(right, name)}"
        for name in apart(left, right)
    }


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The fields of `differences`, named `part.field`, with both values; None: not given."""
    left, right = flat(one), flat(other)
    return {name: [left.get(name), right.get(name)] for name in apart(left, right)}


def apart(
    left: Mapping[str, Any], right: Mapping[str, Any], may_differ: Collection[str] = MAY_DIFFER
) -> list[str]:
    """The names that two flat configs do not both have with the same value."""
    return [
        name
        for name in {**left, **right}
        if name not in may_differ
        and (name not in left or name not in right or not _same(left[name], right[name]))
    ]


def _same(left: Any, right: Any) -> bool:
    """Equal, and a number only to a number: 0 is not False, but 1 is 1.0."""
    return isinstance(left, bool) == isinstance(right, bool) and left == right


def _shown(flat: Mapping[str, Any], name: str) -> str:
    return repr(flat[name]) if name in flat else "not given"


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of nested mappings, each under a name such as `optimizer.learning_rate`."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
