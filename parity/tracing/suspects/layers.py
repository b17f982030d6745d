"""Hypotheses about a layer that is computed otherwise: a norm, a linear layer, an embedding.

The layer is computed here, in float64, in every way that models compute it; each side is known by
the way that gives its values.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from parity.tracing.errors import relative_error
from parity.tracing.result import Suspect
from parity.tracing.suspects.evidence import Evidence

Array = NDArray[Any]
Ways = Iterator[tuple[tuple[str, ...], Array]]
EPS = (1e-5, 1e-6, 1e-8, 1e-12, 1e-3, 1e-4, 1e-7, 1e-2, 0.0)
_IDS = 64  # ids that may be that of padding
_TYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}


def layer_suspects(evidence: Evidence) -> Iterator[Suspect]:
    """What a leaf layer does otherwise on the Flax side."""
    if evidence.parts or not evidence.inputs or evidence.stage:
        return
    x = evidence.inputs[0].torch
    tensors = {p.name.rpartition(".")[2]: p for p in evidence.parameters}
    weight = tensors.get("weight")
    bias = tensors["bias"].torch if "bias" in tensors else None
    if weight is None:
        return
    if x.dtype.kind in "iu" and weight.torch.ndim == 2:
        yield from _named(evidence, "embedding", _embeddings(x, weight.torch))
    elif x.dtype != np.float64 or not x.size:
        return
    elif "running_mean" in tensors and "running_var" in tensors:
        running = tensors["running_mean"].torch, tensors["running_var"].torch
        ways = _batch_norms(x, weight.torch, bias, *running, _own_eps(evidence))
        yield from _named(evidence, "norm", ways)
    elif weight.torch.ndim == 1 and weight.torch.shape == x.shape[-1:]:
        yield from _named(evidence, "norm", _norms(x, weight.torch, bias, evidence))
    elif weight.torch.ndim == 2 and weight.torch.shape[0] == x.shape[-1]:
        yield from _named(evidence, "linear", _linears(x, weight.torch, bias))


def _named(evidence: Evidence, kind: str, ways: Ways) -> Iterator[Suspect]:
    """The difference between the way that is PyTorch's and the one that is Flax's."""
    one, other = evidence.target.torch, evidence.target.flax
    best: list[tuple[float, tuple[str, ...]]] = [(np.inf, ()), (np.inf, ())]
    for words, value in ways:
        for i, side in enumerate((one, other)):
            error = relative_error(value, side) if value.shape == side.shape else np.inf
            if error < best[i][0]:
                best[i] = (error, words)
    (_, mine), (after, theirs) = best
    if mine == theirs:
        return
    said = [(a, b) for a, b in itertools.zip_longest(mine, theirs, fillvalue="") if a != b]
    sentence = "; ".join(f"{b or 'plain'} in Flax, {a or 'plain'} in PyTorch" for a, b in said)
    names = sorted({(b or a).split(" ")[0] for a, b in said})
    if suspect := evidence.judge(f"{kind}-{'-'.join(names)}", sentence, max(after, best[0][0])):
        yield suspect


def _norms(x: Array, weight: Array, bias: Array | None, evidence: Evidence) -> Ways:
    """RMSNorm and LayerNorm, with every eps, weight and precision."""
    sides = (evidence.target.torch, evidence.target.flax)
    fitted = [_fitted_eps(x, weight, bias, y, c) for y in sides for c in (False, True)]
    eps = dict.fromkeys((*_own_eps(evidence), *EPS, *(e for e in fitted if e is not None)))
    for centred, e, precision in itertools.product((False, True), eps, ("", *_TYPES)):
        y = _rounded(x, precision)
        if centred:
            y = y - y.mean(axis=-1, keepdims=True)
        square = _rounded(np.square(y), precision).mean(axis=-1, keepdims=True)
        size = x.shape[-1]
        for where, scale in (
            ("eps inside the root", np.sqrt(_rounded(square, precision) + e)),
            ("eps outside the root", np.sqrt(square) + e),
            ("eps as the least mean square", np.sqrt(np.maximum(square, e))),
            ("a sum in place of the mean", np.sqrt(square * size + e)),
            ("size - 1 in place of size", np.sqrt(square * size / max(size - 1, 1) + e)),
            ("no root", square + e),
            ("mean of absolute values", np.abs(y).mean(axis=-1, keepdims=True) + e),
            ("root left out: not normalised", np.ones_like(square)),
        ):
            with np.errstate(divide="ignore", invalid="ignore"):
                normal = _rounded(y / scale, precision)
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


def _batch_norms(
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


def _own_eps(evidence: Evidence) -> list[float]:
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


def _linears(x: Array, kernel: Array, bias: Array | None) -> Ways:
    """x W + b, in other precisions, and without parts of it."""
    for precision in ("", "TF32", *_TYPES):
        a, w = (_rounded(side, precision) for side in (x, kernel))
        for text, product in (
            ("", a @ w),
            *((("weight transposed", a @ w.T),) if _square(w) else ()),
        ):
            for other, b in (("", bias), ("bias left out", None), ("bias twice", bias)):
                if bias is None and other:
                    continue
                value = product if b is None else product + b
                value = value + bias if other == "bias twice" else value
                words = f"precision {precision}" if precision else ""
                yield (words, text, other), value
                if precision:
                    yield (words, text, other, "rounded output"), _rounded(value, precision)


def _square(kernel: Array) -> bool:
    return bool(kernel.shape[0] == kernel.shape[1])


def _embeddings(ids: Array, table: Array) -> Ways:
    """Rows of the table, scaled or shifted, normalised, or with some of them left empty."""
    size, ids = table.shape[-1], ids.astype(np.int64)
    if not ids.size or not table.size or ids.min() < 0 or ids.max() >= len(table):
        return
    for step, factor in itertools.product((0, 1, -1), (1.0, size**0.5, size**-0.5)):
        rows = table[np.clip(ids + step, 0, len(table) - 1)]
        shifted = f"ids {step:+d}" if step else ""
        scaled = "" if factor == 1 else f"scaled by {'sqrt' if factor > 1 else '1/sqrt'}({size})"
        yield (shifted, scaled), rows * factor
    rows = table[ids]
    for token in np.unique(ids)[:_IDS]:
        empty = np.where((ids == token)[..., None], 0.0, rows)
        yield ("", "", f"padding: id {token} gives zeros"), empty
    for i in range(1, min(ids.shape[-1], 4)) if ids.ndim > 1 else ():
        for step in (i, -i):
            yield ("", f"shifted by {step:+d} positions"), np.roll(rows, step, axis=-2)
    length = np.linalg.norm(rows, axis=-1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        yield ("", "normalised to length 1"), rows / length
        yield ("", "normalised to a mean square of 1"), rows / length * size**0.5
    yield ("", "reversed ids"), table[len(table) - 1 - ids]


def _rounded(array: Array, precision: str) -> Array:
    """In a narrower dtype, as float64."""
    if not precision:
        return array
    if precision == "TF32":  # float32 with 10 bits of the mantissa
        bits = array.astype(np.float32).view(np.uint32)
        return ((bits + 0x1000) & np.uint32(0xFFFFE000)).view(np.float32).astype(np.float64)
    return array.astype(_TYPES[precision]).astype(np.float64)
