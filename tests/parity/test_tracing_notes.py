"""What was not compared is said."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen as nn

import parity
from parity.environment import Device, exact
from tests.parity.foreign_pairs import cnn, dense, values
from tests.parity.small_pair import RULES, Layer, SmallPair, TorchChain, small_pair


@pytest.fixture(autouse=True)
def _exact(device: Device) -> Iterator[None]:
    with exact(device):
        yield


def notes(pair: SmallPair, **options: Any) -> list[str]:
    result = pair.trace(backward=False, **options)
    assert result.equal
    return list(result.notes)


def test_two_models_of_which_everything_was_compared() -> None:
    assert notes(small_pair()) == []
    pair = cnn()
    assert parity.trace(pair.torch, pair.flax, pair.variables, pair.inputs).notes == []


def test_tensors_without_a_partner_and_not_all_of_very_many() -> None:
    pair = small_pair()
    pair.params["more"] = {"kernel": np.ones((2, 2))}
    pair.torch.register_buffer("table", torch.ones(7))
    expected = [
        "table of the PyTorch model has no partner",
        "more/kernel of the Flax model has no partner",
    ]
    assert notes(pair) == expected
    pair = small_pair()
    found = notes(pair, rules=RULES[2:])
    assert found[:5] == [
        f"layers.{i}.{leaf} of the PyTorch model has no partner"
        for i, leaf in [(0, "weight"), (0, "bias"), (1, "weight"), (1, "bias"), (2, "weight")]
    ]
    assert found[5] == "and 1 more of this kind"


class OnlyOut(TorchChain):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(x)


class FlaxOnlyOut(nn.Module):
    def setup(self) -> None:
        self.out = nn.Dense(4, param_dtype=np.float64)

    def __call__(self, x: Any) -> Any:
        return self.out(x)


def test_modules_that_never_ran() -> None:
    pair = small_pair()
    pair.torch, pair.flax = OnlyOut().double(), FlaxOnlyOut()
    pair.params["out"] = dense(pair.torch.out)
    found = notes(pair, rules=RULES)
    assert found[0] == "layers.0.weight is held by a module that never ran"
    assert found[-1] == "and 1 more of this kind"


class Scanned(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        scan = nn.scan(Step, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        x, _ = scan(name="layers")(x, None)
        return nn.Dense(4, name="out", param_dtype=x.dtype)(x)


class Step(nn.Module):
    @nn.compact
    def __call__(self, x: Any, _: None) -> Any:
        return Layer(name="step")(x), None


class Mapped(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        for i in range(3):
            axes: Any = {"params": None}
            layer = nn.vmap(Layer, variable_axes=axes, split_rngs={"params": False})
            x = layer(name=f"layers_{i}")(x)
        return nn.Dense(4, name="out", param_dtype=x.dtype)(x)


@pytest.mark.parametrize("jit", [False, True])
def test_calls_in_loops_of_jax(jit: bool) -> None:
    """They count as one with the module around them."""
    pair = small_pair()
    layers = [pair.params.pop(f"layers_{i}")["inner"] for i in range(3)]
    stacked = {name: np.stack([layer[name] for layer in layers]) for name in layers[0]}
    pair.params["layers"] = {"step": {"inner": stacked}}
    pair.flax = Scanned()
    loop = "layers runs in a loop of JAX: to have the calls in it compared, unroll it"
    assert loop in notes(pair, jit=jit)
    pair.params["out"] = {**pair.params["out"], "bias": 2 * pair.params["out"]["bias"]}
    found = pair.trace(jit=jit).first_divergence
    assert found is not None
    assert found.torch == "out"


def test_calls_that_vmap_makes_at_once() -> None:
    pair = small_pair()
    pair.flax = Mapped()
    found = notes(pair)
    assert "layers_0 runs in a loop of JAX: to have the calls in it compared, unroll it" in found


def test_models_of_other_dtypes() -> None:
    pair = small_pair()
    pair.torch.float()
    pair.inputs = {"torch": pair.inputs.astype(np.float32), "flax": pair.inputs}
    assert notes(pair) == [
        "(root) gives float32 in PyTorch and float64 in Flax: judged by the less precise (5 calls)"
    ]


def test_nan_on_both_sides() -> None:
    pair = small_pair()
    pair.torch.layers[1].bias.data[2] = np.nan
    pair.params["layers_1"]["inner"] = dense(pair.torch.layers[1])
    result = pair.trace()
    assert result.equal
    assert result.notes == ["NaN on both sides, first in (root): what is NaN is not compared"]


class Padded(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv1d(3, 5, 3, padding=1).double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


class FlaxPadded(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = jnp.pad(x, ((0, 0), (1, 1), (0, 0)))
        return nn.Conv(5, (3,), padding="VALID", name="conv", param_dtype=x.dtype)(x)


def test_inputs_of_other_shapes_on_the_two_sides() -> None:
    model, x = Padded(), values(0, 2, 3, 11, dtype="float64")
    weight = model.conv.weight.detach().numpy().transpose(2, 1, 0)
    params = {"conv": {"kernel": weight, "bias": model.conv.bias.detach().numpy()}}
    inputs = {"torch": x, "flax": x.transpose(0, 2, 1)}
    result = parity.trace(model, FlaxPadded(), params, inputs)
    assert result.equal
    expected = "what goes into conv ((2, 3, 11), in Flax (2, 13, 3)) was not compared: "
    assert result.notes == [expected + "the shapes do not fit"]
