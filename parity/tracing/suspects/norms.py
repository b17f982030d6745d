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
    """RMSNorm and LayerNorm, with every eps, weight and precision, over all channels or some.

    The words of a way: over what, mean, eps, where it is, weight, precision, bias.
    """
    sides = (evidence.target.torch, evidence.target.flax)
    fitted = [_fitted_eps(x, weight, bias, y, c) for y in sides for c in (False, True)]
    eps = dict.fromkeys((*own_eps(evidence), *EPS, *(e for e in fitted if e is not None)))
    for centred, e, precision in itertools.product((False, True), eps, ("", *_TYPES)):
        mean = "mean subtracted" if centred else ""
        y = rounded(x, precision)
        if centred:
            y = y - y.mean(axis=-1, keepdims=True)
        square = rounded(np.square(y), precision).mean(axis=-1, keepdims=True)
        for where, scale in _scales(y, square, rounded(square, precision), e):
            with np.errstate(divide="ignore", invalid="ignore"):
                normal = rounded(y / scale, precision)
            for text, said, value in _weighted(normal, weight, bias):
                narrow = f"precision {precision}" if precision else ""
                yield ("", mean, f"eps {e:.9g}", where, text, narrow, said), value
    yield ("output is the input",), x
    own = next(iter(eps))
    for over, y, square in _partial(x, sides, weight):
        for e in eps:
            words = (over, "", f"eps {e:.9g}", "eps inside the root", "weight w", "", "")
            yield words, y / np.sqrt(square + e) * weight + (0 if bias is None else bias)
    for centred in (False, True) if x.ndim > 2 else ():
        mean = "mean subtracted" if centred else ""
        for over, axes in (("over positions", (-2,)), ("over positions and channels", (-2, -1))):
            y = x - x.mean(axis=axes, keepdims=True) if centred else x
            normal = y / np.sqrt(np.square(y).mean(axis=axes, keepdims=True) + own) * weight
            said = f"statistics {over}"
            words = (said, mean, f"eps {own:.9g}", "eps inside the root", "weight w", "", "")
            yield words, normal + (0 if bias is None else bias)
    for e in eps:
        once = x / np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + e) * weight
        again = once / np.sqrt(np.square(once).mean(axis=-1, keepdims=True) + e) * weight
        yield (
            ("applied twice", "", f"eps {e:.9g}", "eps inside the root", "weight w", "", ""),
            again,
        )


def _scales(y: Array, square: Array, narrow: Array, e: float) -> Iterator[tuple[str, Array]]:
    """What values are divided by, given their mean square."""
    size = y.shape[-1]
    yield "eps inside the root", np.sqrt(narrow + e)
    yield "eps outside the root", np.sqrt(square) + e
    yield "eps as the least mean square", np.sqrt(np.maximum(square, e))
    yield "a sum in place of the mean", np.sqrt(square * size + e)
    yield "size - 1 in place of size", np.sqrt(square * size / max(size - 1, 1) + e)
    yield "no root", square + e
    yield "mean of absolute values", np.abs(y).mean(axis=-1, keepdims=True) + e
    yield "root left out: not normalised", np.ones_like(square)


def _weighted(normal: Array, weight: Array, bias: Array | None) -> Iterator[tuple[str, str, Array]]:
    """What is made of normalised values: words for the weight, words for the bias."""
    for text, w in (
        ("weight w", weight),
        ("weight 1 + w", weight + 1),
        ("weight none", np.ones_like(weight)),
        ("weight w - 1", weight - 1),
        ("weight exp(w)", np.exp(np.minimum(weight, 100))),
    ):
        yield text, "", normal * w + (0 if bias is None else bias)
        if bias is not None:
            yield text, "bias left out", normal * w
    yield "weight added, not multiplied", "", normal + weight + (0 if bias is None else bias)


def _partial(
    x: Array, sides: tuple[Array, Array], weight: Array
) -> Iterator[tuple[str, Array, Array]]:
    """Values and mean squares of groups of channels, of the first channels, of values cut off."""
    size = x.shape[-1]
    for count in (n for n in range(2, size) if size % n == 0):
        groups = np.square(x.reshape(*x.shape[:-1], count, size // count))
        square = np.repeat(groups.mean(-1), size // count, axis=-1)
        yield f"statistics of each group of {size // count} channels", x, square
        first = np.square(x[..., : size // count]).mean(-1, keepdims=True)
        yield f"statistics of the first {size // count} channels", x, first
    for limit in dict.fromkeys(filter(None, (_limit(x, y, weight) for y in sides))):
        cut = np.clip(x, -limit, limit)
        words = f"values cut off at {limit:.6g} before"
        yield words, cut, np.square(cut).mean(-1, keepdims=True)


def _limit(x: Array, y: Array, weight: Array) -> float | None:
    """Where values are cut off before they are normalised: as far as the largest one goes."""
    flat, out = x.reshape(-1, x.shape[-1]), y.reshape(-1, x.shape[-1])
    row = int(np.abs(flat).max(-1).argmax())
    order = np.argsort(np.abs(flat[row]))
    largest, middle = int(order[-1]), int(order[len(order) // 2])
    with np.errstate(divide="ignore", invalid="ignore"):
        normal = out[row] / weight
        limit = float(abs(flat[row, middle] * normal[largest] / normal[middle]))
    return (
        limit if np.isfinite(limit) and 0 < limit < abs(flat[row, largest]) * (1 - 1e-9) else None
    )


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
        said = f"statistics of positions and each of {count} groups of channels"
        if count == size:
            said = "statistics of each channel by itself"
        elif count == 1:
            said = "statistics over positions and channels"
        mean = "mean subtracted" if centred else ""
        for e in dict.fromkeys((*own, *EPS)):
            for unbiased in ("", "size - 1 in place of size"):
                scale = number / (number - 1) if unbiased else 1.0
                normal = (y / np.sqrt(square * scale + e)).reshape(x.shape)
                for left_out, value in _affine(normal, weight, bias):
                    where = unbiased or "eps inside the root"
                    weighted = "weight none" if left_out == "weight left out" else "weight w"
                    dropped = left_out if left_out == "bias left out" else ""
                    yield (said, mean, f"eps {e:.9g}", where, weighted, "", dropped), value


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
