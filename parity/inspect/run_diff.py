"""Where two training runs differ, or a run and a model: what `parity diff` finds out about runs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from diy_core.checkpoints.interface import GROUP, Stored, groups
from diy_core.checkpoints.training_run import Place, refuse_incomplete_run
from diy_core.checkpoints.transfer import Progress, check
from diy_core.config import DIYConfig
from diy_core.errors import CheckpointError
from diy_core.training.run.resume import differing
from diy_core.training.state import KINDS
from parity.inspect.config_differences import config_differences
from parity.inspect.models import difference, not_comparable
from parity.inspect.run_checkpoint import RunCheckpoint, config_of, place_of_run, steps_of
from parity.inspect.run_data import (
    KEY,
    Descriptions,
    data_difference,
    data_of,
    descriptions,
    meaning,
)
from parity.inspect.run_log import LOGS, compare_logs

MOMENTS = KINDS[1:]


@dataclasses.dataclass(frozen=True)
class _Side:
    """One of the two that are compared.

    Attributes:
        stored: shape and dtype of every array, `KIND/NAME`.
        read: gives some of them.
        config: of the model.
        record: what is said of it.
        checkpoint: None for a model.
        require_unchanged: raises where files of a model changed while they were read.
    """

    stored: Mapping[str, Stored]
    read: Callable[[Sequence[str]], Mapping[str, NDArray[Any]]]
    config: DIYConfig
    record: dict[str, Any]
    checkpoint: RunCheckpoint | None
    require_unchanged: Callable[[], None] = lambda: None


def diff_runs(
    one: str | Path,
    other: str | Path,
    *,
    step: int | None = None,
    verify: bool = False,
    config: str | Path | None = None,
    progress: Progress = lambda what, done, total: None,
) -> dict[str, Any]:
    """Compare two training runs, or one with a model; nothing is written, nothing is locked.

    Arrays are read at one step: `step`, the one that a path names, else the newest that both runs
    have. Where no step is named, the other checkpoints that both have are compared by their sums.

    Args:
        one: `RUN` or `RUN/checkpoints/STEP`, of either twin; or a model of any kind.
        other: likewise; one of the two is a run.
        step: of the checkpoints.
        verify: also read the other checkpoints and compare them, and a model, with their sums.
        config: of a model that is an Orbax checkpoint without one, as `open_checkpoint` takes it.
        progress: called often, with what is done, and bytes of how many.

    Returns:
        `equal`: whether nothing differs. `tensors`: the arrays that differ, `KIND/NAME`, as
        `inspection.diff` has them. `kinds`: for `model`, `mean` and `square` how many were
        `compared` and `differ`, with the `worst` relative L2 and its `tensor`. `position` and
        `config`: keys that differ, with both values. `data`: what `data_difference` returns.
        `checkpoints`: the steps that `both` have, `equal`, the last one whose state is the same,
        and `first`, the first whose state is not.
        `logs`: for each log, what `compare_logs` returns. The last two are None for a model.

    Raises:
        CheckpointError: no such checkpoint, it is damaged, or neither is a run.
    """
    places = [place_of_run(path, step) for path in (one, other)]
    if places == [None, None]:
        refuse_incomplete_run(Path(one))
        raise CheckpointError(one, "is not a training run, and neither is the other")
    if config is not None and None not in places:
        raise ValueError(
            "both are training runs, which have configs of their own: leave config out"
        )
    named = [place.step for place in places if place is not None and place.step is not None]
    runs = [place.run for place in places if place is not None]
    both = sorted(set(steps_of(runs[0])).intersection(*(steps_of(run) for run in runs)))
    wanted = named[0] if named else both[-1] if both else None
    left, right = (
        _model(path, config, verify, progress) if place is None else _run(path, _at(place, wanted))
        for path, place in zip((one, other), places, strict=True)
    )
    known = descriptions(runs, [config_of(run) for run in runs])
    (position, data), configs = _positions(left, right, known), _configs(left, right)
    checkpoints = logs = None
    if len(runs) == 2:
        logs = _logs(runs, same_config=not configs)
        if not named:
            checkpoints = _scan(runs, both, known, verify, progress)
    names = [n for n in {**left.stored, **right.stored} if len(runs) == 2 or n.startswith("model/")]
    faults = _arrays(names, left, right, progress)
    for side in (left, right):
        side.require_unchanged()
    apart = [*faults, *position, *configs]
    apart += [log for log in (logs or {}).values() if log["first"] is not None]
    parted = checkpoints is not None and checkpoints["first"] is not None
    return {
        "one": left.record,
        "other": right.record,
        "equal": not apart and not parted,
        "compared": len(names),
        "tensors": faults,
        "kinds": _kinds(names, faults),
        "position": position,
        "data": data,
        "config": configs,
        "checkpoints": checkpoints,
        "logs": logs,
        "verified": verify,
    }


def _at(place: Place, step: int | None) -> Place:
    return place if place.step is not None else dataclasses.replace(place, step=step)


def _run(path: str | Path, place: Place) -> _Side:
    checkpoint = RunCheckpoint.open(place.run, place.step)
    config = config_of(place.run)
    record = {
        "path": str(path),
        "kind": "run",
        "notes": checkpoint.notes,
        "program": checkpoint.program,
        "step": checkpoint.step,
        "of": config.get("steps"),
        "steps": steps_of(place.run),
    }
    return _Side(checkpoint.stored, checkpoint.read, checkpoint.config, record, checkpoint)


def _model(path: str | Path, config: str | Path | None, verify: bool, progress: Progress) -> _Side:
    from parity.convert.formats import open_checkpoint

    reader = open_checkpoint(path, config=config)
    if verify:
        check(reader, reader.require_manifest(), progress)

    def read(names: Sequence[str]) -> dict[str, NDArray[Any]]:
        arrays = reader.read_group([name.removeprefix("model/") for name in names])
        return {f"model/{name}": array for name, array in arrays.items()}

    stored = {f"model/{name}": tensor for name, tensor in reader.stored.items()}
    record = {"path": str(path), "kind": reader.kind, "notes": reader.notes}
    unchanged = reader.sources.require_unchanged
    return _Side(stored, read, reader.config, record, None, unchanged)


def _arrays(
    names: Sequence[str], left: _Side, right: _Side, progress: Progress
) -> list[dict[str, Any]]:
    """What is different about each array, worst first; a group of both is in memory at a time."""
    compared = [not_comparable(name, left.stored, right.stored) for name in names]
    found = [fault for fault in compared if fault is not None]
    lacking = {fault["name"] for fault in found}
    layout = {name: left.stored[name] for name in names if name not in lacking}
    done, total = 0, sum(stored.nbytes for stored in layout.values())
    progress("comparing", 0, total)
    for group in groups(layout, GROUP):
        a, b = left.read(group), right.read(group)
        for name in group:
            if (fault := difference(name, a[name], b[name])) is not None:
                found.append(fault)
            done += layout[name].nbytes
        progress("comparing", done, total)
    return sorted(found, key=_distance, reverse=True)


def _distance(fault: Mapping[str, Any]) -> float:
    relative = fault["relative_l2"]
    return math.inf if relative is None else float(relative)


def _kinds(names: Sequence[str], faults: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """For weights and each moment: how many differ, and the worst."""
    kinds: dict[str, Any] = {}
    for kind in KINDS:
        own = [fault for fault in faults if fault["name"].startswith(f"{kind}/")]
        count = sum(name.startswith(f"{kind}/") for name in names)
        if count:
            worst = next((fault for fault in own if fault["relative_l2"] is not None), None)
            kinds[kind] = {
                "compared": count,
                "differ": len(own),
                "worst": worst and worst["relative_l2"],
                "tensor": worst and worst["name"].removeprefix(f"{kind}/"),
            }
    return kinds


def _positions(
    left: _Side, right: _Side, known: Descriptions
) -> tuple[dict[str, list[Any]], dict[str, Any] | None]:
    """Keys that differ, data by their tokens; and how the descriptions of the data differ."""
    pair = (left.checkpoint, right.checkpoint)
    positions = [checkpoint.position for checkpoint in pair if checkpoint is not None]
    if len(positions) < 2:
        return {}, None
    one, other = positions
    found = differing(meaning(one, known), meaning(other, known))
    if KEY in found:  # as they are stored
        found[KEY] = [data_of(one), data_of(other)]
    return found, data_difference(one, other, known)


def _configs(left: _Side, right: _Side) -> dict[str, list[Any]]:
    """Keys that decide about the numbers: of the runs, and `model.KEY` of the models."""
    models = config_differences(left.config, right.config)
    found = {f"model.{key}": values for key, values in models.items()}
    pair = (left.checkpoint, right.checkpoint)
    runs = [config_of(checkpoint.run) for checkpoint in pair if checkpoint is not None]
    # What a run says of its model itself may be the path of another.
    return (differing(*runs) if len(runs) == 2 else {}) | found


def _logs(runs: Sequence[Path], *, same_config: bool) -> dict[str, Any]:
    dtype = config_of(runs[0]).get("dtype") if same_config else None
    return {name: compare_logs(runs[0] / name, runs[1] / name, dtype) for name in LOGS}


def _scan(
    runs: Sequence[Path],
    both: Sequence[int],
    known: Descriptions,
    verify: bool,
    progress: Progress,
) -> dict[str, Any]:
    """Where the states part, by the sums of all checkpoints that both runs have."""
    found: dict[str, Any] = {"both": list(both), "equal": None, "first": None}
    for number, step in enumerate(both):
        try:
            pair = [RunCheckpoint.open(run, step) for run in runs]
        except CheckpointError:
            if all(step in steps_of(run) for run in runs):
                raise
            found["both"].remove(step)  # the run that goes on deleted it
            continue
        if verify and step != both[-1]:
            for checkpoint in pair:
                for group in groups(checkpoint.stored, GROUP):
                    checkpoint.read(group)
            progress("verifying", number + 1, len(both))
        if pair[0].state(known) == pair[1].state(known):
            found["equal"] = step if found["first"] is None else found["equal"]
        elif found["first"] is None:
            found["first"] = step
    return found
