"""What runs a page of documentation notices a page that is wrong."""

from __future__ import annotations

from pathlib import Path

import jax
import pytest

from tests import page_sessions

_MADE = "```python\nfrom dataclasses import dataclass\n@dataclass\nclass A:\n    b: int\n```\n"


def page(folder: Path, *blocks: str) -> Path:
    (folder / "page.md").write_text("# A page\n\n" + "\n".join(blocks))
    return folder / "page.md"


def test_blocks_share_one_namespace_and_their_output_may_be_wrapped(tmp_path: Path) -> None:
    shown = "```pycon\n>>> A(2)\nA(b=2)\n>>> print('one two')\none\ntwo\n```\n"
    assert page_sessions.run(page(tmp_path, _MADE, "    not this\n", shown)) == 2


@pytest.mark.parametrize(
    ("shown", "said"),
    [("1.3e-04", 1.5e-04), ("1.3e-16", 6.1e-15), ("0.0e+00", 1e-16), ("off by 2.0e+00", 1.4)],
)
def test_an_error_may_have_another_last_digit(tmp_path: Path, shown: str, said: float) -> None:
    words = shown.replace(shown[-7:], f"{said:.1e}")
    page_sessions.run(page(tmp_path, f"```pycon\n>>> print({words!r})\n{shown}\n```\n"))


@pytest.mark.parametrize(
    ("block", "line"),
    [
        (">>> 1 + 1\n3\n", 4),
        (">>> x = 1\n>>> print('1.3e-04')\n1.3e-05\n", 5),
        (">>> print('1.3e-04')\n1.3e-15\n", 4),
        (">>> print('2.0e-15')\n2.0e-13\n", 4),
        (">>> print('1.3e-04 1.3e-04')\n1.3e-04\n", 4),
        (">>> print(1)\n", 4),
        (">>> int('a')\nTraceback (most recent call last):\nTypeError: ...\n", 4),
    ],
)
def test_what_a_page_does_not_give_is_an_error(tmp_path: Path, block: str, line: int) -> None:
    with pytest.raises(AssertionError, match=rf"page\.md\", line {line},"):
        page_sessions.run(page(tmp_path, f"```pycon\n{block}```\n"))


def test_code_that_fails_is_an_error_in_its_line(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        page_sessions.run(page(tmp_path, "```python\nx = 1\nx / 0\n```\n"))
    assert caught.traceback[-1].lineno == 4  # counted from 0
    with pytest.raises(AssertionError, match="a block without >>>"):
        page_sessions.run(page(tmp_path, "```pycon\nx = 1\n```\n"))


def test_settings_of_jax_do_not_outlive_a_page(tmp_path: Path) -> None:
    shown = "```pycon\n>>> import jax\n>>> jax.config.update('jax_enable_x64', True)\n```\n"
    assert page_sessions.run(page(tmp_path, shown)) == 2
    assert not jax.config.read("jax_enable_x64")
