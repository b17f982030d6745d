"""Which of several differences is the culprit: lines drawn elsewhere, narrow dtypes, rounding."""

from __future__ import annotations

import copy
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen as nn

import parity
from parity.environment import Device, exact

V, D, ROOT = 11, 6, 6**0.5
IDS = np.random.default_rng(0).integers(0, V, (2, 5)).astype(np.int32)


class ScaledEmbedding(torch.nn.Embedding):
    """Scales by itself, as Gemma's of transformers does."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return super().forward(ids) * ROOT


class Trunk(torch.nn.Module):
    """An embedding and two layers with a norm each."""

    def __init__(self, narrow_norm: bool = False) -> None:
        super().__init__()
        self.narrow_norm = narrow_norm
        self.embed = ScaledEmbedding(V, D)
        self.first, self.second = torch.nn.Linear(D, D), torch.nn.Linear(D, D)
        self.norm = torch.nn.RMSNorm(D, eps=1e-5)
        if narrow_norm:
            self.norm = Float32Norm(D, eps=1e-5)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.first(self.norm(self.embed(ids)))))


class Float32Norm(torch.nn.RMSNorm):
    """Computes in float32, whatever it is given, as those of transformers do."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight.float()
        return torch.nn.functional.rms_norm(x.float(), (D,), weight, self.eps).to(x.dtype)


class FlaxTrunk(nn.Module):
    """The same, but that the trunk scales what the embedding gives."""

    scaled: bool = True

    @nn.compact
    def __call__(self, ids: Any) -> Any:
        x = nn.Embed(V, D, name="embed", param_dtype=jnp.float64)(ids)
        x = x * ROOT if self.scaled else x
        x = nn.RMSNorm(epsilon=1e-5, name="norm", param_dtype=jnp.float64)(x)
        x = jnp.tanh(nn.Dense(D, name="first", param_dtype=jnp.float64)(x))
        return nn.Dense(D, name="second", param_dtype=jnp.float64)(x)


def pair(narrow_norm: bool = False) -> tuple[Trunk, dict[str, Any]]:
    torch.manual_seed(0)
    model = Trunk(narrow_norm).double().eval()
    state = {name: array.numpy() for name, array in model.state_dict().items()}
    params: dict[str, Any] = {
        "embed": {"embedding": state["embed.weight"]},
        "norm": {"scale": state["norm.weight"]},
    }
    for name in ("first", "second"):
        params[name] = {"kernel": state[f"{name}.weight"].T, "bias": state[f"{name}.bias"]}
    return model, params


def trace(model: Any, module: nn.Module, params: Any, device: Device) -> parity.TraceResult:
    with exact(device):
        return parity.trace(model.to(device.torch), module, params, IDS)


def test_a_line_that_is_drawn_elsewhere_is_no_fault(device: Device) -> None:
    model, params = pair()
    assert trace(model, FlaxTrunk(), params, device).equal


@pytest.mark.parametrize("layer", ["first", "second"])
def test_nor_does_it_hide_one(layer: str, device: Device) -> None:
    model, params = pair()
    params[layer]["kernel"] = params[layer]["kernel"].T
    found = trace(model, FlaxTrunk(), params, device).first_divergence
    assert found is not None
    assert (found.torch, found.suspects[0].name) == (layer, "weight-transposed")


def test_what_nobody_makes_up_for_is_one(device: Device) -> None:
    """A norm undoes the factor but for its eps: the embedding is what differs."""
    model, params = pair()
    found = trace(model, FlaxTrunk(scaled=False), params, device).first_divergence
    assert found is not None
    assert (found.torch, found.suspects[0].name) == ("embed", "embedding-scaled")


def test_a_narrow_norm_does_not_hide_what_is_far_larger(device: Device) -> None:
    model, params = pair(narrow_norm=True)
    healthy = trace(model, FlaxTrunk(), params, device)
    assert healthy.first_divergence is not None
    assert healthy.first_divergence.torch == "norm"
    assert not any("the search went on" in note for note in healthy.notes)
    params = copy.deepcopy(params)
    params["second"]["kernel"] = params["second"]["kernel"].T
    result = trace(model, FlaxTrunk(), params, device)
    found = result.first_divergence
    assert found is not None
    assert (found.torch, found.suspects[0].name) == ("second", "weight-transposed")
    (note,) = [note for note in result.notes if "the search went on" in note]
    assert note.startswith("norm: output is off by ")


class Inner(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = torch.nn.Linear(D, D)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj(x)


class Outer(torch.nn.Module):
    """Raises small differences, so that they are past what several roundings may add up to."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Inner()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) ** 4


class FlaxInner(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        return nn.Dense(D, name="proj", dtype=x.dtype, param_dtype=x.dtype)(x) * 1.1


class FlaxOuter(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        return FlaxInner(name="inner")(x) ** 4


def test_in_bfloat16_the_part_is_named_and_not_the_whole(device: Device) -> None:
    torch.manual_seed(0)
    model = Outer().to(device.torch, torch.bfloat16).eval()
    weight, bias = (p.detach().float().cpu().numpy() for p in model.parameters())
    params = {"inner": {"proj": {"kernel": weight.T, "bias": bias}}}
    params = {
        "inner": {
            "proj": {k: jnp.asarray(a, jnp.bfloat16) for k, a in params["inner"]["proj"].items()}
        }
    }
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, D)), jnp.bfloat16)
    with exact(device):
        found = parity.trace(model, FlaxOuter(), params, x).first_divergence
    assert found is not None
    assert found.torch == "inner"
