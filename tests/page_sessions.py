"""A page of documentation as a session in Python: its blocks run in order, in one namespace."""

from __future__ import annotations

import doctest
import re
from pathlib import Path
from typing import Any

_BLOCK = re.compile(r"^```(pycon|python)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_OPTIONS = doctest.ELLIPSIS | doctest.REPORT_ONLY_FIRST_FAILURE


def run(page: Path) -> int:
    """Run what stands between fences: `python` as it is, and `pycon` with the output it shows.

    Returns:
        How many examples of `pycon` gave what the page says.

    Raises:
        AssertionError: one gave something else; with its line on the page.
    """
    text = page.read_text(encoding="utf-8")
    scope: dict[str, Any] = {"__name__": page.stem}
    runner, said = doctest.DocTestRunner(verbose=False, optionflags=_OPTIONS), []
    for block in _BLOCK.finditer(text):
        above = text.count("\n", 0, block.start(2))
        if block[1] == "python":
            exec(compile("\n" * above + block[2], str(page), "exec"), scope)
            continue
        session = doctest.DocTestParser().get_doctest(block[2], {}, page.name, str(page), above)
        assert session.examples, f"{page.name}:{above}: no >>> in this block"
        session.globs = scope
        runner.run(session, out=said.append, clear_globs=False)
        assert runner.failures == 0, "".join(said)
    return runner.tries
