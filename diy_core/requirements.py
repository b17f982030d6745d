"""What has to be installed for what: versions, and words for what is missing."""

from __future__ import annotations

import importlib.util
import platform
from collections.abc import Iterable

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
    """Something needed is not installed; the message says what for, and what installs it."""


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
            raise NotInstalled(_words(what, module, extra or _EXTRAS[module]), name=module)


def is_installed(module: str) -> bool:
    """Whether a top-level module can be found; it is not imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ValueError, ModuleNotFoundError):  # somebody hides it: None in sys.modules
        return False


def missing(what: str, error: ModuleNotFoundError) -> str:
    """`diy-jax train needs grain, which is not installed: pip install 'diy-lm[train]'`.

    Args:
        what: could not be done, such as `diy-jax train`.
        error: what an import raised.
    """
    if isinstance(error, NotInstalled):
        return str(error) if str(error).startswith(what) else f"{what}: {error}"
    module = (error.name or "").partition(".")[0]
    if module not in _EXTRAS:
        return f"{what}: {error}"
    return _words(what, module, _EXTRAS[module])


def _words(what: str, module: str, extra: str) -> str:
    return f"{what} needs {module}, which is not installed: pip install 'diy-lm[{extra}]'"
