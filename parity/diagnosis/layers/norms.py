"""The ways in which models normalise: over channels, groups of them, positions, or batches."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity.diagnosis.evidence import Evidence, rounded

Array = NDArray[Any]
Ways = Iterator[tuple[tuple[str, ...], Array]]
EPS = (1e-5, 1e-6, 1e-8, 1e-12, 1e-3, 1e-4, 1e-7, 1e-2, 0.0)
_TYPES = ("float32", "bfloat16", "float16")


def norms(x: Array, weight: Array, bias: Array | None, evidence: Evidence) -> Ways:
    """RMSNorm and LayerNorm, with every eps, weight and precision, over all channels or some.

    The words of a way: over what, mean, eps, where it is, weight, precision, bias.
    """
    sides = (evidence.target.torch, evidence.target.flax)
    centred_x = x - x.mean(-1, keepdims=True)
    fitted = [
        e
        for y in sides
        for a in (x, centred_x)
        for e in fitted_eps(a, np.square(a).mean(-1, keepdims=True), weight, bias, y)
    ]
    eps = dict.fromkeys((*own_eps(evidence), *EPS, *fitted))
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
    x: Array,
    weight: Array,
    bias: Array | None,
    statistics: tuple[Array, Array],
    own: list[float],
    sides: Sequence[Array],
) -> Ways:
    """BatchNorm with running statistics (a mean and a variance), channels last."""
    mean, var = statistics
    shift = 0 if bias is None else bias
    axes = tuple(range(x.ndim - 1))
    fitted = [e for y in sides for e in fitted_eps(x - mean, var, weight, bias, y)]
    for e in dict.fromkeys((*own, *EPS, *fitted)):
        eps = f"eps {e:.9g}"
        yield ("", eps), (x - mean) / np.sqrt(var + e) * weight + shift
        yield ("outside the root", eps), (x - mean) / (np.sqrt(var) + e) * weight + shift
        yield ("variance taken for its root", eps), (x - mean) / (var + e) * weight + shift
        batch = (x - x.mean(axes)) / np.sqrt(x.var(axes) + e) * weight + shift
        yield ("statistics of the batch", eps), batch
        yield ("weight left out", eps), (x - mean) / np.sqrt(var + e) + shift
        yield ("bias left out", eps), (x - mean) / np.sqrt(var + e) * weight
        yield ("mean left out", eps), x / np.sqrt(var + e) * weight + shift


def group_norms(
    x: Array,
    weight: Array,
    bias: Array | None,
    own: list[float],
    groups: int,
    sides: Sequence[Array],
) -> Ways:
    """GroupNorm, channels last, over so many groups and all others; of one channel each, too.

    Args:
        x: (B, ..., C).
        weight: and bias: (C,).
        own: the eps that the module has.
        groups: the number of groups that the module has, which is tried first.
        sides: what came out, on both sides.
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
        flat, wide = (np.broadcast_to(a, y.shape).reshape(x.shape) for a in (y, square))
        fitted = [e for side in sides for e in fitted_eps(flat, wide, weight, bias, side)]
        for e in dict.fromkeys((*own, *EPS, *fitted)):
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


def fitted_eps(
    x: Array, square: Array, weight: Array, bias: Array | None, y: Array
) -> Iterator[float]:
    """The eps of a norm that gives y, solved for, short where people may have written it so.

    Args:
        x: what is normalised, its mean subtracted where it is; (..., C).
        square: its mean square, or its variance, of a shape that goes with x.
        weight: and bias: (C,).
        y: what came out.
    """
    if x.shape != y.shape:
        return
    a, b = x * weight, y if bias is None else y - bias
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.square(a / b) - square
    size = np.abs(a).reshape(-1, a.shape[-1])
    largest = size.argmax(-1)  # that of a row is the most exact
    found = np.take_along_axis(found.reshape(size.shape), largest[:, None], -1)
    found = found[np.isfinite(found)]
    if not found.size:
        return
    eps = float(np.median(found))
    # Of one row alone any factor is an eps: a large one has to be that of several.
    sure = found.size > 1 and float(np.ptp(np.quantile(found, (0.25, 0.75)))) < _SPREAD * eps
    if 0 < eps < 1 or (sure and eps <= _LARGEST):
        for digits in range(1, 5):
            short = float(f"{eps:.{digits}g}")
            if abs(short / eps - 1) < _SHORT:
                yield short
                break
        yield eps


def eps_hint(flax: tuple[str, ...], torch: tuple[str, ...], kind: str) -> str:
    """What an eps that is a whole number comes from, as LayerNorm(12).

    Args:
        flax: what is said of that side's norm.
        torch: the same of the other.
        kind: of PyTorch's norm.
    """
    if "Batch" in kind or "Group" in kind:  # whose first argument in Flax is another one
        return ""
    eps = next((w.removeprefix("eps ") for w in flax if w.startswith("eps ")), "")
    if not eps.isdigit() or int(eps) < 1 or f"eps {eps}" in torch:
        return ""
    name = next((n for n in ("RMSNorm", "InstanceNorm") if n in kind), "LayerNorm")
    return f": the first argument of Flax's {name} is epsilon, so {name}({eps}) sets it to {eps}"


_LARGEST = 1e6  # of an eps, which may be a number of channels by mistake
_SPREAD = 1e-2  # of the same eps, fitted to several rows
_SHORT = 1e-3
