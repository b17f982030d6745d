"""Faults of a conversion: tensors that end up otherwise than they should."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from parity.faults.fault import Fault, Params

Array = NDArray[Any]


def _at(path: str, change: Callable[[Array], Array]) -> Callable[[Params], None]:
    """Damage one parameter, given by its path in the tree."""

    def damage(params: Params) -> None:
        *parents, leaf = path.split("/")
        for key in parents:
            params = params[key]
        params[leaf] = np.ascontiguousarray(change(params[leaf]))

    return damage


def _swapped(one: str, other: str) -> Callable[[Params], None]:
    """Exchange two subtrees."""

    def damage(params: Params) -> None:
        places = []
        for path in (one, other):
            *parents, leaf = path.split("/")
            node = params
            for key in parents:
                node = node[key]
            places.append((node, leaf))
        (a, x), (b, y) = places
        a[x], b[y] = b[y], a[x]

    return damage


def _regrouped(array: Array, axis: int, shape: tuple[int, int, int]) -> Array:
    """Swap the last two of the three factors that an axis is seen as."""
    moved = np.moveaxis(array, axis, 0)
    grouped = moved.reshape(*shape, *moved.shape[1:]).swapaxes(1, 2).reshape(moved.shape)
    return np.moveaxis(grouped, 0, axis)


def _one_value(array: Array) -> Array:
    array[5, 3] += 1e-3
    return array


_Q, _K, _V, _O = (f"model/layers_1/attention/{name}_proj/kernel" for name in "qkvo")
_DOWN = "model/layers_0/feedforward/down_proj/kernel"
WEIGHT_FAULTS = [
    Fault(
        "weight-transposed",
        ("weight-transposed",),
        params=_at(_O, lambda w: w.T),
    ),
    Fault(
        "query-interleaved",
        ("rope-interleaved",),
        params=_at(_Q, lambda w: _regrouped(w, 1, (6, 2, 4))),
    ),
    Fault(
        "key-interleaved",
        ("rope-interleaved",),
        params=_at(_K, lambda w: _regrouped(w, 1, (2, 2, 4))),
    ),
    Fault(
        "query-heads-regrouped",
        ("heads-regrouped",),
        params=_at(_Q, lambda w: _regrouped(w, 1, (1, 6, 8))),
    ),
    Fault(
        "output-heads-regrouped",
        ("heads-regrouped",),
        params=_at(_O, lambda w: _regrouped(w, 0, (1, 6, 8))),
    ),
    Fault(
        "key-value-exchanged",
        ("weight-of-another",),
        params=_swapped("model/layers_1/attention/k_proj", "model/layers_1/attention/v_proj"),
    ),
    Fault(
        "gate-up-exchanged",
        ("weight-of-another",),
        params=_swapped(
            "model/layers_0/feedforward/gate_proj", "model/layers_0/feedforward/up_proj"
        ),
    ),
    Fault(
        "norms-exchanged",
        ("weight-of-another",),
        params=_swapped("model/layers_1/attention_norm", "model/layers_1/feedforward_norm"),
    ),
    Fault(
        "layers-exchanged",
        ("weight-of-another",),
        params=_swapped("model/layers_0", "model/layers_1"),
    ),
    Fault(
        "norm-plus-one",
        ("weight-plus-one",),
        params=_at("model/layers_1/attention_norm/scale", lambda w: w + 1),
    ),
    Fault(
        "norm-not-loaded",
        ("weight-one",),
        params=_at("model/norm/scale", np.ones_like),
    ),
    Fault(
        "weight-not-loaded",
        ("weight-zero",),
        params=_at(_DOWN, np.zeros_like),
    ),
    Fault(
        "weight-rounded",
        ("weight-rounded",),
        params=_at(_DOWN, lambda w: w.astype(ml_dtypes.bfloat16).astype(w.dtype)),
    ),
    Fault(
        "weight-flipped",
        ("weight-flipped",),
        params=_at(_DOWN, lambda w: w[::-1]),
    ),
    Fault(
        "weight-scaled",
        ("weight-scaled",),
        params=_at(_V, lambda w: w * w.shape[0] ** -0.5),
    ),
    Fault(
        "one-value",
        ("weight-differs",),
        params=_at("model/embed_tokens/embedding", _one_value),
    ),
    Fault(
        "vocabulary-shifted",
        ("weight-shifted",),
        params=_at("model/embed_tokens/embedding", lambda w: np.roll(w, 1, axis=0)),
    ),
    Fault(
        "head-drifted",
        ("weight-of-another", "weight-differs"),
        model="untied",
        params=lambda params: params["lm_head"].update(
            kernel=params["model"]["embed_tokens"]["embedding"].T.copy()
        ),
    ),
    Fault(
        "bias-not-loaded",
        ("weight-zero", "bias-dropped"),
        model="biases",
        params=_at("model/layers_1/attention/q_proj/bias", np.zeros_like),
    ),
    Fault(
        "key-bias-interleaved",
        ("rope-interleaved",),
        model="biases",
        params=_at("model/layers_1/attention/k_proj/bias", lambda b: _regrouped(b, 0, (2, 2, 4))),
    ),
]
