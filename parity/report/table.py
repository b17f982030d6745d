"""What a check found, for people (a table) and for machines (JSON)."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from diy_core.checkpoints.atomic import atomic_file
from diy_core.system.places import is_stream, place
from diy_core.system.standard_output import announce
from diy_core.system.utf8 import writable
from parity.check.compare import Check, passed

_REACH = 20  # characters: the least width of its column
_ENDLESS = 10_000


def as_json(checks: Sequence[Check], environment: dict[str, Any]) -> dict[str, Any]:
    """`{"passed", "checks": [...], "environment"}`, the record of a check."""
    return {
        "passed": passed(checks),
        "checks": [check.record() for check in checks],
        "environment": environment,
    }


def as_text(record: Any) -> str:
    """A record as JSON; a number that is not finite, which JSON has not, is "inf" or "nan".

    A name that is not UTF-8 has escapes, which JSON reads back as the name.
    """
    text = json.dumps(_finite(record), indent=1, ensure_ascii=False, allow_nan=False)
    return writable(text) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def write_json(target: str, record: dict[str, Any]) -> None:
    """Write a record to a file, or to standard output for `-`."""
    text = as_text(record)
    if target == "-":
        sys.stdout.write(text)
        return
    file = place(target, "--json")
    if is_stream(file):
        file.write_text(text, encoding="utf-8")
        return
    with atomic_file(file) as temporary:
        temporary.write_text(text, encoding="utf-8")


def tell(target: str | None, record: dict[str, Any], text: str) -> None:
    """Say what a command has done: a text, or its record.

    Args:
        target: of `--json`: a file, besides the text; `-`: standard output, without the text.
        record: what was done.
        text: the same for people.
    """
    if target == "-":
        announce(as_text(record).rstrip())
        return
    announce(text)
    if target is not None:
        write_json(target, record)


def table(checks: Sequence[Check], title: str, console: Console) -> Table:
    """The checks as a table for a terminal; a failed one names the first place past its bound.

    What a check reached is said in rows and the positions of their tokens, documents or steps.
    Controls are there where a check has one. In a narrow window, two lines of text make one row.
    """
    result = _in_one_line(checks)
    endless = console.options.update(width=_ENDLESS)  # or the window would be all it asks for
    if console.measure(result, options=endless).minimum > console.width:
        result = _in_two_lines(checks)
    result.title, result.title_justify, result.title_style = title, "left", "bold"
    failed = [check for check in checks if not check.passed]
    result.caption_justify = "left"
    result.caption = "\n".join(
        f"{check.name}, {check.dtype}: first past the bound at {check.where or 'the outputs'}"
        for check in failed
    )
    return result


def _in_one_line(checks: Sequence[Check]) -> Table:
    result = Table()
    controlled = any(check.control is not None for check in checks)
    for column in ("check", "dtype"):
        result.add_column(column, no_wrap=True)
    result.add_column("compared", justify="right", no_wrap=True)
    result.add_column("reach (positions)", min_width=_REACH)
    for column in ("measured", "bound", *(["control"] if controlled else [])):
        result.add_column(column, justify="right", no_wrap=True)
    result.add_column("", no_wrap=True)
    for check in checks:
        numbers = [number(check.value, check.bound), number(check.bound, check.bound)]
        controls = [_control(check)] if controlled else []
        counted = f"{check.compared:,}"
        row = check.name, check.dtype, counted, check.reach, *numbers, *controls
        result.add_row(*row, _verdict_of(check))
    return result


def _in_two_lines(checks: Sequence[Check]) -> Table:
    """What a check reached stands below its name, and its control below its bound."""
    result = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    controlled = any(check.control is not None for check in checks)
    result.add_column("check\nreach (positions)")
    result.add_column("dtype", no_wrap=True)
    result.add_column("compared", justify="right", no_wrap=True)
    result.add_column("measured", justify="right", no_wrap=True)
    result.add_column("bound\ncontrol" if controlled else "bound", justify="right", no_wrap=True)
    result.add_column("", no_wrap=True)
    for check in checks:
        bound = number(check.bound, check.bound)
        result.add_row(
            f"{check.name}\n[dim]{check.reach}[/dim]" if check.reach else check.name,
            check.dtype,
            f"{check.compared:,}",
            number(check.value, check.bound),
            bound if check.control is None else f"{bound}\n[dim]{_control(check)}[/dim]",
            _verdict_of(check),
        )
    return result


def _control(check: Check) -> str:
    return "" if check.control is None else f"{check.control:.1e}"


def _verdict_of(check: Check) -> str:
    return "[green]ok[/green]" if check.passed else "[bold red]FAILED[/bold red]"


def number(value: float, bound: float) -> str:
    """Ratios and counts as they are read, errors as powers of ten; `bound` tells which it is."""
    if bound == 0:
        return f"{value:.0f} differ"
    if bound >= 1:
        return f"{value:.2f} x" if value < 1000 else f"{value:.1e} x"
    return f"{value:.1e}" if value else "0"


def verdict(checks: Sequence[Check], console: Console) -> None:
    """One last line: how many checks passed, and the first that did not."""
    failed = [check for check in checks if not check.passed]
    if not failed:
        console.print(f"[bold green]The twins are equal:[/bold green] {len(checks)} checks passed.")
        return
    first = failed[0]
    console.print(
        f"[bold red]The twins differ:[/bold red] {len(failed)} of {len(checks)} checks failed, "
        f"first {first.name} in {first.dtype} at {first.where or 'the outputs'}."
    )
