"""The ways in which models normalise: over channels, groups of them, positions, or batches."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity.tracing.suspects.evidence import Evidence, rounded

Array = NDArray[Any]
Ways = Iterator[tuple[tuple[str, ...], Array]]
EPS = (1e-5, 1e-6, 1e-8, 1e-12, 1e-3, 1e-4, 1e-7, 1e-2, 0.0)
_TYPES = ("float32", "bfloat16", "float16")


def norms(x: Array, weight: Array, bias: Array | None, evidence: Evidence) -> Ways:
    """RMSNorm and LayerNorm, with every eps, weight and precision."""
    sides = (evidence.target.torch, evidence.target.flax)
    fitted = [_fitted_eps(x, weight, bias, y, c) for y in sides for c in (False, True)]
    eps = dict.fromkeys((*own_eps(evidence), *EPS, *(e for e in fitted if e is not None)))
    for centred, e, precision in itertools.product((False, True), eps, ("", *_TYPES)):
        y = rounded(x, precision)
        if centred:
            y = y - y.mean(axis=-1, keepdims=True)
        square = rounded(np.square(y), precision).mean(axis=-1, keepdims=True)
        size = x.shape[-1]
        for where, scale in (
            ("eps inside the root", np.sqrt(rounded(square, precision) + e)),
            ("eps outside the root", np.sqrt(square) + e),
            ("eps as the least mean square", np.sqrt(np.maximum(square, e))),
            ("a sum in place of the mean", np.sqrt(square * size + e)),
            ("size - 1 in place of size", np.sqrt(square * size / max(size - 1, 1) + e)),
            ("no root", square + e),
            ("mean of absolute values", np.abs(y).mean(axis=-1, keepdims=True) + e),
            ("root left out: not normalised", np.ones_like(square)),
        ):
            with np.errstate(divide="ignore", invalid="ignore"):
                normal = rounded(y / scale, precision)
            for text, w in (
                ("weight w", weight),
                ("weight 1 + w", weight + 1),
                ("weight none", np.ones_like(weight)),
                ("weight w - 1", weight - 1),
                ("weight exp(w)", np.exp(np.minimum(weight, 100))),
            ):
                for said, b in (("", bias), ("bias left out", None))[: 1 if bias is None else 2]:
                    words = (
                        "mean subtracted" if centred else "",
                        f"eps {e:.9g}",
                        where,
                        text,
                        f"precision {precision}" if precision else "",
                        said,
                    )
                    yield words, normal * w + (0 if b is None else b)
    yield ("output is the input",), x
    for centred in (False, True) if x.ndim > 2 else ():
        y = x - x.mean(axis=-2, keepdims=True) if centred else x
        normal = y / np.sqrt(np.square(y).mean(axis=-2, keepdims=True) + next(iter(eps)))
        yield ("normalised over positions", "mean subtracted" if centred else ""), normal * weight
    for e in eps:
        once = x / np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + e) * weight
        again = once / np.sqrt(np.square(once).mean(axis=-1, keepdims=True) + e) * weight
        yield ("applied twice", f"eps {e:.9g}"), again


def batch_norms(
    x: Array, weight: Array, bias: Array | None, mean: Array, var: Array, own: list[float]
) -> Ways:
    """BatchNorm with running statistics, channels last."""
    shift = 0 if bias is None else bias
    axes = tuple(range(x.ndim - 1))
    for e in dict.fromkeys((*own, *EPS)):
        eps = f"eps {e:.9g}"
        yield ("", eps), (x - mean) / np.sqrt(var + e) * weight + shift
        yield ("outside the root", eps), (x - mean) / (np.sqrt(var) + e) * weight + shift
        yield ("variance taken for its root", eps), (x - mean) / (var + e) * weight + shift
        batch = (x - x.mean(axes)) / np.sqrt(x.var(axes) + e) * weight + shift
        yield ("statistics of the batch", eps), batch
        yield ("weight left out", eps), (x - mean) / np.sqrt(var + e) + shift
        yield ("bias left out", eps), (x - mean) / np.sqrt(var + e) * weight
        yield ("mean left out", eps), x / np.sqrt(var + e) * weight + shift


def group_norms(x: Array, weight: Array, bias: Array | None, own: list[float], groups: int) -> Ways:
    """GroupNorm, channels last, over so many groups and all others; of one channel each, too.

    Args:
        x: (B, ..., C).
        weight: and bias: (C,).
        own: the eps that the module has.
        groups: the number of groups that the module has, which is tried first.
    """
    size = x.shape[-1]
    counts = dict.fromkeys((groups, *(n for n in range(1, size + 1) if size % n == 0)))
    for count, centred in itertools.product(counts, (True, False)):
        if size % count or x[0, ..., 0].size * size == count:
            continue
        y = x.reshape(*x.shape[:-1], count, size // count)
        axes = (*range(1, x.ndim - 1), x.ndim)
        y = y - y.mean(axes, keepdims=True) if centred else y
        square = np.square(y).mean(axes, keepdims=True)
        number = y[0].size // count
        said = "each channel by itself" if count == size else f"{count} groups of channels"
        of_all = "" if centred else "mean not subtracted"
        for e in dict.fromkeys((*own, *EPS)):
            for unbiased in ("", "size - 1 in place of size"):
                scale = number / (number - 1) if unbiased else 1.0
                normal = (y / np.sqrt(square * scale + e)).reshape(x.shape)
                for left_out, value in _affine(normal, weight, bias):
                    yield (said, of_all, f"eps {e:.9g}", unbiased, left_out), value


def _affine(normal: Array, weight: Array, bias: Array | None) -> Iterator[tuple[str, Array]]:
    shift: Any = 0 if bias is None else bias
    yield "", normal * weight + shift
    yield "weight left out", normal + shift
    if bias is not None:
        yield "bias left out", normal * weight


def own_eps(evidence: Evidence) -> list[float]:
    """What the PyTorch module calls its eps."""
    names = ("eps", "epsilon", "variance_epsilon")
    found = [getattr(evidence.module, name, None) for name in names]
    return [float(value) for value in found if isinstance(value, float)]


def _fitted_eps(
    x: Array, weight: Array, bias: Array | None, y: Array, centred: bool
) -> float | None:
    """The eps of a norm that gives y, solved for; None where it is no such norm."""
    x = x - x.mean(-1, keepdims=True) if centred else x
    y = y if bias is None else y - bias
    rows = np.abs(x).argmax(axis=-1)[..., None]  # the largest channel of each row is the most exact
    w = np.take(weight, rows)
    a, b = np.take_along_axis(x, rows, -1), np.take_along_axis(y, rows, -1)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = (w * a / b) ** 2 - np.square(x).mean(-1, keepdims=True)
    eps = float(np.median(found))
    return eps if 0 < eps < 1 else None
