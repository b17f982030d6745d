"""Hypotheses about a layer that is computed otherwise: a norm, a linear layer, an embedding.

The layer is computed here, in float64, in every way that models compute it; each side is known by
the way that gives its values.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from parity.diagnosis.evidence import Evidence, rounded
from parity.diagnosis.layers.cells import cell_tensors, cells, layers
from parity.diagnosis.layers.convolutions import convolution_suspects, transposed_suspects
from parity.diagnosis.layers.norms import batch_norms, eps_hint, group_norms, norms, own_eps
from parity.tracing.compare.errors import relative_error
from parity.tracing.result import Suspect

Array = NDArray[Any]
Ways = Iterator[tuple[tuple[str, ...], Array]]
_IDS = 64  # ids that may be that of padding
_TYPES = ("float32", "bfloat16", "float16")
_ROUNDING = 1e-15
_NEAR = 2.0  # ways whose errors are rounding differ by less
_NARROW, _CLEARLY = 3e-7, 8.0  # what float32 rounds to, and what is more than that


def layer_suspects(evidence: Evidence) -> Iterator[Suspect]:
    """What a leaf layer does otherwise on the Flax side."""
    module = evidence.module
    if isinstance(module, torch.nn.RNNBase) and not evidence.stage:
        given = [*_floats(evidence), *evidence.given]
        yield from _named(evidence, "cell", layers(module, given, evidence.target.torch.shape))
        return
    inside = any(not part.alone for part in evidence.parts)
    if inside or not evidence.inputs or evidence.stage:
        return
    x = evidence.inputs[0].torch
    tensors = {p.name.rpartition(".")[2]: p.torch for p in evidence.parameters}
    weight, bias = tensors.get("weight"), tensors.get("bias")
    sides = evidence.target.torch, evidence.target.flax
    if x.dtype.kind in "iu":
        if weight is not None and weight.ndim == 2:
            yield from _named(evidence, "embedding", _embeddings(x, weight))
    elif x.dtype != np.float64 or not x.size:
        return
    elif found := cell_tensors(evidence.module, tensors):
        yield from _named(evidence, "cell", cells(_floats(evidence), found, sides))
    elif weight is None:
        return
    elif weight.ndim == 1 and weight.shape == x.shape[-1:]:
        yield from _named(evidence, "norm", _norms(evidence, x, tensors))
    elif weight.ndim == 2 and weight.shape[0] == x.shape[-1]:
        yield from _named(evidence, "linear", _linears(x, weight, bias))
    elif "Transpose" in type(evidence.module).__name__:
        yield from transposed_suspects(evidence, x)
    elif 3 <= weight.ndim == x.ndim <= 5 and x.shape[-1] % weight.shape[-2] == 0:
        yield from convolution_suspects(evidence, x, weight, bias)


def _floats(evidence: Evidence) -> list[Array]:
    return [v.torch for v in evidence.inputs if v.torch.dtype == np.float64]


def _norms(evidence: Evidence, x: Array, tensors: dict[str, Array]) -> Ways:
    """All norms that these tensors may be those of."""
    weight, bias = tensors["weight"], tensors.get("bias")
    own, sides = own_eps(evidence), (evidence.target.torch, evidence.target.flax)
    if "running_mean" in tensors and "running_var" in tensors:
        running = tensors["running_mean"], tensors["running_var"]
        yield from batch_norms(x, weight, bias, running, own, sides)
        return
    groups = getattr(evidence.module, "num_groups", None)
    if groups is None:
        yield from norms(x, weight, bias, evidence)
    if groups is not None or x.ndim > 2:
        yield from group_norms(x, weight, bias, own, groups or 1, sides)


def _named(evidence: Evidence, kind: str, ways: Ways) -> Iterator[Suspect]:
    """The difference between the way that is PyTorch's and the one that is Flax's."""
    sides = evidence.target.torch, evidence.target.flax
    tried: list[tuple[list[float], tuple[str, ...]]] = [
        ([relative_error(v, s) if v.shape == s.shape else np.inf for s in sides], words)
        for words, v in ways
    ]
    if not tried:
        return
    near = _NEAR if evidence.dtype != "float64" else 1.0
    found, after = _differing(evidence, kind, _nearest(tried, near))
    if found is not None and (suspect := evidence.judge(*found, after)):
        yield suspect
        return
    # Norms that are float32 inside of a float64 model, on both sides.
    near_ones = [(error, _but_precision(words)) for error, words in _nearest(tried, _NEAR)]
    found, after = _differing(evidence, kind, near_ones)
    before = evidence.target.error
    if found is not None and kind == "norm" and after <= _NARROW and before > _CLEARLY * after:
        name, sentence = found
        yield Suspect(name, f"{sentence} (computed in float32 on both sides)", before, after)


def _but_precision(words: tuple[str, ...]) -> tuple[str, ...]:
    return tuple("" if word.startswith("precision") else word for word in words)


def _nearest(
    tried: list[tuple[list[float], tuple[str, ...]]], near: float
) -> list[tuple[float, tuple[str, ...]]]:
    """For each side the first way, the more usual one, that is nearly as near as any."""
    found = []
    for side in range(2):
        enough = max(near * min(errors[side] for errors, _ in tried), _ROUNDING)
        found.append(next((e[side], words) for e, words in tried if e[side] <= enough))
    return found


def _differing(
    evidence: Evidence, kind: str, found: list[tuple[float, tuple[str, ...]]]
) -> tuple[tuple[str, str] | None, float]:
    """The name and the sentence of what is not the same on both sides, if anything, and its error.

    Args:
        evidence: the culprit.
        kind: of layer.
        found: the error and the words of each side's way.
    """
    (before, mine), (after, theirs) = found
    if mine == theirs:
        return None, np.inf
    said = [(a, b) for a, b in itertools.zip_longest(mine, theirs, fillvalue="") if a != b]
    if len(mine) != len(theirs):  # ways of different kinds
        said = [(", ".join(filter(None, mine)), ", ".join(filter(None, theirs)))]
    sentence = "; ".join(f"{b or 'plain'} in Flax, {a or 'plain'} in PyTorch" for a, b in said)
    if kind == "norm":
        sentence += eps_hint(theirs, mine, type(evidence.module).__name__)
    names = sorted({(b or a).split(" ")[0] for a, b in said})
    return (f"{kind}-{'-'.join(names)}", sentence), max(after, before)


def _linears(x: Array, kernel: Array, bias: Array | None) -> Ways:
    """x W + b, in other precisions, and without parts of it."""
    for precision in ("", "TF32", *_TYPES):
        a, w = (rounded(side, precision) for side in (x, kernel))
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
                    yield (words, text, other, "rounded output"), rounded(value, precision)


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
