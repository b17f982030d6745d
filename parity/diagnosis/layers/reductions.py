"""Hypotheses about what becomes of a value on its way: activated, added, pooled, reduced, cut.

A description is sought for each side: what is taken, in which order it is activated and added, how
it is pooled, and what is left of its positions. All of that treats rows and channels alike, so that
it is sought on a few of them, and then tried on all.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from parity.diagnosis.evidence import Evidence
from parity.diagnosis.layers.convolutions import Padding, same_padding
from parity.diagnosis.layers.glue import ACTIVATIONS
from parity.tracing.compare.errors import relative_error
from parity.tracing.result import Suspect

Array = NDArray[Any]
Change = Callable[[Array], Array]
Step = tuple[tuple[str, str], Change]  # what is left of positions, how it was pooled
Made = tuple[str, tuple[str, ...], Callable[..., Array]]  # of these values, by this
_CHANNELS = 4  # that are computed while it is searched
_LATEST = 6  # values that are tried
_POSITIONS = 64
_WORK, _WINDOW = 3e8, 9  # values that are computed at most, and how many a pooled one counts for
_USUAL = ("relu", "silu", "gelu (exact)", "gelu (tanh)", "tanh", "sigmoid")


def reduction_suspects(evidence: Evidence) -> Iterator[Suspect]:
    """What a value is made of on each side, where both can be told, and not in the same words."""
    one, other = evidence.target.torch, evidence.target.flax
    if one.dtype != np.float64 or one.ndim < 2 or one.shape != other.shape:
        return
    for alone in (False, True):
        known = _known(evidence, alone)
        mine = _described(known, one, evidence.bound)
        theirs = _described(known, other, evidence.bound) if mine else None
        if mine is not None and theirs is not None:
            break
    if mine is None or theirs is None or mine[0] == theirs[0]:
        return
    said = [(a, b) for a, b in zip(mine[0], theirs[0], strict=True) if a != b]
    words = "; ".join(f"{b or 'as it is'} in Flax, {a or 'as it is'} in PyTorch" for a, b in said)
    sentence = f"{evidence.what} is computed differently: {words}"
    if suspect := evidence.judge("made-otherwise", sentence, max(mine[1], theirs[1])):
        yield suspect


def _known(evidence: Evidence, alone: bool) -> dict[str, Array]:
    """Values with channels that the code has at hand, the latest first; PyTorch's own ones too."""
    found: dict[str, Array] = {}
    for value in evidence.inputs:
        found["x" if value.name == "args.0" else value.name] = value.torch
    for part in evidence.parts:
        if part.name == evidence.stage:
            break
        if part.alone and not alone:
            continue
        if part.inputs:
            found.setdefault(f"what goes into {part.name}", part.inputs[0].torch)
        if part.outputs:
            found[part.name] = part.outputs[0].torch
    different: dict[str, Array] = {}
    for name, array in reversed(found.items()):
        known = any(array.shape == a.shape and np.array_equal(array, a) for a in different.values())
        if array.dtype == np.float64 and array.ndim > 1 and array.size and not known:
            different[name] = array
    return dict(itertools.islice(different.items(), _LATEST))


def _described(
    known: Mapping[str, Array], wanted: Array, bound: float
) -> tuple[tuple[str, str, str], float] | None:
    """The first words whose value is the wanted one, and what error is left.

    They say what is left of the positions, how it was pooled, and what was.
    """
    usable = {n: a for n, a in known.items() if len(a) == len(wanted)}
    work = 0.0
    for pooling in (False, True):
        for words, names, make in _made(usable):
            arrays = [usable[n] for n in names]
            alike = wanted.shape[-1] == arrays[0].shape[-1]
            channels = slice(_CHANNELS if alike else None)
            made = make(*(a[:1, ..., channels] for a in arrays))
            for said, step in _steps(arrays[0].shape, wanted.shape, pooling):
                work += made.size * (_WINDOW if pooling else 1)
                if work > _WORK:
                    break
                value, target = step(made), wanted[:1, ..., channels]
                if value.shape != target.shape or relative_error(value, target) > bound:
                    continue
                error = relative_error(step(make(*arrays)), wanted)
                if error <= bound:
                    return (*said, words), error
    return None


