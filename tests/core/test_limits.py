"""The limits of what comes from outside: one table, one way to raise them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from diy_core.system import limits
from diy_core.system.limits import limit
from diy_core.system.outside import read_bytes

PAGE = Path(__file__).parents[2] / "docs" / "limits.md"


def test_each_can_be_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    assert limit("yaml_depth") == 32
    monkeypatch.setenv("DIY_LIMITS", "yaml_depth=40, template_seconds=7")
    assert (limit("yaml_depth"), limit("template_seconds")) == (40, 7)
    assert limit("yaml_items") == 10_000


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("yaml_dept=4", "there is no limit 'yaml_dept'; there are file_bytes"),
        ("yaml_depth", "yaml_depth must be a whole number, got ''"),
        ("yaml_depth=-1", "yaml_depth must be a whole number, got '-1'"),
        ("yaml_depth=" + "9" * 30, "must be a whole number"),
    ],
)
def test_what_cannot_be_read_is_refused(
    text: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIY_LIMITS", text)
    with pytest.raises(ValueError, match=f"DIY_LIMITS: .*{re.escape(said)}"):
        limit("yaml_depth")


def test_an_error_says_how_to_raise_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x").write_bytes(b"123456")
    monkeypatch.setenv("DIY_LIMITS", "file_bytes=5")
    with pytest.raises(ValueError, match=r"longer than 5 bytes: .* DIY_LIMITS=file_bytes=N raises"):
        read_bytes(tmp_path / "x")
    monkeypatch.setenv("DIY_LIMITS", "file_bytes=6")
    assert read_bytes(tmp_path / "x") == b"123456"


def test_the_page_lists_all_of_them() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([\d,]+) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert {name: int(value.replace(",", "")) for name, value in rows} == limits._DEFAULTS
