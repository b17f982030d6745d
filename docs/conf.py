"""How Sphinx builds the documentation: `make docs`, into build/docs."""

from __future__ import annotations

import importlib.metadata
import inspect
import re
import sys
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.util.inspect import stringify_signature

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import api_pages  # noqa: E402

project = "DIY LM"
version = release = importlib.metadata.version("diy-lm")
html_title = f"{project} {version}"
html_theme = "furo"
# Lines of 100 characters fit.
html_theme_options = {"light_css_variables": {"code-font-size": "0.72rem"}}
html_show_copyright = False

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
exclude_patterns = ["images"]
myst_heading_anchors = 3
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88
napoleon_numpy_docstring = False
napoleon_use_ivar = True

# Every Linen module has these two fields; they are Flax's, and nobody sets them by hand.
_OF_LINEN = re.compile(r", parent: .*?, name: [^,)]*(?=\))")
_SET_UP = {"setup", "dtype", "param_dtype"}  # of Linen modules; their class describes the dtypes
_CLASS = re.compile(r"<class '([\w.]+)'>")


def setup(app: Sphinx) -> None:
    """The pages that are derived, and the hooks below."""
    app.connect("builder-inited", _write_pages)
    app.connect("source-read", _turn_links)
    app.connect("autodoc-process-docstring", _mark_code, priority=400)  # before napoleon
    app.connect("autodoc-process-signature", _signature)
    app.connect("autodoc-skip-member", _skip)


def _write_pages(app: Sphinx) -> None:
    folder, texts = HERE / "generated", api_pages.pages()
    for old in folder.rglob("*.*"):
        if old.relative_to(folder).as_posix() not in texts:
            old.unlink()
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def _turn_links(app: Sphinx, name: str, text: list[str]) -> None:
    text[0] = api_pages.linked(text[0])


def _mark_code(
    app: Sphinx, kind: str, name: str, value: Any, options: Any, lines: list[str]
) -> None:
    lines[:] = api_pages.as_restructured_text(lines)


def _signature(
    app: Sphinx, kind: str, name: str, value: Any, options: Any, given: str | None, returned: Any
) -> tuple[str | None, Any]:
    """A signature as a reader would write it."""
    if given and given.startswith("(*_"):  # a class that explains arguments which no field has
        given = stringify_signature(
            inspect.signature(value.__init__),
            unqualified_typehints=True,
            show_return_annotation=False,
        )
        given = given.replace("(self, ", "(")
    if given:
        given = _CLASS.sub(r"\1", _OF_LINEN.sub("", given)).replace("<factory>", "...")
    return given, returned


def _skip(app: Sphinx, kind: str, name: str, value: Any, skip: bool, options: Any) -> bool | None:
    """Fields that their class describes: they would appear twice."""
    is_field = (getattr(value, "__doc__", "") or "").startswith("Alias for field")
    return True if is_field or name in _SET_UP else None
