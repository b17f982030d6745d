"""Attention whose layers PyTorch calls and Flax writes out, with heads in its tensors; and chance.

The Flax side has no calls there: what is known of them is what PyTorch's gave.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen as nn
from torch import Tensor
from torch.nn import functional

import parity
from parity.environment import Device, exact
from tests.parity.foreign_pairs import drawn

D, N, H = 12, 3, 4
WIDE = jnp.float64


class TorchAttention(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (torch.nn.Linear(D, D) for _ in range(4))
        self.norm = torch.nn.LayerNorm(D)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        layers = (self.query, self.key, self.value)
        q, k, v = (layer(x).unflatten(-1, (N, H)).transpose(1, 2) for layer in layers)
        shown = mask.bool()[:, None, None]
        mixed = functional.scaled_dot_product_attention(q, k, v, shown)
        return self.norm(x + self.out(mixed.transpose(1, 2).flatten(2)))


class FlaxAttention(nn.Module):
    fault: str = ""

    def heads(self, x: Any, name: str) -> Any:
        kernel = self.param(f"{name}_w", nn.initializers.zeros, (D, N, H), WIDE)
        bias = self.param(f"{name}_b", nn.initializers.zeros, (N, H), WIDE)
        biased = self.fault not in ("no biases", f"no {name} bias")
        return jnp.einsum("bsd,dnh->bnsh", x, kernel) + (bias[:, None] if biased else 0)

    @nn.compact
    def __call__(self, x: Any, mask: Any) -> Any:
        q, k, v = (self.heads(x, name) for name in ("query", "key", "value"))
        scores = q @ k.swapaxes(2, 3) / (D if self.fault == "scale" else H) ** 0.5
        hidden = (1 - mask)[:, None, None, :]
        if self.fault == "queries":
            hidden = hidden.swapaxes(2, 3)
        if self.fault == "causal":
            hidden = jnp.maximum(hidden, jnp.triu(jnp.ones(scores.shape[2:], int), 1))
        if self.fault == "no mask":
            hidden = 0 * hidden
        scores = scores - hidden * (5.0 if self.fault == "soft" else 1e9)
        weights = nn.softmax(scores, -2 if self.fault == "axis" else -1)
        weights = weights.swapaxes(2, 3) if self.fault == "transposed" else weights
        kernel = self.param("out_w", nn.initializers.zeros, (N, H, D), WIDE)
        bias = self.param("out_b", nn.initializers.zeros, (D,), WIDE)
        y = jnp.einsum("bnsh,nhd->bsd", weights @ v, kernel) + bias
        x = y if self.fault == "no residual" else x + y
        return nn.LayerNorm(1e-5, param_dtype=WIDE, name="norm", use_fast_variance=False)(x)


def traced(fault: str = "", damage: str = "") -> parity.TraceResult:
    model: Any = drawn(TorchAttention(), "float64")
    params: dict[str, Any] = {
        "norm": {"scale": model.norm.weight.detach(), "bias": model.norm.bias.detach()}
    }
    for name in ("query", "key", "value", "out"):
        layer = getattr(model, name)
        shape = (D, N, H) if name != "out" else (N, H, D)
        params[f"{name}_w"] = layer.weight.detach().T.reshape(shape)
        params[f"{name}_b"] = layer.bias.detach().reshape(shape[1:] if name != "out" else (D,))
    if damage == "another order":
        regrouped = model.query.weight.detach().T.reshape(D, H, N).transpose(1, 2)
        params["query_w"] = regrouped
    if damage == "heads reversed":
        params["out_w"] = params["out_w"].flip(0)
    if damage == "not loaded":
        params["key_w"] = 0 * params["key_w"]
    params = {
        k: {n: a.numpy().copy() for n, a in v.items()} if isinstance(v, dict) else v.numpy().copy()
        for k, v in params.items()
    }
    mask = (np.arange(7) < np.array([[7], [4]])).astype(np.int32)
    x = np.random.default_rng(0).normal(size=(2, 7, D))
    return parity.trace(model, FlaxAttention(fault), params, (x, mask), backward=False)


FAULTS = {
    "no biases": ("bias-left-out", "biases of queries, keys and values in Flax"),
    "no query bias": ("query-bias-left-out", "the bias of queries in Flax"),
    "no value bias": ("value-bias-left-out", "the bias of values in Flax"),
    "scale": ("scale-hidden", "1/sqrt of the whole width in Flax"),
    "queries": ("mask-queries", "masks the queries that are padding"),
    "causal": ("mask-causal-too", "masks the future too in Flax"),
    "no mask": ("mask-left-out", "has no mask in Flax"),
    "soft": ("mask-soft", "takes 5 from the scores of hidden keys"),
    "axis": ("softmax-queries", "over queries, not keys in Flax"),
    "transposed": ("weights-transposed", "by transposed probabilities in Flax"),
    "no residual": ("sum", "is out in Flax, x + out in PyTorch"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_attention_that_flax_writes_out(fault: str, device: Device) -> None:
    name, words = FAULTS[fault]
    with exact(device):
        found = traced(fault).first_divergence
    assert found is not None
    assert found.where == "what goes into norm"
    suspect = found.suspects[0]
    assert suspect.name == name, [str(s) for s in found.suspects]
    assert words in suspect.sentence
    assert suspect.after is not None
    assert suspect.after <= 1e-12 < suspect.before


@pytest.mark.parametrize(
    ("damage", "name", "words"),
    [
        ("another order", "heads-regrouped", "query.weight looks grouped as"),
        ("heads reversed", "heads-reversed", "out.weight has its inputs in the reverse order"),
        ("not loaded", "weight-zero", "key.weight is all zeros"),
    ],
)
def test_tensors_with_heads(damage: str, name: str, words: str, device: Device) -> None:
    with exact(device):
        found = traced(damage=damage).first_divergence
    assert found is not None
    assert found.suspects[0].name == name, [str(s) for s in found.suspects]
    assert words in found.suspects[0].sentence


def test_healthy_attention_that_flax_writes_out(device: Device) -> None:
    with exact(device):
        result = traced()
    assert result.equal, str(result.first_divergence)


# What goes into the whole model, and chance.


class Drops(torch.nn.Linear):
    """Its dropout knows nothing of evaluation mode."""

    dropped = True

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return functional.dropout(x, 0.3) if self.dropped else x


@pytest.mark.parametrize("dropped", [True, False])
def test_a_model_that_differs_from_itself(dropped: bool, device: Device) -> None:
    model: Any = drawn(Drops(4, 5), "float64")
    model.dropped = dropped
    kernel = model.weight.detach().numpy().T.copy() * (1 if dropped else 2)
    params = {"kernel": kernel, "bias": model.bias.detach().numpy().copy()}
    with exact(device):
        torch.manual_seed(0)
        x = np.random.default_rng(0).normal(size=(3, 4))
        result = parity.trace(model, nn.Dense(5, param_dtype=WIDE), params, x, backward=False)
    assert result.first_divergence is not None
    names = {suspect.name for suspect in result.first_divergence.suspects}
    assert ("chance" in names) == dropped
    if dropped:
        assert names == {"chance"}
        assert "every run in PyTorch" in result.first_divergence.suspects[0].sentence


INPUTS = {
    "reversed": (lambda x: x[..., ::-1], "flipped", "in the reverse order along its channels"),
    "normalised": (
        lambda x: x * np.array([1.0, 2, 3]) + np.array([0.5, 1, 2]),
        "channel-normalised",
        "another mean and deviation",
    ),
}


@pytest.mark.parametrize("case", INPUTS)
def test_images_that_are_prepared_otherwise(case: str, device: Device) -> None:
    change, name, words = INPUTS[case]

    class Stem(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x)

    class FlaxStem(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            return nn.Conv(4, (3, 3), padding=1, name="conv", param_dtype=WIDE)(x)

    model: Any = drawn(Stem(), "float64")
    kernel = model.conv.weight.detach().numpy().transpose(2, 3, 1, 0).copy()
    params = {"conv": {"kernel": kernel, "bias": model.conv.bias.detach().numpy().copy()}}
    image = np.random.default_rng(0).normal(size=(2, 6, 7, 3))
    for flax, wrong in ((change(image), True), (image, False)):
        given = {"torch": image.transpose(0, 3, 1, 2).copy(), "flax": np.ascontiguousarray(flax)}
        with exact(device):
            result = parity.trace(model, FlaxStem(), params, given, backward=False)
        assert result.equal != wrong
        if result.first_divergence is not None:
            suspect = result.first_divergence.suspects[0]
            assert suspect.name == name, [str(s) for s in result.first_divergence.suspects]
            assert words in suspect.sentence
