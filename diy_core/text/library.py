"""Errors of the `tokenizers` library, as errors of the files that it was given."""

from __future__ import annotations

from types import TracebackType

from diy_core.errors import CheckpointError


class library:
    """Turn what the `tokenizers` library raises inside into an error that names the file.

    It raises bare exceptions, and panics, which are none: they derive from `BaseException`.

    Args:
        where: the file or directory.
        what: what cannot be done.

    Raises:
        CheckpointError: the library raised something.
    """

    def __init__(self, where: object, what: str) -> None:
        self._where, self._what = where, what

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, Exception) or (kind and kind.__name__ == "PanicException"):
            raise CheckpointError(self._where, f"{self._what}: {error}") from error
