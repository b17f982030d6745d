"""Biases of recurrent cells and layers, of which PyTorch has two where Flax has one."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen as nn

import parity
from parity.environment import Device, exact
from parity.tracing.result import Divergence
from tests.parity.foreign_pairs import array, dense
from tests.parity.test_suspects_evidence import normal

WIDTH, H = 3, 4
Params = dict[str, Any]
Bias = Callable[[Any, Any], Any]  # of the input's and the state's


@pytest.fixture(autouse=True)
def _exact(device: Device) -> Iterator[None]:
    with exact(device):
        yield


class TorchStep(torch.nn.Module):
    def __init__(self, cell: torch.nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Any, *states: Any) -> Any:
        found = self.cell(x, states if len(states) > 1 else states[0])
        return found[0] if isinstance(found, tuple) else found


class FlaxStep(nn.Module):
    kind: Any

    @nn.compact
    def __call__(self, x: Any, *states: Any) -> Any:
        carry = tuple(reversed(states)) if len(states) > 1 else states[0]
        return self.kind(H, name="cell", param_dtype=np.float64)(carry, x)[1]


class TorchLayer(torch.nn.Module):
    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        self.layer, self.out = layer, torch.nn.Linear(H, 5)

    def forward(self, x: Any) -> Any:
        return self.out(self.layer(x)[0])


class FlaxLayer(nn.Module):
    kind: Any

    @nn.compact
    def __call__(self, x: Any) -> Any:
        cell = self.kind(H, name="cell", param_dtype=np.float64)
        return nn.Dense(5, name="out", param_dtype=np.float64)(nn.RNN(cell)(x))


def halves(source: Any, gates: int, end: str = "") -> list[list[Any]]:
    """By gate: the kernels of input and state, and their biases."""
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    return [np.split(array(getattr(source, name + end)).T, gates, -1) for name in names]


def lstm(source: Any, bias: Bias, end: str = "") -> Params:
    i, h, b, c = halves(source, 4, end)
    found = {f"i{g}": {"kernel": i[n]} for n, g in enumerate("ifgo")}
    return found | {
        f"h{g}": {"kernel": h[n], "bias": bias(b[n], c[n])} for n, g in enumerate("ifgo")
    }


def gru(source: Any, first: Bias, inside: Bias, outside: Bias, end: str = "") -> Params:
    """Gates r, z with one bias; n with one outside of the reset gate and one inside."""
    i, h, b, c = halves(source, 3, end)
    return {
        "ir": {"kernel": i[0], "bias": first(b[0], c[0])},
        "iz": {"kernel": i[1], "bias": first(b[1], c[1])},
        "in": {"kernel": i[2], "bias": outside(b[2], c[2])},
        "hr": {"kernel": h[0]},
        "hz": {"kernel": h[1]},
        "hn": {"kernel": h[2], "bias": inside(b[2], c[2])},
    }


def simple(source: Any, bias: Bias) -> Params:
    i, h, b, c = halves(source, 1)
    return {"i": {"kernel": i[0], "bias": bias(b[0], c[0])}, "h": {"kernel": h[0]}}


def both(b: Any, c: Any) -> Any:
    return b + c


def of_input(b: Any, c: Any) -> Any:
    return b


def of_state(b: Any, c: Any) -> Any:
    return c


def none(b: Any, c: Any) -> Any:
    return 0 * b


def traced(model: torch.nn.Module, flax: nn.Module, params: Params, *given: Any) -> Any:
    return parity.trace(model.double().eval(), flax, params, given, backward=False)


def said_of(found: Divergence | None) -> str:
    assert found is not None
    (suspect,) = found.suspects
    assert suspect.name.startswith("cell-")
    return suspect.sentence


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.OptimizedLSTMCell])
def test_an_lstm_cell(kind: Any) -> None:
    cell = torch.nn.LSTMCell(WIDTH, H).double()
    states = normal(2, WIDTH), normal(2, H, seed=1), normal(2, H, seed=2)

    def trace(bias: Bias) -> Any:
        return traced(TorchStep(cell), FlaxStep(kind), {"cell": lstm(cell, bias)}, *states)

    assert trace(both).equal
    for bias, words in (
        (of_state, "input bias left out in Flax, both biases in PyTorch"),
        (of_input, "hidden bias left out in Flax, both biases in PyTorch"),
        (none, "biases left out in Flax"),
        (lambda b, c: 2 * (b + c), "biases twice in Flax"),
        (lambda b, c: 2 * c, "hidden bias twice, input bias left out in Flax"),
        (lambda b, c: b + 2 * c, "hidden bias twice in Flax"),
    ):
        assert words in said_of(trace(bias).first_divergence)


@pytest.mark.parametrize(
    ("gate", "words"),
    [
        (lambda x: jnp.clip(x / 5 + 0.5, 0, 1), "hard sigmoid (x / 5 + 1 / 2) in Flax"),
        (nn.hard_sigmoid, "hard sigmoid (x / 6 + 1 / 2) in Flax"),
        (lambda x: nn.sigmoid(x + 1), None),
    ],
)
def test_gates_of_an_lstm_cell(gate: Any, words: str | None) -> None:
    cell = torch.nn.LSTMCell(WIDTH, H).double()
    states = normal(2, WIDTH), normal(2, H, seed=1), normal(2, H, seed=2)
    params = {"cell": lstm(cell, both)}
    kind = functools.partial(nn.LSTMCell, gate_fn=gate)
    found = traced(TorchStep(cell), FlaxStep(kind), params, *states).first_divergence
    if words is None:  # one is added to all three
        assert found is not None
        assert not found.suspects or "cell-" not in found.suspects[0].name
    else:
        assert words in said_of(found)


def test_one_that_is_added_to_the_forget_gate() -> None:
    """As TensorFlow has it, whose files keep it out of the bias."""
    cell = torch.nn.LSTMCell(WIDTH, H).double()
    states = normal(2, WIDTH), normal(2, H, seed=1), normal(2, H, seed=2)
    params = {"cell": lstm(cell, both)}
    params["cell"]["hf"]["bias"] = params["cell"]["hf"]["bias"] + 1
    found = traced(TorchStep(cell), FlaxStep(nn.LSTMCell), params, *states).first_divergence
    assert "1 added to f in Flax" in said_of(found)


class EarlyReset(nn.Module):
    """A GRU cell as Keras had it: the reset gate is multiplied before the product."""

    features: int
    param_dtype: Any

    @nn.compact
    def __call__(self, h: Any, x: Any) -> Any:
        def dense(name: str, bias: bool) -> Any:
            return nn.Dense(self.features, bias, name=name, param_dtype=self.param_dtype)

        r = nn.sigmoid(dense("ir", True)(x) + dense("hr", False)(h))
        z = nn.sigmoid(dense("iz", True)(x) + dense("hz", False)(h))
        n = jnp.tanh(dense("in", True)(x) + dense("hn", True)(r * h))
        new = (1 - z) * n + z * h
        return new, new


def test_the_reset_gate_of_a_gru_cell() -> None:
    cell = torch.nn.GRUCell(WIDTH, H).double()
    states = normal(2, WIDTH), normal(2, H, seed=1)
    params = {"cell": gru(cell, both, of_state, of_input)}
    found = traced(TorchStep(cell), FlaxStep(EarlyReset), params, *states).first_divergence
    words = "reset gate applied before the product in Flax, reset gate applied after the product"
    assert words in said_of(found)


def test_a_gru_cell() -> None:
    cell = torch.nn.GRUCell(WIDTH, H).double()
    states = normal(2, WIDTH), normal(2, H, seed=1)

    def trace(*biases: Bias) -> Any:
        return traced(TorchStep(cell), FlaxStep(nn.GRUCell), {"cell": gru(cell, *biases)}, *states)

    assert trace(both, of_state, of_input).equal
    for biases, words in (
        ((of_input, of_state, of_input), "of r and z: hidden bias left out in Flax"),
        ((of_state, of_state, of_input), "of r and z: input bias left out in Flax"),
        ((both, none, both), "hidden bias of n added outside of the reset gate in Flax"),
        ((both, none, of_input), "hidden bias of n left out in Flax"),
        ((both, of_input, of_state), "biases of n exchanged in Flax"),
        ((of_input, none, of_input), "hidden bias left out in Flax"),
        ((of_state, of_state, none), "input bias left out in Flax"),
    ):
        assert words in said_of(trace(*biases).first_divergence)


def test_a_simple_cell() -> None:
    cell = torch.nn.RNNCell(WIDTH, H).double()
    states = normal(2, WIDTH), normal(2, H, seed=1)

    def trace(bias: Bias, model: Any = cell) -> Any:
        params = {"cell": simple(cell, bias)}
        return traced(TorchStep(model), FlaxStep(nn.SimpleCell), params, *states)

    assert trace(both).equal
    words = "input bias left out in Flax"
    assert words in said_of(trace(of_state).first_divergence)
    relu = torch.nn.RNNCell(WIDTH, H, nonlinearity="relu").double()
    relu.load_state_dict(cell.state_dict())
    assert "tanh in Flax, relu in PyTorch" in said_of(trace(both, relu).first_divergence)


def test_whole_layers_against_a_cell_in_a_loop() -> None:
    x = normal(2, 6, WIDTH)
    for layer, kind, healthy, faults in (
        (
            torch.nn.LSTM(WIDTH, H, batch_first=True),
            nn.LSTMCell,
            (both,),
            {(of_state,): "input bias left out in Flax, both biases in PyTorch"},
        ),
        (
            torch.nn.GRU(WIDTH, H, batch_first=True),
            nn.GRUCell,
            (both, of_state, of_input),
            {(both, none, both): "hidden bias of n added outside of the reset gate in Flax"},
        ),
    ):
        model: Any = TorchLayer(layer).double()
        make: Any = lstm if kind is nn.LSTMCell else gru

        def params(biases: Any, model: Any = model, make: Any = make) -> Params:
            cell = make(model.layer, *biases, end="_l0")
            return {"cell": cell, "out": dense(model.out)}

        result = traced(model, FlaxLayer(kind), params(healthy), x)
        assert result.equal
        for biases, words in faults.items():
            result = traced(model, FlaxLayer(kind), params(biases), x)
            assert words in said_of(result.first_divergence)
            # The answer comes first, and one line for each kind of note below it.
            lines = str(result).splitlines()
            assert lines[0].startswith("layer")
            assert words in lines[1]
            assert all(line.startswith("note: ") for line in lines[2:])
            assert len(lines) < 10


def test_equal_values_are_found_before_names_take_their_place() -> None:
    """Flax's biases of r and z hold the state's here, where names alone would say the input's."""
    cell = torch.nn.GRUCell(WIDTH, H).double()
    params = {"cell": gru(cell, of_state, of_state, of_input)}
    found = parity.infer_rules(TorchStep(cell), params)
    partners = {link.flax: link.torch for link in found.links}
    assert partners["cell/ir/bias"] == partners["cell/iz/bias"] == "cell.bias_hh"
    assert jnp.array_equal(params["cell"]["ir"]["bias"], array(cell.bias_hh)[:H])
