"""What a check found as a table and as JSON."""

from __future__ import annotations

import dataclasses
import io
import json

import pytest
from rich.console import Console

from parity.check.compare import Check
from parity.report.table import as_json, as_text, number, table, verdict

GOOD = Check("logits", "float64", "cpu", 1234, 2e-15, 1e-12, True, "logits")
BAD = Check("blocks", "float64", "cpu", 10, 0.5, 1e-12, False, "model.norm")
TRAINED = Check("training", "float32", "cpu", 100, 1.25, 2.0, True, "step 3", control=3e-9)


def printed(*checks: Check, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(table(checks, "a title", console))
    verdict(checks, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return str(text)


def test_a_table_has_a_line_for_each_check_and_controls_where_there_are_any() -> None:
    text = printed(GOOD)
    assert "control" not in text
    for part in ("a title", "1,234", "2.0e-15", "1.0e-12", "ok", "equal: 1 checks passed"):
        assert part in text
    text = printed(GOOD, TRAINED)
    for part in ("control", "3.0e-09", "1.25 x", "2.00 x"):
        assert part in text


def test_a_failure_names_where() -> None:
    text = printed(GOOD, BAD)
    assert "FAILED" in text
    assert "blocks, float64: first past the bound at model.norm" in text
    assert "differ: 1 of 2 checks failed, first blocks in float64 at model.norm" in text


@pytest.mark.parametrize("width", [80, 120])
def test_nothing_is_cut_in_a_window_of_usual_width(width: int) -> None:
    far = dataclasses.replace(GOOD, name="context flax", reach="1 row, 24 of 0-8191, 30 layers")
    most = dataclasses.replace(
        BAD, name="cache-gradients prefix torch", compared=134_515_008, reach="2 rows, 0-39"
    )
    text = printed(far, most, TRAINED, width=width)
    assert "\u2026" not in text  # the ellipsis of a cell that was cut
    parts = [far.name, most.name, "134,515,008", most.reach, "FAILED", "3.0e-09", "1.25 x"]
    assert all(part in text for part in parts)
    assert all(len(line) <= width for line in text.splitlines())
    lines = [line.replace("│", " ").split() for line in text.splitlines()]
    where = next(n for n, line in enumerate(lines) if line[:2] == ["context", "flax"])
    if width == 80:  # what it reached stands below the name
        assert lines[where + 1] == far.reach.split()


@pytest.mark.parametrize(
    ("value", "bound", "text"),
    [
        (3, 0, "3 differ"),
        (1.234, 2.0, "1.23 x"),
        (34519.87, 2.0, "3.5e+04 x"),
        (1.5e-15, 1e-12, "1.5e-15"),
        (0.0, 1e-12, "0"),
        (float("inf"), 1e-12, "inf"),
        (float("inf"), 2.0, "inf x"),
    ],
)
def test_numbers_are_written_by_what_they_are(value: float, bound: float, text: str) -> None:
    assert number(value, bound) == text


def test_what_json_cannot_say_is_text() -> None:
    lost = dataclasses.replace(BAD, value=float("inf"), control=float("nan"))
    record = json.loads(as_text(as_json([GOOD, lost], {"cores": 2})), parse_constant=pytest.fail)
    assert [check["value"] for check in record["checks"]] == [2e-15, "inf"]
    assert record["checks"][1]["control"] == "nan"
    assert (record["passed"], record["environment"]) == (False, {"cores": 2})
