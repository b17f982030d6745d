"""JAX compiles one program once for all tests: it takes longer than they do."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator

import jax
from jax.experimental.compilation_cache import compilation_cache

_FOLDER = tempfile.TemporaryDirectory(prefix="jax-cache-")
_SETTINGS = {
    "jax_compilation_cache_dir": _FOLDER.name,
    "jax_persistent_cache_min_compile_time_secs": 0.5,
}


@contextlib.contextmanager
def compiled_once() -> Iterator[None]:
    """Inside, a program that was compiled inside before is taken from a folder of this process.

    Where all processes of the session share a folder, from that.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        yield
        return
    before = {name: getattr(jax.config, name) for name in _SETTINGS}
    for name, value in _SETTINGS.items():
        jax.config.update(name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
