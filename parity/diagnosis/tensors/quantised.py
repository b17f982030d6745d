"""Whether a tensor became another one by quantisation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity.diagnosis.evidence import ROUNDED
from parity.tracing.compare.errors import relative_error

Array = NDArray[Any]
Changed = tuple[str, str, Array]  # name, what it looks like, the tensor that would have become so
_ROWS, _SAMPLE = 256, 4096  # rows, and values of a row, by which quantisation is known
_TOLD = 1e-6  # of values whose scale was rounded in some other way


def quantised(array: Array, other: Array) -> Iterator[Changed]:
    """Whole numbers of a step that the largest value sets: of all, of a row, of a block."""
    sides = (array, other)
    groups: list[tuple[str, list[Array]]] = [("the tensor", [a.reshape(1, -1) for a in sides])]
    if array.ndim == 2:
        groups += [("each output", [a.T for a in sides]), ("each input", list(sides))]
        for block in (b for b in (32, 64, 128) if array.shape[0] % b == 0):
            few = max(1, _ROWS * block // array.shape[0])  # outputs that have so many blocks
            blocks = [a[:, :few].T.reshape(-1, block) for a in sides]
            groups.append((f"{block} inputs of an output", blocks))
    largest = max(float(array.max()), -float(array.min()))
    some = tuple(slice(n) for n in (_ROWS, _SAMPLE)[: array.ndim])
    for top in (448.0, 240.0):  # float8 is scaled to fill its range
        step = largest / top or 1.0
        narrow = (array[some] / step).astype(ROUNDED["float8"]).astype(np.float64) * step
        if relative_error(narrow, other[some]) <= _TOLD:
            yield "weight-quantised", "is rounded to float8, with a scale for the tensor", other
    for per, (rows, wrong) in groups:
        rows, wrong = rows[:_ROWS], wrong[:_ROWS]
        low, high = rows.min(1, keepdims=True), rows.max(1, keepdims=True)
        rows, wrong = rows[:, :_SAMPLE], wrong[:, :_SAMPLE]
        for words in _steps(rows, wrong, low, high):
            yield "weight-quantised", f"{words}, with a scale for {per}", other
            return


def _steps(rows: Array, wrong: Array, low: Array, high: Array) -> Iterator[str]:
    """How rows with these bounds were quantised, if they were."""
    largest = np.maximum(-low, high)
    signed = np.where(-low >= high, low, high)
    for bits in (8, 4):
        top = 2 ** (bits - 1)
        for step, offset, bottom, most in (
            (largest / (top - 1), 0.0, -top, top - 1),
            (largest / top, 0.0, -top, top - 1),
            (signed / -top, 0.0, -top, top - 1),
            ((high - low) / (2 * top - 1), low, 0, 2 * top - 1),
        ):
            for narrow in (np.float64, np.float32, np.float16):  # the dtype of the scale
                unit = np.asarray(step).astype(narrow).astype(np.float64)
                unit = np.where(unit == 0, 1, unit)
                # llama.cpp rounds the scale only after it has divided by it.
                full = np.where(step == 0, 1, step)
                levels = [np.rint((rows - offset) / size) for size in (unit, full)]
                for clipped in (*levels, *(np.clip(a, bottom, most) for a in levels)):
                    if relative_error(clipped * unit + offset, wrong) <= _TOLD:
                        yield f"is quantised to {bits} bits"
                        return
