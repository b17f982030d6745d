"""Hypotheses about a module's own code: what it makes of its inputs and of its parts' outputs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import erf, expit

from parity.diagnosis.evidence import Evidence
from parity.tracing.compare.errors import relative_error
from parity.tracing.result import Suspect

Array = NDArray[Any]
_NEAR = 1e-9
_BETAS = (0.5, 1.5, 2.0)
_LIMITS = (1.0, 5.0, 7.0, 10.0, 20.0)
_FITTED = 20_000  # values that weights are fitted to
_LATEST = 6  # values that an activation may be one of
_TERMS, _MANY = 5, 10  # of a sum that is looked for, and values that it may be one of


def _gelu_tanh(x: Array) -> Array:
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    half: Array = 0.5 * x * (1 + np.tanh(inner))
    return half


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": lambda x: x * expit(x),
    "gelu (exact)": lambda x: 0.5 * x * (1 + erf(x / math.sqrt(2))),
    "gelu (tanh)": _gelu_tanh,
    "gelu (sigmoid)": lambda x: x * expit(1.702 * x),
    "relu": lambda x: np.maximum(x, 0),
    "squared relu": lambda x: np.maximum(x, 0) ** 2,
    "sigmoid": expit,
    "tanh": np.tanh,
    "softplus": lambda x: np.logaddexp(x, 0),
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "leaky relu": lambda x: np.where(x > 0, x, 0.01 * x),
    "mish": lambda x: x * np.tanh(np.logaddexp(x, 0)),
    "relu6": lambda x: np.clip(x, 0, 6),
    "leaky relu (0.1)": lambda x: np.where(x > 0, x, 0.1 * x),
    "leaky relu (0.2)": lambda x: np.where(x > 0, x, 0.2 * x),
    "selu": lambda x: (
        1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(np.minimum(x, 0)))
    ),
    "celu (0.5)": lambda x: np.where(x > 0, x, 0.5 * np.expm1(np.minimum(x, 0) / 0.5)),
    "softsign": lambda x: x / (1 + np.abs(x)),
    "squared": np.square,
    "sine": np.sin,
    "absolute value": np.abs,
    "quick sigmoid (1.702)": lambda x: expit(1.702 * x),
    "hard sigmoid": lambda x: np.clip(x / 6 + 0.5, 0, 1),
    "log sigmoid": lambda x: -np.logaddexp(-x, 0),
    "exponential": lambda x: np.exp(np.minimum(x, 300)),
    "hard swish": lambda x: x * np.clip(x + 3, 0, 6) / 6,
    "no activation": lambda x: x,
}
_NONE = "no activation"


def glue_suspects(evidence: Evidence) -> Iterator[Suspect]:
    """Another activation, or another sum of what is there.

    Values of both sides say most. What PyTorch alone has, as the output of a module that is only
    an activation, is taken where they do not suffice.
    """
    for alone in (False, True):
        known = _known(evidence, alone)
        found = [*_activation(evidence, known), *_sum(evidence, known)]
        yield from found
        if found:
            return


def _known(evidence: Evidence, alone: bool) -> dict[str, Array]:
    """What the code has at hand, as float64: inputs, and outputs of the parts before the target.

    Both sides have these alike: the target is the first value that differs.
    """
    found = {
        "x" if value.name == "args.0" else value.name: value.torch
        for value in evidence.inputs
        if value.torch.dtype == np.float64
    }
    for part in evidence.parts:
        if part.name == evidence.stage:
            break
        for i, value in enumerate(part.outputs):
            if value.torch.dtype == np.float64 and (alone or not part.alone):
                found[part.name if i == 0 else f"{part.name}.{i}"] = value.torch
    return found


def _activation(evidence: Evidence, known: Mapping[str, Array]) -> Iterator[Suspect]:
    """f(a), or f(a) * b as in gated layers."""
    shape = evidence.target.torch.shape
    # Of a model with many layers the latest: there are many ways to combine them.
    alike = dict([(n, a) for n, a in known.items() if a.shape == shape][-_LATEST:])
    best = [("", math.inf), ("", math.inf)]
    for words, value in _ways(alike):
        for i, side in enumerate((evidence.target.torch, evidence.target.flax)):
            error = relative_error(value, side)
            if error < best[i][1]:
                best[i] = (words, error)
    (mine, error), (theirs, after) = best
    plain = all(words in alike for words in (mine, theirs))  # sums say that too
    if mine != theirs and error <= evidence.bound and not plain:
        what = evidence.what
        sentence = f"{what} is {theirs} in Flax, {mine} in PyTorch"
        if suspect := evidence.judge("activation", sentence, after):
            yield suspect


def _ways(alike: Mapping[str, Array]) -> Iterator[tuple[str, Array]]:
    """f(a), and what gated layers make of two values."""
    applied = {name: {f: function(a) for f, function in ACTIVATIONS.items()}
               for name, a in alike.items()}  # fmt: skip
    for a, values in applied.items():
        for f, value in values.items():
            yield (a if f == _NONE else f"{f} of {a}"), value
    for a, b in itertools.permutations(alike, 2):
        for f, value in applied[a].items():
            said = a if f == _NONE else f"{f} of {a}"
            yield f"{said}, times {b}", value * alike[b]
            yield f"{said}, times 1 + {b}", value * (alike[b] + 1)
            if f != _NONE:
                yield f"{said}, plus {b}", value + alike[b]
        for f, value in applied[a].items():
            if f != _NONE:
                yield f"{f} of {a}, times {f} of {b}", value * applied[b][f]
        for beta in _BETAS:
            swish = alike[a] * expit(beta * alike[a])
            yield f"swish (beta {beta:g}) of {a}, times {b}", swish * alike[b]
        yield f"silu of the product of {a} and {b}", ACTIVATIONS["silu"](alike[a] * alike[b])
        for limit in _LIMITS:
            cut = np.clip(applied[a]["silu"], -limit, limit)
            yield f"silu of {a}, cut off at {limit:g}, times {b}", cut * alike[b]
            gate, up = np.minimum(alike[a], limit), np.clip(alike[b], -limit, limit)
            yield (
                f"silu of {a}, which is cut off at {limit:g} above, times {b}",
                ACTIVATIONS["silu"](gate) * alike[b],
            )
            both = f"{a} and {b} cut off at {limit:g}, silu of the first, times the second"
            yield both, ACTIVATIONS["silu"](gate) * up
            both = (
                f"{a} and {b} cut off at {limit:g} both ways, silu of the first, times the second"
            )
            yield both, ACTIVATIONS["silu"](np.maximum(gate, -limit)) * up


def _sum(evidence: Evidence, known: Mapping[str, Array]) -> Iterator[Suspect]:
    """A weighted sum: a residual left out, or added twice, or an output scaled."""
    alike = _broadcast(known, evidence.target.torch.shape)
    if not alike:
        return
    (mine, error), (theirs, after) = (
        weighted_sum(alike, side, evidence.bound)
        for side in (evidence.target.torch, evidence.target.flax)
    )
    if error <= evidence.bound and not np.allclose(mine, theirs, atol=1e-6):
        words = [formula(weights, list(alike)) for weights in (theirs, mine)]
        where = evidence.what
        sentence = f"{where} is {words[0]} in Flax, {words[1]} in PyTorch"
        used = {int(i) for weights in (mine, theirs) for i in np.flatnonzero(weights)}
        name = "scale" if len(used) == 1 and mine.any() and theirs.any() else "sum"
        if suspect := evidence.judge(name, sentence, after):
            yield suspect


def _broadcast(known: Mapping[str, Array], shape: tuple[int, ...]) -> dict[str, Array]:
    """What can be added to an array of this shape: a table of positions has no rows."""
    fitting = {n: a for n, a in known.items() if a.shape and shape[-a.ndim :] == a.shape}
    return {n: np.broadcast_to(a, shape) for n, a in fitting.items()}


def _addend(evidence: Evidence, alike: Mapping[str, Array]) -> Iterator[Suspect]:
    """One of the values, which one side adds to something unknown, and the other does not."""
    one, other = evidence.target.torch, evidence.target.flax
    for name, array in alike.items():
        size = float(np.vdot(array, array))
        factor = float(np.vdot(array, other - one)) / size if size else 0.0
        if abs(factor) < _NEAR:
            continue
        more, fewer = ("Flax", "PyTorch") if factor > 0 else ("PyTorch", "Flax")
        times = "" if abs(abs(factor) - 1) < 1e-6 else f"{abs(factor):.4g} times "
        words = f"{evidence.what} has {times}{name} added in {more}, not in {fewer}"
        if suspect := evidence.suspect("sum", words, one + factor * array, other):
            yield suspect
            return


def call_suspects(evidence: Evidence) -> Iterator[Suspect]:
    """Parts that one side calls more often than the other."""
    for name, mine, theirs in evidence.calls[:1]:
        words = f"{name} is called {_times(theirs)} in Flax, {_times(mine)} in PyTorch"
        yield Suspect("called-otherwise", words, evidence.target.error, None)


def _times(count: int) -> str:
    return ("never", "once", "twice")[count] if count < 3 else f"{count} times"


def unknown_input(evidence: Evidence) -> Iterator[Suspect]:
    """What one side makes of the known values, where the other makes something else of them."""
    known = _known(evidence, alone=False)
    alike = _broadcast(known, evidence.target.torch.shape)
    if evidence.target.torch.dtype != np.float64 or not alike:
        return
    yield from _addend(evidence, alike)
    weights, error = weighted_sum(alike, evidence.target.torch, evidence.bound)
    if error <= evidence.bound and weights.any():
        where = evidence.what
        said = formula(weights, list(alike))
        words = (
            f"{where} is {said} in {evidence.usual}, and no sum of such values in {evidence.odd}"
        )
        yield Suspect("other-input", words, evidence.target.error, None)


def lonely_tensors(evidence: Evidence) -> Iterator[Suspect]:
    """Tensors of the culprit that one side alone has, as an output matrix that is not tied."""
    for side, other, arrays in (
        ("PyTorch", "Flax", evidence.torch_only),
        ("Flax", "PyTorch", evidence.flax_only),
    ):
        names = [name for name, array in arrays.items() if array.ndim > 1]
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            words = f"{names[0]}{more} of {side} has no partner in {other}"
            yield Suspect("tensor-alone", words, evidence.target.error, None)


def weighted_sum(alike: Mapping[str, Array], side: Array, bound: float) -> tuple[Array, float]:
    """The weighted sum of the fewest values that is one side, and what error is left.

    Where there is none, the nearest one.
    """
    step = max(1, side.size // _FITTED)
    matrix = np.stack([array.ravel()[::step] for array in alike.values()], axis=1)
    values = side.ravel()[::step]
    if not (np.isfinite(matrix).all() and np.isfinite(values).all()):
        return np.zeros(len(alike)), math.inf

    def fitted(columns: tuple[int, ...]) -> tuple[Array, float]:
        weights = np.zeros(len(alike))
        weights[list(columns)] = np.linalg.lstsq(matrix[:, columns], values, rcond=None)[0]
        rounded = np.round(weights, 6)
        near = rounded if relative_error(matrix @ rounded, values) <= bound else weights
        return near, relative_error(matrix @ near, values)

    columns = tuple(range(len(alike)))
    best = fitted(columns)
    if best[1] > bound:
        return best
    while len(columns) > _MANY:  # too many to try all sums: the smallest summands go first
        sizes = np.abs(best[0]) * np.linalg.norm(matrix, axis=0)
        fewer = tuple(c for c in columns if c != min(columns, key=lambda c: sizes[c]))
        rest = fitted(fewer)
        if rest[1] > bound:
            return best
        columns, best = fewer, rest
    for size in range(1, min(len(columns), _TERMS)):
        for some in itertools.combinations(columns, size):
            found = fitted(some)
            if found[1] <= bound:
                return found
    return best


def formula(weights: Array, names: list[str]) -> str:
    """A weighted sum in words: `x + 0.5 mlp`, or `0`."""
    parts = []
    for weight, name in zip(weights, names, strict=True):
        if weight:
            factor = "" if abs(weight - 1) < 1e-6 else f"{weight:.4g} "
            parts.append(f"{factor}{name}")
    return " + ".join(parts) or "0"
