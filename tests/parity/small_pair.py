"""A chain of linear layers on both sides: the least that a trace can be asked about."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import torch
from flax import linen as nn
from torch import Tensor

import parity
from parity.tracing.result import TraceResult
from tests.parity.foreign_pairs import dense, drawn, layer_rules, values

WIDTH = 6
RULES = [
    *layer_rules("layers.{i}", "layers_{i}/inner", "kernel", "bias"),
    *layer_rules("out", "out", "kernel", "bias"),
]


class TorchChain(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.out = torch.nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return self.out(x)


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        return jnp.tanh(nn.Dense(WIDTH, name="inner", param_dtype=x.dtype)(x))


class FlaxChain(nn.Module):
    """Its layers may be lifted by `nn.remat` or `nn.jit`."""

    lift: Any = None

    @nn.compact
    def __call__(self, x: Any) -> Any:
        layer = Layer if self.lift is None else self.lift(Layer)
        for i in range(3):
            x = layer(name=f"layers_{i}")(x)
        return nn.Dense(4, name="out", param_dtype=x.dtype)(x)


@dataclasses.dataclass
class SmallPair:
    """Both models with the same weights; each part may be replaced before it is traced."""

    torch: Any
    flax: Any
    params: Any
    inputs: Any

    def trace(self, **options: Any) -> TraceResult:
        return parity.trace(self.torch, self.flax, self.params, self.inputs, **options)


def small_pair(dtype: str = "float64", lift: Any = None) -> SmallPair:
    model: Any = drawn(TorchChain(), dtype)
    params = {f"layers_{i}": {"inner": dense(layer)} for i, layer in enumerate(model.layers)}
    params["out"] = dense(model.out)
    return SmallPair(model, FlaxChain(lift), params, values(0, 5, WIDTH, dtype=dtype))
