"""What `parity diff` says of two checkpoints: their configs side by side, and their tensors."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from parity.inspect.models import SHOWN

_LAYER = re.compile(r"(?<=\.layers\.)\d+")
Fault = Mapping[str, Any]


def show_diff(record: Mapping[str, Any], console: Console) -> None:
    """Print what `parity.inspect.models.diff` found.

    Args:
        record: what it returned.
        console: where.
    """
    found = record["tensors"]
    if record["equal"]:
        console.print(f"equal: {record['compared']} tensors, bit for bit, and the same config")
        return
    if len(record["config"]) > 1:
        console.print(side_by_side(record["config"]))
    for key, (one, other) in record["config"].items() if len(record["config"]) == 1 else ():
        console.print(f"config: {key} is {one} in A, {other} in B", highlight=False, markup=False)
    others = [fault for fault in found if fault["relative_l2"] is None]
    numbered = [fault for fault in found if fault["relative_l2"] is not None]
    for line in folded(others):
        console.print(line, highlight=False, markup=False)
    kinds = Counter(tuple(fault["dtypes"]) for fault in numbered if fault["dtypes"])
    for (one, other), count in kinds.items():
        console.print(f"{count} tensors are {one} in A, {other} in B", highlight=False)
    if numbered:
        console.print(_differences(numbered[:SHOWN]))
    more = f", the worst {SHOWN} above" if len(numbered) > SHOWN else ""
    console.print(f"{len(found)} of {record['compared']} tensors differ{more}")


def side_by_side(config: Mapping[str, Sequence[Any]]) -> Table:
    """The keys that differ, a row each, with the value of either side; a key it lacks is empty."""
    table = Table(box=None, pad_edge=False)
    table.add_column("config", no_wrap=True)
    table.add_column("A", overflow="fold")
    table.add_column("B", overflow="fold")
    for key, values in config.items():
        table.add_row(escape(key), *("" if v is None else escape(str(v)) for v in values))
    return table


def folded(faults: Sequence[Fault]) -> Iterator[str]:
    """A line for each kind of tensor that is missing, or has another shape, in the same way.

    Args:
        faults: of single tensors; those of layers that say the same are one line, with the numbers
            of these layers in the place of one.
    """
    alike: dict[tuple[str, str], list[str]] = {}
    for fault in faults:
        kind = _LAYER.sub("*", fault["name"])
        alike.setdefault((kind, fault["what"]), []).append(fault["name"])
    for (kind, what), names in alike.items():
        numbers = [int(found[0]) for name in names if (found := _LAYER.search(name))]
        if len(names) == 1 or len(numbers) < len(names):
            yield f"{names[0]}: {what}"
        else:
            yield f"{kind.replace('*', _ranges(sorted(numbers)))}: {what}"


def _ranges(numbers: Sequence[int]) -> str:
    """`0-3,7`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _differences(faults: Sequence[Fault]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("tensor", overflow="fold")
    for column in ("rel. L2", "largest", "values"):
        table.add_column(column, justify="right", no_wrap=True)
    for fault in faults:
        numbers = (f"{fault['relative_l2']:.2e}", f"{fault['largest']:.2e}", str(fault["values"]))
        table.add_row(fault["name"], *numbers)
    return table
