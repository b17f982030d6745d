"""Errors of libraries, as errors of the files that they were given.

What a library raises for a damaged file is anything: bare exceptions, RecursionError, MemoryError,
and from libraries in Rust panics, which derive from BaseException and print to standard error as
well. So each call that has a library look at what came from outside stands inside of this:

    with translated(file, "is not a readable tokenizer"):
        tokenizers.Tokenizer.from_str(text)

A test lists the libraries, and finds the calls that stand elsewhere.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from types import TracebackType

from diy_core.errors import CheckpointError, shorten

_PANIC = "PanicException"  # each library in Rust has a class of that name, and none says where
_FORMS = {
    RecursionError: "it is nested too deeply",
    MemoryError: "it needs more memory than there is",
}
_SAY_LITTLE = (LookupError, AttributeError, TypeError)  # without the names of their classes


def words_of(error: BaseException) -> str:
    """What an error of a library says, cut to what a person reads."""
    said = next((text for form, text in _FORMS.items() if isinstance(error, form)), str(error))
    if isinstance(error, _SAY_LITTLE):
        said = repr(error)
    return shorten(said) or type(error).__name__


class translated:
    """Turn what is raised inside into a CheckpointError that names the file.

    KeyboardInterrupt, SystemExit, and what is a CheckpointError already, pass through.

    Args:
        where: the file or directory.
        what: what is wrong with it, such as "is not a readable tokenizer", to which the words of
            the error are added; or what makes all that is said of an error.
        may_panic: whether the library is one in Rust, whose reports of panics are not shown.
        raises: a CheckpointError, or a class of it.

    Raises:
        CheckpointError: something was raised.
    """

    def __init__(
        self,
        where: object,
        what: str | Callable[[BaseException], str],
        *,
        may_panic: bool = False,
        raises: type[CheckpointError] = CheckpointError,
    ) -> None:
        self._where, self._what, self._raises = where, what, raises
        self._quiet = _Quiet() if may_panic else None

    def __enter__(self) -> None:
        if self._quiet:
            self._quiet.begin()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        panic = kind is not None and kind.__name__ == _PANIC
        if self._quiet:
            self._quiet.end(show=not panic)
        if error is None or isinstance(error, CheckpointError):
            return
        if not (panic or isinstance(error, Exception)):
            return
        what = self._what
        said = f"{what}: {words_of(error)}" if isinstance(what, str) else what(error)
        raise self._raises(self._where, said) from error


class _Quiet:
    """Holds back what is written to standard error, for one thread at a time: 2 microseconds."""

    _held: int | None = None  # a file in memory, one for the process
    _lock = threading.Lock()

    def __init__(self) -> None:
        self._usual: int | None = None

    def begin(self) -> None:
        if not self._lock.acquire(blocking=False):
            return  # another thread does
        try:
            if _Quiet._held is None:
                _Quiet._held = os.memfd_create("stderr", os.MFD_CLOEXEC)
            self._usual = os.dup(2)
            os.dup2(_Quiet._held, 2)
        except (OSError, AttributeError):  # no standard error; a system without such files
            self._restore()

    def end(self, *, show: bool) -> None:
        if self._usual is None or _Quiet._held is None:
            return
        held = b""
        if os.fstat(_Quiet._held).st_size:
            held = os.pread(_Quiet._held, 1 << 20, 0)
            os.ftruncate(_Quiet._held, 0)
            os.lseek(_Quiet._held, 0, os.SEEK_SET)
        self._restore()
        if held and show:
            with contextlib.suppress(OSError):  # nobody reads it
                os.write(2, held)

    def _restore(self) -> None:
        if self._usual is not None:
            os.dup2(self._usual, 2)
            os.close(self._usual)
            self._usual = None
        self._lock.release()
