"""A page of documentation as a session in Python: its blocks run in order, in one namespace."""

from __future__ import annotations

import contextlib
import doctest
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

_BLOCK = re.compile(r"^```(pycon|python)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE | doctest.REPORT_ONLY_FIRST_FAILURE
_ERROR = re.compile(r"\d\.\de[-+]\d\d\b")
_ROUNDING = 1e-14  # errors below it are those of float64, which differ from machine to machine


class _Checker(doctest.OutputChecker):
    """Compares numbers such as 1.3e-04, which are errors, by their size alone."""

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        texts = [_ERROR.sub("0.0e+00", text) for text in (want, got)]
        pairs = zip(_ERROR.findall(want), _ERROR.findall(got), strict=False)
        alike = all(_is_alike(float(one), float(other)) for one, other in pairs)
        return super().check_output(*texts, optionflags) and alike


def _is_alike(one: float, other: float) -> bool:
    return max(one, other) < _ROUNDING or one / 2 <= other <= 2 * one


def run(page: Path) -> int:
    """Run what stands between fences: `python` as it is, and `pycon` with the output it shows.

    Returns:
        How many examples of `pycon` gave what the page says.

    Raises:
        AssertionError: one gave something else; with its line on the page.
    """
    text, scope = page.read_text(encoding="utf-8"), {"__name__": "__main__"}
    runner = doctest.DocTestRunner(_Checker(), verbose=False, optionflags=_OPTIONS)
    with _settings_kept():
        for block in _BLOCK.finditer(text):
            above = text.count("\n", 0, block.start(2))
            if block[1] == "python":
                source = "\n" * above + block[2]
                exec(compile(source, str(page), "exec", dont_inherit=True), scope)
            else:
                _type_in(block[2], page, above, scope, runner)
    return runner.tries


def _type_in(
    block: str, page: Path, above: int, scope: dict[str, Any], runner: doctest.DocTestRunner
) -> None:
    session = doctest.DocTestParser().get_doctest(block, {}, page.name, str(page), above)
    assert session.examples, f"{page.name}:{above}: a block without >>>"
    session.globs, said = scope, []
    runner.run(session, out=said.append, clear_globs=False)
    assert runner.failures == 0, "".join(said)


@contextlib.contextmanager
def _settings_kept() -> Iterator[None]:
    """A page may switch JAX to float64; what comes after it is as it was."""
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", False)