def _made(known: Mapping[str, Array]) -> Iterator[Made]:
    """Values as they are, activated, and sums of two, activated before or after."""
    pairs = [(a, b) for a, b in itertools.combinations(known, 2) if _alike(known[a], known[b])]
    for a in known:
        yield a, (a,), lambda x: x
    for a, b in pairs:
        yield f"{a} + {b}", (a, b), np.add
    for name in _USUAL:
        f = ACTIVATIONS[name]
        for a in known:
            yield f"{name} of {a}", (a,), f
        for a, b in pairs:
            yield f"{name} of ({a} + {b})", (a, b), lambda x, y, f=f: f(x + y)
            yield f"{name} of {a}, + {b}", (a, b), lambda x, y, f=f: f(x) + y
            yield f"{name} of {b}, + {a}", (a, b), lambda x, y, f=f: x + f(y)


def _alike(a: Array, b: Array) -> bool:
    return a.shape == b.shape


def _steps(source: tuple[int, ...], target: tuple[int, ...], pooling: bool) -> Iterator[Step]:
    """What leads from one shape to the other: pooling, and then what is left of positions."""
    if pooling:
        if len(source) < 3 or source[-1] != target[-1]:
            return
        for said, pool in _pools(source[1:-1]):
            if len(source) == len(target):
                yield ("", said), pool
            elif len(target) == 2:
                for text, reduce in _REDUCED:
                    yield (text, said), partial(_both, pool, reduce)
    elif source == target:
        yield ("", ""), lambda a: a
    elif len(target) == 2 and len(source) > 2 and source[-1] == target[-1]:
        for text, reduce in _REDUCED:
            yield (text, ""), reduce
        for i in range(min(source[1], _POSITIONS)) if len(source) == 3 else ():
            yield (f"position {i}", ""), partial(np.take, indices=i, axis=1)
    elif len(target) == 2 and math.prod(source) == math.prod(target):
        yield ("flattened, channels last", ""), lambda a: a.reshape(len(a), -1)
        yield ("flattened, channels first", ""), lambda a: np.moveaxis(a, -1, 1).reshape(len(a), -1)


def _both(first: Change, second: Change, array: Array) -> Array:
    return second(first(array))


def _spatial(function: Callable[..., Array]) -> Change:
    return lambda a: function(a, axis=tuple(range(1, a.ndim - 1)))


_REDUCED: tuple[tuple[str, Change], ...] = (
    ("the mean over positions", _spatial(np.mean)),
    ("the maximum over positions", _spatial(np.max)),
    ("the sum over positions", _spatial(np.sum)),
    ("the last position", lambda a: a[:, -1] if a.ndim == 3 else a[:0]),
)


def _pools(sizes: Sequence[int]) -> Iterator[tuple[str, Change]]:
    """Pooling with the usual windows, strides and paddings."""
    axes = len(sizes)
    for size, stride in itertools.product((2, 3), (1, 2, 3)):
        if size > min(sizes):
            continue
        paddings: dict[str, Padding] = {"": ((0, 0),) * axes}
        paddings["padding 1"] = ((1, 1),) * axes
        paddings["SAME"] = same_padding(sizes, (size - 1,) * axes, (stride,) * axes)
        for text, padding in paddings.items():
            said = f"of windows of {size} at stride {stride}" + (f", {text}" if text else "")
            padded = any(map(any, padding))
            for kind, counted in (("max", ""), ("mean", "not counted"), ("counted", "counted")):
                if kind == "counted" and not padded:
                    continue
                words = "max pooling" if kind == "max" else "average pooling"
                more = f" ({counted})" if counted and padded else ""
                pool = partial(pooled, size=size, stride=stride, padding=padding, kind=kind)
                yield f"{words} {said}{more}", pool


def pooled(a: Array, size: int, stride: int, padding: Padding, kind: str) -> Array:
    """(B, ..., C) with windows of `size` along each of the axes in between.

    Args:
        a: the values.
        size: and stride: along each axis.
        padding: before and after.
        kind: `max`, `mean` of the values alone, or of the padding too (`counted`).
    """
    spatial = tuple(range(1, a.ndim - 1))
    widths = ((0, 0), *padding, (0, 0))
    window, within = (size,) * len(spatial), tuple(range(-len(spatial), 0))

    def windows(array: Array, fill: float) -> Array:
        padded = np.pad(array, widths, constant_values=fill)
        every = (slice(None), *(slice(None, None, stride) for _ in spatial))
        return sliding_window_view(padded, window, axis=spatial)[every]

    if kind == "max":
        largest: Array = windows(a, -np.inf).max(within)
        return largest
    total = windows(a, 0.0).sum(within)
    if kind == "counted":
        return total / size ** len(spatial)
    there = windows(np.ones((1, *a.shape[1:-1], 1)), 0.0).sum(within)
    return total / there
