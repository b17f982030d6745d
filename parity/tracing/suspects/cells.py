"""Hypotheses about a recurrent cell (GRU, LSTM): its gates, their order, its biases."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

Array = NDArray[Any]
Ways = Iterator[tuple[tuple[str, ...], Array]]
NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
_SIGMOIDS: dict[str, Callable[[Array], Array]] = {
    "": expit,
    "hard sigmoid (x / 6 + 1 / 2)": lambda x: np.clip(x / 6 + 0.5, 0, 1),
    "hard sigmoid (x / 5 + 1 / 2)": lambda x: np.clip(x / 5 + 0.5, 0, 1),
}


def cells(inputs: list[Array], tensors: dict[str, Array]) -> Ways:
    """New states of a GRU cell or an LSTM cell, as PyTorch computes them and otherwise.

    Args:
        inputs: x (B, I) and the states (B, H): h, or h and c.
        tensors: `weight_ih` (I, n*H) and the others, as PyTorch names them; n is 3 or 4.
    """
    x, h = inputs[:2]
    size = h.shape[-1]
    w_ih, w_hh = tensors["weight_ih"], tensors["weight_hh"]
    if w_ih.shape[0] != x.shape[-1] or w_hh.shape[0] != size:
        return
    zero = np.zeros(w_ih.shape[1])
    biases = [tensors.get(name, zero) for name in NAMES[2:]]
    for said, kept in (
        ("", (1, 1)),
        ("hidden bias left out", (1, 0)),
        ("input bias left out", (0, 1)),
        ("biases left out", (0, 0)),
    ):
        b_ih, b_hh = (b * k for b, k in zip(biases, kept, strict=True))
        a, b = x @ w_ih + b_ih, h @ w_hh + b_hh
        for sigmoid, function in _SIGMOIDS.items():
            if w_ih.shape[1] == 3 * size:
                ways = _gru(h, a, b, w_hh, b_hh, function)
            elif w_ih.shape[1] == 4 * size and len(inputs) > 2:
                ways = _lstm(inputs[2], a + b, function)
            else:
                return
            for words, value in ways:
                yield (*words, said, sigmoid), value


def _gru(
    h: Array, a: Array, b: Array, w_hh: Array, b_hh: Array, sigmoid: Callable[[Array], Array]
) -> Ways:
    """h' = (1 - z) n + z h; gates r, z, n of the input's part a and the state's part b."""
    size = h.shape[-1]
    for order in itertools.permutations(range(3)):
        gates = [slice(i * size, (i + 1) * size) for i in order]
        said = f"gates in the order {', '.join('rzn'[order.index(i)] for i in range(3))}"
        r, z = (sigmoid(a[:, g] + b[:, g]) for g in gates[:2])
        last = gates[2]
        for reset, state in (
            ("reset gate applied after the product", r * b[:, last]),
            ("reset gate applied before the product", (r * h) @ w_hh[:, last] + b_hh[last]),
            ("no reset gate", b[:, last]),
        ):
            n = np.tanh(a[:, last] + state)
            yield (said, reset, "(1 - z) n + z h"), (1 - z) * n + z * h
            yield (said, reset, "z n + (1 - z) h"), z * n + (1 - z) * h


def _lstm(c: Array, gates: Array, sigmoid: Callable[[Array], Array]) -> Ways:
    """c' = f c + i g and h' = o tanh(c')."""
    parts = np.split(gates, 4, axis=-1)
    for order in itertools.permutations(range(4)):
        i, f, g, o = (parts[n] for n in order)
        said = f"gates in the order {', '.join('ifgo'[order.index(n)] for n in range(4))}"
        for more in (0.0, 1.0):
            forget = f"{more:g} added to f" if more else ""
            new = sigmoid(f + more) * c + sigmoid(i) * np.tanh(g)
            yield (said, forget, "h"), sigmoid(o) * np.tanh(new)
            yield (said, forget, "h without tanh"), sigmoid(o) * new
            yield (said, forget, "c"), new
