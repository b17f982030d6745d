"""How long something took, in words that fit."""

from __future__ import annotations

import re
from typing import Any

import pytest
import rich.progress

from parity.commands import progress
from parity.commands.progress import amount, duration


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.0, "less than 0.1 s"),
        (0.0999, "less than 0.1 s"),
        (0.1, "0.1 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (185.0, "3 min 05 s"),
        (3599.6, "1 h 00 min"),
        (7800.0, "2 h 10 min"),
    ],
)
def test_a_duration_has_units_of_its_size(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_what_is_too_short_has_no_rate() -> None:
    assert amount(31_040, 0.004) == "31.0 kB in less than 0.1 s"
    assert amount(31_040, 0.94) == "31.0 kB in 0.9 s"
    assert amount(538_060_032, 2.5) == "538.1 MB in 2.5 s (215.2 MB/s)"
    assert amount(4_000_000_000_000, 4000.0) == "4.0 TB in 1 h 06 min (1.0 GB/s)"


@pytest.mark.parametrize("settled", [True, False])
def test_a_bar_has_no_rate_in_its_first_second(
    settled: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")  # of rich: as on a terminal
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(progress, "SETTLED", 0.0 if settled else 600.0)
    added: list[str] = []
    add_task = rich.progress.Progress.add_task

    def adding(self: Any, what: str, **options: Any) -> Any:
        added.append(what)
        return add_task(self, what, **options)

    monkeypatch.setattr(rich.progress.Progress, "add_task", adding)
    with progress.bar() as update:
        for done in (0, 3, 5):
            update("reading", done, 10)
        update("comparing", 2, 10)
    assert added == ["reading", "comparing"]
    shown = capsys.readouterr().err.rpartition("reading")[2]
    first, second = shown.split("comparing")
    assert "5/10 bytes" in first
    assert "2/10 bytes" in second
    assert ("/s" in first or "?" in first) is settled
    assert (re.search(r"[0-9-]:[0-9-][0-9-]", first) is not None) is settled


def test_elsewhere_nothing_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.bar() as update, progress.spinner() as say:
        update("reading", 5, 10)
        say("compiling")
    assert capsys.readouterr() == ("", "")
