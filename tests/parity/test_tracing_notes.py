"""What was not compared is said."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen as nn

import diy_jax
import diy_torch
import parity
from parity.environment import Device, exact
from parity.random_models import small_configs
from tests.parity.foreign_pairs import FlaxCNN, cnn, dense, drawn, values
from tests.parity.small_pair import RULES, SmallPair, TorchChain, small_pair


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


def test_another_way_to_compute_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention sees differences of positions only: they may count from anywhere."""
    config = small_configs()["gqa"]
    model: Any = drawn(diy_torch.DIYForCausalLM(config), "float64")
    twin = diy_jax.DIYForCausalLM(config, dtype=jnp.float64, param_dtype=jnp.float64)
    params = parity.to_flax(model.state_dict(), config)
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (2, 9), np.int32)
    assert parity.trace(model, twin, params, ids, backward=False).notes == []

    tables = diy_jax.model.rope_tables
    monkeypatch.setattr(
        diy_jax.model, "rope_tables", lambda config, at, dtype: tables(config, at + 1, dtype)
    )
    result = parity.trace(model, twin, params, ids, backward=False)
    assert result.equal
    (note,) = result.notes
    assert re.fullmatch(
        r"what goes into model\.layers\.0 differs by [1-9]\.\de-01, and nothing after it notices: "
        "another way to compute the same",
        note,
    )
    params["model"]["layers_1"]["attention"]["v_proj"]["kernel"] *= 2
    result = parity.trace(model, twin, params, ids, backward=False)
    assert not result.equal
    assert result.notes == []


def test_models_of_other_dtypes() -> None:
    pair = small_pair()
    pair.torch.float()
    pair.inputs = {"torch": pair.inputs.astype(np.float32), "flax": pair.inputs}
    assert notes(pair) == [
        "(root) gives float32 in PyTorch and float64 in Flax: judged by the less precise (5 calls)"
    ]


def test_momentum_that_was_carried_over_as_it_is() -> None:
    """PyTorch's 0.1 keeps 0.9 of what it has, Flax's 0.1 keeps 0.1: only training would show it."""
    pair = cnn()
    assert isinstance(pair.flax, FlaxCNN)
    flax = pair.flax.clone(momentum=0.1)
    result = parity.trace(pair.torch, flax, pair.variables, pair.inputs, backward=False)
    assert result.equal
    kept = "keeps 0.9 of its statistics in PyTorch (momentum 0.1), 0.1 in Flax (momentum 0.1)"
    assert result.notes == [
        f"features.{i} {kept} at each training step, which no evaluation shows" for i in (1, 5)
    ]
    assert len(str(result).splitlines()) == 2


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
