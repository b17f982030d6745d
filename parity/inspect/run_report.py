"""What `parity diff` found about training runs, for people: the answer first."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from parity.inspect import run_data
from parity.inspect.diff_report import folded
from parity.inspect.models import SHOWN
from parity.inspect.run_log import COMPUTED

_NAMES = {"model": "weights", "mean": "mean", "square": "square"}  # of the arrays' kinds


def show_diff(record: Mapping[str, Any], console: Console) -> None:
    """Print what `diff_runs` found: the answer first."""
    say = functools.partial(console.print, highlight=False, markup=False, soft_wrap=True)
    say(answer(record))
    for letter, side in (("A", record["one"]), ("B", record["other"])):
        say(f"{letter}  {side['path']}: {_identity(side)}")
    for what in ("position", "config"):
        for key, (one, other) in record[what].items():
            if key != run_data.KEY or record["data"] is None:
                say(f"{what}: {key} is {one!r} in A, {other!r} in B")
    if record["data"] is not None:
        say(f"data: {run_data.in_words(record['data'])}")
    for name, log in (record["logs"] or {}).items():
        say(f"{name}: {_log(log)}")
    if checkpoints := record["checkpoints"]:
        say(f"checkpoints: {_checkpoints(checkpoints)}")
    for kind, found in record["kinds"].items():
        say(f"{_NAMES[kind]}: {_kind(found)}")
    numbered = [fault for fault in record["tensors"] if fault["relative_l2"] is not None]
    others = [fault for fault in record["tensors"] if fault["relative_l2"] is None]
    for text in folded(others):
        say(text)
    if numbered:
        console.print(_differences(numbered))


def answer(record: Mapping[str, Any]) -> str:
    """One line: equal, or where the two first part."""
    at = _steps(record)
    if record["equal"]:
        log = (record["logs"] or {}).get("metrics.jsonl", {"compared": 0})
        steps = f", and the losses of {log['compared']} steps" if log["compared"] else ""
        return f"equal to the bit {at}: {record['compared']} arrays{steps}"
    if parted := _parting(record):
        return f"{parted}; the configs differ" if record["config"] else parted
    if not record["tensors"]:
        parts = [part for part in ("position", "config") if record[part]]
        if record["position"].keys() == {run_data.KEY}:
            parts[0] = "data"
        verb = "differs" if parts in (["position"], ["config"]) else "differ"
        return f"the same arrays {at}, to the bit; {' and '.join(parts)} {verb}"
    return f"different {at}: {_worst(record) or 'no array is in both'}"


def _worst(record: Mapping[str, Any]) -> str:
    """How far weights and moments are apart at most."""
    kinds = record["kinds"].items()
    return ", ".join(
        f"{_NAMES[kind]} {_relative(found['worst'])}"
        for kind, found in kinds
        if found["worst"] is not None
    )


def _steps(record: Mapping[str, Any]) -> str:
    steps = [side["step"] for side in (record["one"], record["other"]) if side["kind"] == "run"]
    if len(set(steps)) == 1:
        return f"at step {steps[0]}"
    return f"between step {steps[0]} of A and step {steps[1]} of B"


def _parting(record: Mapping[str, Any]) -> str | None:
    """Where two runs first part, by what their logs say and by the checkpoints that both have."""
    checkpoints, log = record["checkpoints"], (record["logs"] or {}).get("metrics.jsonl")
    if checkpoints is None or log is None:
        return None
    equal, state = checkpoints["equal"], checkpoints["first"]
    line = log["first"] and log["first"]["step"]
    if state is None and line is None:
        return None
    before = "" if equal is None else f"equal to the bit up to step {equal}; "
    if line is not None and (state is None or line <= state):
        if equal is not None and equal >= line:
            return (
                f"equal to the bit at step {equal}, but the logs part at step {line}: {_first(log)}"
            )
        return f"{before}first part at step {line}: {_first(log)}"
    losses = ", after the same losses" if log["compared"] else ""
    worst = _worst(record) if state == record["one"]["step"] else ""
    apart = f": {worst}" if worst else ""
    return f"{before}first part at the checkpoint of step {state}{losses}{apart}"


def _first(log: Mapping[str, Any]) -> str:
    """What differs at the first step whose lines do."""
    parts = [_value(key, value) for key, value in log["first"]["values"].items()]
    if rounding := log["rounding"]:
        verdict = "within" if rounding["explains"] else "more than"
        parts.append(f"{verdict} the rounding of {rounding['dtype']} ({rounding['bound']:.1e})")
    return ", ".join(parts)


def _value(key: str, value: Mapping[str, Any]) -> str:
    if key not in COMPUTED:
        return f"{key} is {value['A']} in A, {value['B']} in B"
    if _is_finite(value["relative"]):
        return f"{key} {value['relative']:.1e} relative"
    return f"{key} is {_computed(value['A'])} in A, {_computed(value['B'])} in B"


def _computed(value: Any) -> str:
    """A loss or a norm; one that is not finite is written as none."""
    return f"{value:.9g}" if _is_finite(value) else "not finite"


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _relative(value: float) -> str:
    """A relative L2 in words."""
    return f"{value:.1e} relative" if math.isfinite(value) else "without a relation (zero in A)"


def _log(log: Mapping[str, Any]) -> str:
    damaged = [
        f"; line {', '.join(map(str, lines[:5]))} of {side} cannot be read"
        for side, lines in log["damaged"].items()
        if lines
    ]
    alone = [f"; {steps:,} more in {side}" for side, steps in log["alone"].items() if steps]
    rest = "".join([*alone, *damaged])
    if not log["compared"]:
        return "no step in both" + rest
    counted = f"{log['compared']} step{'' if log['compared'] == 1 else 's'}"
    span = f"{counted} in both, {log['range'][0]} to {log['range'][1]}"
    if log["first"] is None:
        return f"{span}, all the same" + rest
    if log["loss"] is None:
        first = log["first"]["step"]
        return f"{span}; the losses are the same; step {first} is the first that differs" + rest
    first, largest = log["loss"], log["largest"]
    text = f"{span}; the loss first differs at step {first['step']}"
    both = f"{_computed(first['A'])} and {_computed(first['B'])}"
    relative = f", {first['relative']:.1e} relative" if _is_finite(first["relative"]) else ""
    text += f" ({both}{relative})"
    if _is_finite(largest["relative"]) and largest["step"] is not None:
        text += f", most at step {largest['step']} ({largest['relative']:.1e})"
    return text + rest


def _checkpoints(found: Mapping[str, Any]) -> str:
    if not found["both"]:
        return "none of the same step in both"
    listed = ", ".join(map(str, found["both"]))
    if found["first"] is None:
        return f"{listed} in both, all the same"
    return f"{listed} in both; {found['first']} is the first that differs"


def _identity(side: Mapping[str, Any]) -> str:
    if side["kind"] != "run":
        from parity.convert.formats import KINDS

        return KINDS[side["kind"]]
    return f"a run of {side['program']}, here at step {side['step']} of {side['of']}"


def _kind(found: Mapping[str, Any]) -> str:
    if not found["differ"]:
        return f"{found['compared']} arrays, all the same"
    text = f"{found['differ']} of {found['compared']} arrays differ"
    if found["worst"] is None:
        return text
    most = " at most" if math.isfinite(found["worst"]) else ""
    return f"{text}, {_relative(found['worst'])}{most} ({found['tensor']})"


def _differences(faults: list[dict[str, Any]]) -> Table:
    """The tensors that differ most, a column for weights and for each moment."""
    tensors: dict[str, dict[str, float]] = {}
    for fault in faults:
        kind, _, name = fault["name"].partition("/")
        tensors.setdefault(name, {})[kind] = fault["relative_l2"]
    kinds = [kind for kind in _NAMES if any(kind in found for found in tensors.values())]
    order = sorted(tensors, key=lambda name: [-tensors[name].get(kind, 0.0) for kind in kinds])
    more = f" (the worst {SHOWN} of {len(order)})" if len(order) > SHOWN else ""
    table = Table(box=None, pad_edge=False)
    table.add_column(f"relative L2{more}", overflow="fold")
    for kind in kinds:
        table.add_column(_NAMES[kind], justify="right", no_wrap=True)
    for name in order[:SHOWN]:
        table.add_row(name, *(_number(tensors[name].get(kind)) for kind in kinds))
    return table


def _number(value: float | None) -> str:
    return "same" if value is None else f"{value:.1e}"
