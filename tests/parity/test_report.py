"""What a check found as a table and as JSON."""

from __future__ import annotations

import dataclasses
import io
import json

import pytest
from rich.console import Console

from parity.compare import Check
from parity.report import as_json, as_text, number, table, verdict

GOOD = Check("logits", "float64", "cpu", 1234, 2e-15, 1e-12, True, "logits")
BAD = Check("blocks", "float64", "cpu", 10, 0.5, 1e-12, False, "model.norm")
TRAINED = Check("training", "float32", "cpu", 100, 1.25, 2.0, True, "step 3", control=3e-9)


def printed(*checks: Check) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(table(checks, "a title"))
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
