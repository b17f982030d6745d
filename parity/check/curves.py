"""What a check measured along the model, the sequence or the steps: the curves of the report."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity.check.compare import Check
from parity.check.measures import (
    Pool,
    TensorError,
    pooled_gradients,
    pooled_outputs,
    position_errors,
)

FORWARD, BACKWARD = "forward by layer", "backward by layer"
FORWARD_POSITIONS, DECODE_POSITIONS = "forward by position", "decode by position"
BACKWARD_POSITIONS = "backward by position"
LOSS, LOSS_ERROR = "training loss", "training loss error"
_LAYERS: dict[str, tuple[str, Pool]] = {
    "logits": (FORWARD, pooled_outputs),
    "blocks": (FORWARD, pooled_outputs),
    "gradients": (BACKWARD, pooled_gradients),
}


@dataclasses.dataclass(frozen=True)
class Curve:
    """One line of a plot.

    Attributes:
        figure: which plot: one of the names at the top of this module.
        dtype: in which it was computed.
        side: `torch` or `flax`, against the float64 truth; or `control`.
        x: layers by name, positions or steps.
        y: relative errors, or losses.
    """

    figure: str
    dtype: str
    side: str
    x: tuple[str | int, ...]
    y: tuple[float, ...]


def layer_curves(checks: Iterable[Check]) -> list[Curve]:
    """Each twin's error by layer, forward and backward, pooled over the tensors of a layer."""
    found: dict[tuple[str, str, str], dict[str, list[TensorError]]] = {}
    pools: dict[str, Pool] = dict(_LAYERS.values())
    # The logits come last, as they do in the model.
    for check in sorted(checks, key=lambda check: check.name == "logits"):
        if check.name in _LAYERS:
            for error in check.tensors:
                places = found.setdefault((_LAYERS[check.name][0], check.dtype, error.side), {})
                places.setdefault(layer_name(error.name), []).append(error)
    return [
        Curve(*key, tuple(places), tuple(pools[key[0]](errors) for errors in places.values()))
        for key, places in found.items()
    ]


def layer_name(name: str) -> str:
    """Where a module or tensor stands: `embed`, `0` .. for a layer, `norm`, `head` or `logits`."""
    if layer := re.match(r"model\.layers\.(\d+)", name):
        return layer[1]
    names = {"embed_tokens": "embed", "norm": "norm", "lm_head": "head", "logits": "logits"}
    return next((short for part, short in names.items() if part in name.split(".")), "norm")


def position_curve(
    figure: str,
    dtype: str,
    side: str,
    where: NDArray[np.bool_],
    found: NDArray[Any],
    truth: NDArray[Any],
) -> Curve:
    """The relative error at each position, the worst of all rows.

    Args:
        figure: which plot.
        dtype: in which it was computed.
        side: `torch` or `flax`.
        where: (B, S), the positions that are compared.
        found: (positions, features): logits, or gradients.
        truth: the same in float64.
    """
    positions = np.nonzero(where)[1]
    worst = np.zeros(int(positions.max()) + 1)
    np.maximum.at(worst, positions, position_errors(found, truth))
    return Curve(figure, dtype, side, tuple(range(len(worst))), tuple(worst.tolist()))


def loss_curves(
    dtype: str,
    truth: NDArray[np.float64],
    losses: dict[str, NDArray[np.float64]],
    moved: NDArray[np.float64],
) -> list[Curve]:
    """Loss curves of one dtype, each with its relative error at each step.

    Args:
        dtype: in which they were computed.
        truth: the float64 losses of the PyTorch twin.
        losses: those of both twins, by side.
        moved: those of the control, whose error is what it is away from `flax`.
    """
    steps, curves = tuple(range(1, len(truth) + 1)), []
    errors = {side: values - truth for side, values in losses.items() if values is not truth}
    errors["control"] = moved - losses["flax"]
    for side, values in losses.items():
        curves.append(Curve(LOSS, dtype, side, steps, tuple(values.tolist())))
    for side, difference in errors.items():
        relative = np.abs(difference / truth)
        curves.append(Curve(LOSS_ERROR, dtype, side, steps, tuple(relative.tolist())))
    return curves


def worst_of(curves: Sequence[Curve]) -> list[Curve]:
    """Curves of several models as one of each kind: at each point the worst of them."""
    merged: dict[tuple[str, str, str], dict[str | int, float]] = {}
    for curve in curves:
        points = merged.setdefault((curve.figure, curve.dtype, curve.side), {})
        for x, y in zip(curve.x, curve.y, strict=True):
            points[x] = max(y, points.get(x, y))
    return [Curve(*key, tuple(points), tuple(points.values())) for key, points in merged.items()]
