"""The gradients of the parameters, of one side against the other, one tensor at a time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity.tracing.compare.errors import relative_error
from parity.tracing.match.rules import Link
from parity.tracing.record.tensors import flax_tensors
from parity.tracing.record.torch_side import TorchRecord

Array = NDArray[Any]
_PART = 1 << 18  # values at a time: a copy of a large tensor in float64 would be larger still


def parameter_gradients(
    links: Sequence[Link], record: TorchRecord, gradients: Mapping[str, Any], path: str = ""
) -> Iterator[tuple[str, Array, Array]]:
    """The name of each parameter, and its gradient in PyTorch and in Flax, in Flax's layout.

    Args:
        links: which tensors are the same.
        record: the PyTorch side, whose gradients wait in a file.
        gradients: of the Flax side, as nested as its parameters.
        path: only parameters in this module of the PyTorch side; `""` is the whole model.
    """
    theirs = flax_tensors({"params": gradients})
    for link in links:
        if link.flax in theirs and (not path or link.torch.startswith(f"{path}.")):
            other = link.from_flax(theirs[link.flax])
            stored = record.gradients.get(link.torch)
            one = np.zeros_like(other)  # torch makes no gradient of what the loss does not touch
            if stored is not None:
                one = link.from_torch(record.spool.get(stored))
            yield link.torch, one, other


def gradient_errors(found: Iterable[tuple[str, Array, Array]]) -> dict[str, float]:
    """The error of each parameter's gradient, measured against all gradients of its module.

    Some gradients are nothing but rounding errors: that of a key's bias, since softmax does not
    see what is added to all scores. They count for as much as they are.
    """
    modules: dict[str, list[tuple[str, float, float]]] = {}
    for name, one, other in found:
        measured = (name, relative_error(one, other), _square(one))
        modules.setdefault(name.rpartition(".")[0], []).append(measured)
    errors: dict[str, float] = {}
    for members in modules.values():
        whole = sum(square for _, _, square in members)
        for name, error, square in members:
            share = math.sqrt(square / whole) if square > 0 and whole < math.inf else 1.0
            errors[name] = max(error * share, errors.get(name, 0.0))
    return errors


def _square(array: Array) -> float:
    """The sum of the squares."""
    flat = array.reshape(-1)
    parts = (flat[i : i + _PART].astype(np.float64) for i in range(0, flat.size, _PART))
    return sum(float(np.dot(part, part)) for part in parts)
