"""Hypotheses about a recurrent cell (RNN, GRU, LSTM) or layer: its gates, their order, its biases.

PyTorch has two biases for every gate, one with the input and one with the state. Flax's LSTM cells
have their sum, its GRU cell two for the last gate alone: what is carried over may be one of them,
or both of them twice.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit

from diy_torch.tensors import to_numpy
from parity.tracing.compare.errors import relative_error

Array = NDArray[Any]
Biases = tuple[Array, Array]
Ways = Iterator[tuple[tuple[str, ...], Array]]
NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
_SIGMOIDS: dict[str, Callable[[Array], Array]] = {
    "": expit,
    "hard sigmoid (x / 6 + 1 / 2)": lambda x: np.clip(x / 6 + 0.5, 0, 1),
    "hard sigmoid (x / 5 + 1 / 2)": lambda x: np.clip(x / 5 + 0.5, 0, 1),
}
_STEPS = 4  # of a loop that may be seen
# How often the input's bias and the state's are added.
_TIMES = {
    "both biases": (1, 1),
    "hidden bias left out": (1, 0),
    "input bias left out": (0, 1),
    "biases left out": (0, 0),
    "input bias twice, hidden bias left out": (2, 0),
    "hidden bias twice, input bias left out": (0, 2),
    "biases twice": (2, 2),
    "input bias twice": (2, 1),
    "hidden bias twice": (1, 2),
}
# The biases of a GRU's last gate, of which the state's is multiplied with the reset gate: how often
# each is added outside of the product, and how often inside.
_LAST = {
    "": ((1, 0), (0, 1)),
    "hidden bias of n added outside of the reset gate": ((1, 1), (0, 0)),
    "hidden bias of n left out": ((1, 0), (0, 0)),
    "input bias of n left out": ((0, 0), (0, 1)),
    "biases of n left out": ((0, 0), (0, 0)),
    "biases of n exchanged": ((0, 1), (1, 0)),
    "biases of n added inside of the reset gate": ((0, 0), (1, 1)),
    "biases of n twice": ((2, 0), (0, 2)),
}


def cell_tensors(module: torch.nn.Module, known: dict[str, Array]) -> dict[str, Array]:
    """The tensors of a cell, as PyTorch names them and Flax lays them out: (in, gates * H).

    Where Flax has one for each gate, only parts of them are known, and the module has them whole.
    """
    if isinstance(module, torch.nn.RNNCellBase):
        return {n: _wide(p).T for n, p in module.named_parameters() if n in NAMES}
    return known if all(name in known for name in NAMES[:2]) else {}


def cells(inputs: Sequence[Array], tensors: dict[str, Array], sides: Sequence[Array]) -> Ways:
    """New states of a cell, as PyTorch computes them and otherwise.

    Args:
        inputs: x (B, I) and the states (B, H), h, or h and c, in any order; those that are missing
            are zero.
        tensors: `weight_ih` (I, n*H) and the others, as PyTorch names them; n is 1, 3 or 4.
        sides: what was found on both sides; the order of inputs is that which gives one of them.
    """
    w_ih, w_hh = tensors["weight_ih"], tensors["weight_hh"]
    size, gates = w_hh.shape[0], w_ih.shape[1] // w_hh.shape[0]
    if gates not in (1, 3, 4) or w_hh.shape[1] != w_ih.shape[1]:
        return
    zero = np.zeros(w_ih.shape[1])
    biases = tensors.get("bias_ih", zero), tensors.get("bias_hh", zero)
    best, states = np.inf, None
    for given in _orders(inputs, w_ih.shape[0], size, 2 if gates == 4 else 1):
        usual = [value for _, value in _formulas(given, tensors, biases, gates, expit, first=True)]
        error = min(relative_error(v, side) for v in usual for side in sides)
        if error < best:
            best, states = error, given
    if states is None:
        return
    for said, changed in _biases(*biases, gates):
        for words, value in _formulas(states, tensors, changed, gates, expit, first=True):
            yield (*words, said, ""), value
    for said in list(_TIMES)[:4]:
        b_ih, b_hh = (b * times for b, times in zip(biases, _TIMES[said], strict=True))
        for sigmoid, function in _SIGMOIDS.items():
            for words, value in _formulas(states, tensors, (b_ih, b_hh), gates, function):
                yield (*words, said, sigmoid), value


def layers(module: torch.nn.RNNBase, inputs: Sequence[Array], shape: tuple[int, ...]) -> Ways:
    """Outputs and states of a whole recurrent layer of PyTorch, with other biases.

    Flax has a cell in a loop there, and what is seen of it is one of its first steps: the states
    after a few tokens count as the layer's own.

    Args:
        module: the layer.
        inputs: x (B, S, I) or (S, B, I), and the states if there are any.
        shape: of what was found.
    """
    if not module.bias or not inputs or inputs[0].ndim != 3:
        return
    x, *states = inputs
    parameters = {name: _wide(p) for name, p in module.named_parameters()}
    gates = parameters["weight_hh_l0"].shape[0] // module.hidden_size
    ends = [name.removeprefix("bias_ih") for name in parameters if name.startswith("bias_ih")]
    biases = {e: (parameters[f"bias_ih{e}"], parameters[f"bias_hh{e}"]) for e in ends}
    changes = {end: dict(_biases(*both, gates)) for end, both in biases.items()}
    for said in changes[ends[0]]:
        changed = dict(parameters)
        for end in ends:
            names = f"bias_ih{end}", f"bias_hh{end}"
            changed |= dict(zip(names, changes[end][said], strict=True))
        for count in (None, *range(1, _STEPS)):
            first = x[:, :count] if module.batch_first else x[:count]
            for value in _outputs(module, changed, [first, *states]):
                for turned in (value, value.swapaxes(0, 1), *value):
                    if turned.shape == shape:
                        yield (said,), turned


def _outputs(
    module: torch.nn.RNNBase, parameters: dict[str, Array], inputs: Sequence[Array]
) -> list[Array]:
    """The arrays that a layer returns, given other parameters."""
    like = next(module.parameters())
    tensors = {n: torch.from_numpy(a.copy()).to(like) for n, a in parameters.items()}
    x, *states = (torch.from_numpy(np.ascontiguousarray(a)).to(like) for a in inputs)
    given = (tuple(states) if len(states) > 1 else states[0],) if states else ()
    with torch.no_grad():
        found = torch.func.functional_call(module, tensors, (x, *given))
    return [_wide(leaf) for leaf in torch.utils._pytree.tree_leaves(found)]


def _biases(b_ih: Array, b_hh: Array, gates: int) -> Iterator[tuple[str, Biases]]:
    """What may be added in place of both biases, in words and as such two."""
    for said, (one, other) in _TIMES.items():
        yield said, (b_ih * one, b_hh * other)
    if gates != 3:
        return
    last = slice(2 * len(b_ih) // 3, None)
    for (said, (one, other)), (said_2, (outside, inside)) in itertools.product(
        _TIMES.items(), _LAST.items()
    ):
        first = "" if said == "both biases" else f"of r and z: {said}"
        if not first and not said_2:
            continue
        new = b_ih * one, b_hh * other
        new[0][last] = outside[0] * b_ih[last] + outside[1] * b_hh[last]
        new[1][last] = inside[0] * b_ih[last] + inside[1] * b_hh[last]
        yield ", ".join(filter(None, (first, said_2))), new


def _orders(
    inputs: Sequence[Array], width: int, size: int, states: int
) -> Iterator[tuple[Array, ...]]:
    """Inputs as x, h and c; states that are missing are zero."""
    for order in itertools.permutations(inputs, min(len(inputs), 1 + states)):
        x, *rest = order
        right = x.ndim == 2 and x.shape[-1] == width
        if right and all(h.shape == (len(x), size) for h in rest):
            yield x, *rest, *[np.zeros((len(x), size))] * (states - len(rest))


def _formulas(
    states: tuple[Array, ...],
    tensors: dict[str, Array],
    biases: Biases,
    gates: int,
    sigmoid: Callable[[Array], Array],
    first: bool = False,
) -> Ways:
    """The ways to compute a cell; with `first` the usual one alone, whatever it returns of it."""
    x, h = states[:2]
    w_hh, (b_ih, b_hh) = tensors["weight_hh"], biases
    a, b = x @ tensors["weight_ih"] + b_ih, h @ w_hh + b_hh
    if gates == 3:
        ways = _gru(h, a, b, w_hh, b_hh, sigmoid)
        yield from itertools.islice(ways, 1 if first else None)
    elif gates == 4:
        for words, value in _lstm(states[2], a + b, sigmoid):
            if not first:
                yield words, value
            elif words[1] or words[0] != "gates in the order i, f, g, o":
                return
            elif words[2] != "h without tanh":
                yield words, value
    else:
        for name, function in (("tanh", np.tanh), ("relu", lambda n: np.maximum(n, 0))):
            yield (name, "", ""), function(a + b)
        if not first:
            yield ("no activation", "", ""), a + b


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


def _wide(tensor: torch.Tensor) -> Array:
    return np.asarray(to_numpy(tensor.detach()), np.float64)
