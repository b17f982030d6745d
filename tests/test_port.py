"""The tutorial in docs/port.md runs from its text, and finds the mistakes that it makes."""

from __future__ import annotations

from pathlib import Path

from tests import page_sessions

PAGE = Path(__file__).parents[1] / "docs" / "port.md"


def test_the_tutorial_runs_as_it_stands_there() -> None:
    assert page_sessions.run(PAGE) >= 15
