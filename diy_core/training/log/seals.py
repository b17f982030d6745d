"""What a checkpoint knows of the logs of its run: `logs` in its position.

    {"metrics.jsonl":     {"bytes": 9120, "sha256": "..."},
     "evaluations.jsonl": {"bytes": 214, "sha256": "...", "losses": {"0": 5.5, "10": 4.2}}}

Bytes and sums are of the lines up to its step. Losses decide which checkpoint is the best one, and
are taken from here where a log says something else. Checkpoints of earlier versions have none.
"""

from __future__ import annotations

import bisect
import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diy_core.checkpoints.training_run import POSITION, checkpoint_path
from diy_core.errors import CheckpointError
from diy_core.system.outside import is_there, open_regular
from diy_core.training.checkpoints.files import read_position, whole_checkpoints
from diy_core.training.log.json_lines import parse_line, read_lines
from diy_core.training.state import Position

METRICS, EVALUATIONS = "metrics.jsonl", "evaluations.jsonl"
_PIECE = 1 << 20
_SHOWN = 3
LogSeals = Mapping[str, Mapping[str, Any]]


def sealed_losses(seals: LogSeals | None) -> dict[int, float] | None:
    """The validation loss by step, infinite where it was not finite; None: nothing says that."""
    if seals is None:
        return None
    losses = seals[EVALUATIONS]["losses"]
    return {int(step): math.inf if loss is None else loss for step, loss in losses.items()}


def changes_of_logs(run: Path, step: int, seals: LogSeals | None) -> list[str]:
    """What the logs of a run say differently than when a checkpoint was made, a sentence for each.

    Args:
        run: its directory.
        step: of the checkpoint.
        seals: in its position.

    Raises:
        CheckpointError: a log cannot be read.
    """
    if seals is None:
        return []
    said = _changed_losses(run / EVALUATIONS, step, sealed_losses(seals) or {})
    for name, seal in seals.items():
        if (name != EVALUATIONS or not said) and not _holds(run / name, seal):
            said.append(
                f"{run / name} is not what it was when checkpoint {step} was made: lines "
                f"{_of_steps(run, name, step)} were changed, removed or added. The weights do not "
                "depend on it; put back a copy if you have one"
            )
    return said


def _changed_losses(log: Path, step: int, sealed: Mapping[int, float]) -> list[str]:
    rows = (parse_line(line, log.name) for line in read_lines(log))
    found = {row["step"]: row["loss"] for row in rows if row is not None and row["step"] <= step}
    found = {at: math.inf if loss is None else loss for at, loss in found.items()}
    # An evaluation of the last step may come after its checkpoint.
    steps = sorted(at for at in found.keys() | sealed.keys() if at < step or at in sealed)
    apart = [
        f"at step {at} it says {_shown(found.get(at))}, the checkpoint {_shown(sealed.get(at))}"
        for at in steps
        if found.get(at) != sealed.get(at)
    ]
    if not apart:
        return []
    more = f"; and at {len(apart) - _SHOWN} more steps" if apart[_SHOWN:] else ""
    return [
        f"{log} is not what it was when checkpoint {step} was made: {'; '.join(apart[:_SHOWN])}"
        f"{more}. Which checkpoint is the best is decided by what the checkpoint says; put back a "
        "copy of the file if you have one"
    ]


def _shown(loss: float | None) -> str:
    return "nothing" if loss is None else f"loss {loss!r}"


def _holds(log: Path, seal: Mapping[str, Any]) -> bool:
    left, found = int(seal["bytes"]), hashlib.sha256()
    if is_there(log):
        with open_regular(log) as file:
            while left and (piece := file.read(min(left, _PIECE))):
                found.update(piece)
                left -= len(piece)
    return not left and found.hexdigest() == seal["sha256"]


def _of_steps(run: Path, name: str, step: int) -> str:
    """Which lines of a log are not what they were: those since the last checkpoint that agrees."""
    earlier = _earlier_seals(run / "checkpoints", name, step)
    # A log that agrees with one of them agrees with those before it.
    agree = bisect.bisect_left(earlier, True, key=lambda one: not _holds(run / name, one[1]))
    first = earlier[agree - 1][0] + 1 if agree else 0 if name == EVALUATIONS else 1
    return f"of step {step}" if first == step else f"of steps {first} to {step}"


def _earlier_seals(folder: Path, name: str, step: int) -> list[tuple[int, Mapping[str, Any]]]:
    found = []
    for earlier in whole_checkpoints(folder):
        path = checkpoint_path(folder, earlier)
        try:
            seals = Position.from_json(read_position(path / POSITION), path).logs
        except CheckpointError:
            continue  # what is wrong with it is said where it is read as a whole
        if seals is not None and earlier < step:
            found.append((earlier, seals[name]))
    return found
