"""What a check found, for people (a table) and for machines (JSON)."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from parity.compare import Check, passed


def as_json(checks: Sequence[Check], environment: dict[str, Any]) -> dict[str, Any]:
    """`{"passed", "checks": [...], "environment"}`, the record of a check."""
    return {
        "passed": passed(checks),
        "checks": [dataclasses.asdict(check) for check in checks],
        "environment": environment,
    }


def write_json(target: str, record: dict[str, Any]) -> None:
    """Write a record to a file, or to standard output for `-`."""
    text = json.dumps(record, indent=2) + "\n"
    if target == "-":
        sys.stdout.write(text)
    else:
        Path(target).write_text(text, encoding="utf-8")


def table(checks: Sequence[Check], title: str) -> Table:
    """The checks as a table for a terminal; a failed one names the first place past its bound."""
    result = Table(title=title, title_justify="left", title_style="bold")
    for column, justify in (
        ("check", "left"),
        ("dtype", "left"),
        ("compared", "right"),
        ("measured", "right"),
        ("bound", "right"),
        ("", "left"),
    ):
        result.add_column(column, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for check in checks:
        verdict = "[green]ok[/green]" if check.passed else "[bold red]FAILED[/bold red]"
        result.add_row(
            check.name,
            check.dtype,
            f"{check.compared:,}",
            _number(check, check.value),
            _number(check, check.bound),
            verdict,
        )
    for check in checks:
        if not check.passed:
            result.caption = f"{result.caption or ''}{check.name}, {check.dtype}: first past the "
            result.caption += f"bound at {check.where or 'the outputs'}\n"
    return result


def _number(check: Check, value: float) -> str:
    """Ratios and counts as they are read, errors as powers of ten."""
    if check.bound == 0:
        return f"{value:.0f} differ"
    return f"{value:.2f} x" if check.bound >= 1 else f"{value:.1e}"


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
