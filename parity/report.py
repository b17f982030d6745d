"""What a check found, for people (a table) and for machines (JSON)."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from diy_core.checkpoints.atomic import atomic_file
from diy_core.system.places import is_stream, place
from diy_core.utf8 import writable
from parity.compare import Check, passed


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


def table(checks: Sequence[Check], title: str) -> Table:
    """The checks as a table for a terminal; a failed one names the first place past its bound.

    What a check reached is said in rows and the positions of their tokens, documents or steps.
    The column of controls is there where a check has one.
    """
    result = Table(title=title, title_justify="left", title_style="bold")
    controlled = any(check.control is not None for check in checks)
    for column, justify in (
        ("check", "left"),
        ("dtype", "left"),
        ("compared", "right"),
        ("reach (positions)", "left"),
        ("measured", "right"),
        ("bound", "right"),
        *([("control", "right")] if controlled else []),
        ("", "left"),
    ):
        folds = column == "reach (positions)"  # so that in a narrow window nothing is cut
        result.add_column(column, justify=justify, no_wrap=not folds)  # type: ignore[arg-type]
    for check in checks:
        verdict = "[green]ok[/green]" if check.passed else "[bold red]FAILED[/bold red]"
        control = "" if check.control is None else f"{check.control:.1e}"
        result.add_row(
            check.name,
            check.dtype,
            f"{check.compared:,}",
            check.reach,
            number(check.value, check.bound),
            number(check.bound, check.bound),
            *([control] if controlled else []),
            verdict,
        )
    for check in checks:
        if not check.passed:
            result.caption = f"{result.caption or ''}{check.name}, {check.dtype}: first past the "
            result.caption += f"bound at {check.where or 'the outputs'}\n"
    return result


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
