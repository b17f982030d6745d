"""What a training run holds: `parity inspect` of a run."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from diy_core.checkpoints.interface import GROUP, groups
from diy_core.checkpoints.training_run import checkpoint_path, refuse_incomplete_run
from diy_core.checkpoints.transfer import Progress
from diy_core.config import DIYConfig
from diy_core.errors import CheckpointError
from diy_core.mapping import tensors
from diy_core.training.state import KINDS
from parity.inspect.models import bytes_on_disk, tensor_table
from parity.inspect.run_checkpoint import (
    GoneError,
    RunCheckpoint,
    config_of,
    place_of_run,
    steps_of,
)
from parity.inspect.run_log import LOGS, read_log


def inspect_run(
    path: str | Path, *, step: int | None = None, verify: bool = False, progress: Progress
) -> dict[str, Any]:
    """A record of a training run at one checkpoint; nothing is written, nothing is locked.

    Args:
        path: `RUN` or `RUN/checkpoints/STEP`.
        step: of the checkpoint; None: the one that the path names, else the newest.
        verify: read all arrays and compare them with their sums.
        progress: called while verifying.

    Returns:
        As `inspection.inspect`, where `tensors` are the arrays `KIND/NAME`; and `program`, `step`
        and `position` (None without a checkpoint), `steps` (of all checkpoints), `run` (what
        config.yaml holds), `logs`, the last line of each, and `damaged`: for each checkpoint that
        cannot be read its `step`, `path` and `faults`. Where none was asked for, the newest of the
        others is the one that is shown.

    Raises:
        CheckpointError: it is not a run, has no such checkpoint, or that is damaged, or all are.
    """
    place = place_of_run(path, step)
    if place is None:
        refuse_incomplete_run(Path(path))
        raise CheckpointError(path, "is not a training run")
    run, steps = config_of(place.run), steps_of(place.run)
    checkpoint: RunCheckpoint | None
    unread: list[dict[str, Any]] = []
    if place.step is not None:
        checkpoint = _opened(place.run, place.step, verify, progress)
    else:
        checkpoint, unread = _newest(place.run, steps, verify, progress)
    config = checkpoint.config if checkpoint else DIYConfig.from_pretrained(place.run / "model")
    rows = _rows(checkpoint) if checkpoint else []
    manifest = checkpoint.files.manifest if checkpoint else None
    damaged: dict[str, list[int]] = {name: [] for name in LOGS}
    logs = {name: _last(read_log(place.run / name, damaged[name])) for name in LOGS}
    return {
        "path": str(path),
        "kind": "run",
        "program": checkpoint and checkpoint.program,
        "step": checkpoint and checkpoint.step,
        "steps": steps,
        "position": checkpoint and checkpoint.position.to_json(),
        "run": run,
        "config": config.to_dict(),
        "tensors": rows,
        "total": {
            "tensors": len(rows),
            "parameters": sum(tensor.parameters for tensor in tensors(config)),
            "bytes": sum(row["bytes"] for row in rows),
            "bytes_on_disk": bytes_on_disk(checkpoint.files.path) if checkpoint else 0,
        },
        "logs": logs,
        "damaged": unread,
        "manifest": manifest and {"source": manifest.source, "versions": dict(manifest.versions)},
        "verified": verify and checkpoint is not None,
        "notes": [
            *(checkpoint.notes if checkpoint else ()),
            *(f"line {n} of {name} cannot be read" for name in LOGS for n in damaged[name]),
        ],
    }


def damage(record: Mapping[str, Any]) -> CheckpointError | None:
    """The error of the checkpoints that cannot be read; None: all can."""
    found = record["damaged"]
    if len(found) < 2:
        return CheckpointError(found[0]["path"], found[0]["faults"]) if found else None
    return CheckpointError(
        record["path"], [f"{one['path']}: {fault}" for one in found for fault in one["faults"]]
    )


def _newest(
    run: Path, steps: Sequence[int], verify: bool, progress: Progress
) -> tuple[RunCheckpoint | None, list[dict[str, Any]]]:
    """The newest checkpoint that can be read, None where there is none at all; and the others."""
    newest: RunCheckpoint | None = None
    damaged: list[dict[str, Any]] = []
    for step in reversed(steps):
        try:
            opened = _opened(run, step, verify and newest is None, progress)
        except GoneError:
            continue  # the run that goes on deleted it
        except CheckpointError as error:
            path = checkpoint_path(run / "checkpoints", step)
            damaged.append({"step": step, "path": str(path), "faults": _faults(error, path)})
        else:
            newest = newest or opened
    if newest is None and (fault := damage({"path": str(run), "damaged": damaged})) is not None:
        raise fault
    return newest, damaged


def _faults(error: CheckpointError, path: Path) -> list[str]:
    """The faults of a checkpoint; where they are of a file in it, they name the file."""
    where = str(error.where)
    if where == str(path):
        return error.faults
    return [f"{where.removeprefix(f'{path}/')}: {fault}" for fault in error.faults]


def _opened(run: Path, step: int, verify: bool, progress: Progress) -> RunCheckpoint:
    checkpoint = RunCheckpoint.open(run, step)
    if verify:
        _verify(checkpoint, progress)
    return checkpoint


def _verify(checkpoint: RunCheckpoint, progress: Progress) -> None:
    done, total = 0, sum(stored.nbytes for stored in checkpoint.stored.values())
    for group in groups(checkpoint.stored, GROUP):
        checkpoint.read(group)
        done += sum(checkpoint.stored[name].nbytes for name in group)
        progress("verifying", done, total)


def _rows(checkpoint: RunCheckpoint) -> list[dict[str, Any]]:
    """Each array under the names of its tensor."""
    sums, stored = checkpoint.files.manifest.tensors, checkpoint.stored
    return [
        {
            "name": (name := f"{kind}/{tensor.hf}"),
            "torch": tensor.torch,
            "flax": "/".join(tensor.flax),
            "shape": list(tensor.shape),
            "dtype": str(stored[name].dtype),
            "stored_as": str(stored[name].dtype),
            "bytes": stored[name].nbytes,
            "sha256": sums[name].sha256,
        }
        for kind in KINDS
        for tensor in tensors(checkpoint.config)
    ]


def _last(rows: Iterator[dict[str, Any]]) -> dict[str, Any] | None:
    last = deque(rows, maxlen=1)
    return last[0] if last else None


def show_run(record: Mapping[str, Any], console: Console) -> None:
    """Print what `inspect_run` found."""
    say = functools.partial(console.print, highlight=False, markup=False, soft_wrap=True)
    run, total, last_step = record["run"], record["total"], record["run"].get("steps")
    if record["step"] is None:
        say(f"{record['path']}: a training run of {last_step} steps, without a checkpoint yet")
    else:
        where = f"step {record['step']} of {last_step}"
        say(f"{record['path']}: a training run of {record['program']}, {where}")
        damaged = {one["step"] for one in record["damaged"]}
        steps = [f"{step} (damaged)" if step in damaged else str(step) for step in record["steps"]]
        say(f"checkpoints: {', '.join(steps)}")
        position = record["position"]
        say(
            f"position: {position['tokens']:,} tokens in the loss, {position['skipped_steps']} "
            f"steps skipped, batch {(position['data'] or {}).get('next_index', 0)} of the data next"
        )
    for name, last in record["logs"].items():
        if last is not None:
            values = ", ".join(f"{key} {_number(value)}" for key, value in last.items())
            say(f"{name}: up to {values}")
    console.print(_settings({"run": run, "model": record["config"]}))
    if not record["tensors"]:
        return
    weights = [row for row in record["tensors"] if row["name"].startswith("model/")]
    plain = [row | {"name": row["name"].removeprefix("model/")} for row in weights]
    console.print(tensor_table(plain, gguf=False))
    say(
        f"{len(weights)} tensors, {total['parameters']:,} parameters, each with both moments: "
        f"{decimal(total['bytes'])} as arrays, {decimal(total['bytes_on_disk'])} on disk"
    )
    state = "all match" if record["verified"] else "present, not checked (--verify checks them)"
    say(f"checksums: {state}")


def _settings(parts: Mapping[str, Mapping[str, Any]]) -> Table:
    """Keys and values; what is a config itself in a config has a line for each of its keys."""
    table = Table(show_header=False, box=None, pad_edge=False)
    for part, values in parts.items():
        for key, value in values.items():
            if part == "run" and key == "model" and isinstance(value, Mapping):
                continue  # the model's own config follows
            inner = value if isinstance(value, Mapping) else {"": value}
            for name, one in inner.items():
                full = f"{key}.{name}".rstrip(".")
                table.add_row(
                    escape(f"model.{full}" if part == "model" else full), escape(str(one))
                )
    return table


def _number(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
