"""What has to be installed for what: versions, and words for what is missing."""

from __future__ import annotations

import contextlib
import importlib.util
import platform
import sys
from collections.abc import Iterable, Iterator

# Each module that an extra of diy-lm brings, and the extra.
_EXTRAS = {
    "torch": "torch",
    **dict.fromkeys(("jax", "jaxlib", "flax", "optax", "orbax"), "jax"),
    **dict.fromkeys(("grain", "pyarrow", "jsonargparse", "yaml", "tensorboard"), "train"),
    **dict.fromkeys(("matplotlib", "scipy"), "all"),
}


def versions(packages: Iterable[str]) -> str:
    """`diy-lm 0.1.0, torch 2.13.0, jax not installed, Python 3.11.7`; nothing is imported."""
    known = [f"{name} {version(name) or 'not installed'}" for name in ("diy-lm", *packages)]
    return ", ".join([*known, f"Python {platform.python_version()}"])


def version(package: str) -> str | None:
    """Of an installed package; None where it is not installed."""
    import importlib.metadata  # late: it takes a third of the time of `--help`

    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


class NotInstalled(ModuleNotFoundError):
    """Something needed is not installed; the message says what for, and what installs it.

    Args:
        what: needs it, such as `parity check` or a package.
        module: that is missing.
        extra: of diy-lm, which brings it.
    """

    def __init__(self, what: str, module: str, extra: str) -> None:
        super().__init__(_words(what, module, extra), name=module)
        self.what, self.module, self.extra = what, module, extra


def require(what: str, *modules: str, extra: str | None = None) -> None:
    """Raise for the first module that is not installed; nothing is imported.

    Args:
        what: needs them, such as `parity check`.
        modules: top-level modules.
        extra: of diy-lm, which brings all of them; None: the one that brings the missing one.

    Raises:
        NotInstalled: one is missing.
    """
    for module in modules:
        if not is_installed(module):
            raise NotInstalled(what, module, extra or _EXTRAS[module])


def is_installed(module: str) -> bool:
    """Whether a top-level module can be found; it is not imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ValueError, ModuleNotFoundError):  # somebody hides it: None in sys.modules
        return False


@contextlib.contextmanager
def importing(package: str) -> Iterator[None]:
    """Inside, a package imports what it is made of; what is not installed is said by its extra.

    `python -m PACKAGE` comes by here too, where it is the commands that say so: `--help` needs no
    framework. (While Python looks for the module to run, `sys.argv[0]` is `-m`.)

    Raises:
        NotInstalled: a module of an extra is missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        module = _top(error)
        if module not in _EXTRAS:
            raise
        if sys.argv[:1] != ["-m"]:
            raise NotInstalled(package, module, _EXTRAS[module]) from None


def missing(what: str, error: ModuleNotFoundError) -> str:
    """`diy-jax train needs grain, which is not installed: pip install 'diy-lm[train]'`.

    Args:
        what: could not be done, such as `diy-jax train`.
        error: what an import raised.
    """
    if isinstance(error, NotInstalled):
        if error.what.isidentifier():  # a package, and not what was typed
            return _words(what, error.module, error.extra)
        return str(error) if error.what == what else f"{what}: {error}"
    module = _top(error)
    if module not in _EXTRAS:
        return f"{what}: {error}"
    return _words(what, module, _EXTRAS[module])


def _top(error: ModuleNotFoundError) -> str:
    return (error.name or "").partition(".")[0]


def _words(what: str, module: str, extra: str) -> str:
    return f"{what} needs {module}, which is not installed: pip install 'diy-lm[{extra}]'"
