"""The one error of files that cannot be trusted."""

from __future__ import annotations

from collections.abc import Sequence


class CheckpointError(ValueError):
    """A checkpoint is missing something, holds something wrong, or cannot be read.

    All faults that were found are in `faults`; the message lists the first of them.
    """

    _SHOWN, _LONGEST = 20, 2000  # a damaged file may have names of megabytes

    def __init__(self, where: object, faults: Sequence[str] | str) -> None:
        self.where = where
        self.faults = [faults] if isinstance(faults, str) else list(faults)
        texts = [
            text if len(text) <= self._LONGEST else f"{text[: self._LONGEST]} ..."
            for text in self.faults[: self._SHOWN]
        ]
        if len(self.faults) == 1:
            super().__init__(f"{where}: {texts[0]}")
            return
        shown = [f"  - {text}" for text in texts]
        if len(self.faults) > self._SHOWN:
            shown.append(f"  - and {len(self.faults) - self._SHOWN} more")
        super().__init__("\n".join([f"{where}: {len(self.faults)} faults", *shown]))
