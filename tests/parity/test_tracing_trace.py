"""`parity.trace` on the twins, on transformers, and on small models."""

from __future__ import annotations

import dataclasses
import math
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
import torch
import transformers
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st

import diy_jax
import parity
from diy_core.config import DIYConfig
from parity.environment import TORCH_DTYPES, Device, choose_device, exact
from parity.random_models import SCALES, small_configs, write_random_model
from parity.tracing.compare.comparison import Comparison
from parity.tracing.match.rules import twin_rules
from parity.tracing.result import TraceResult
from parity.twins import Pair
from tests.parity.healthy_models import IDS, configs, trace_healthy
from tests.parity.small_pair import RULES, SmallPair, small_pair

CPU = choose_device("cpu")


@settings(max_examples=15, deadline=None, derandomize=True)
@given(config=configs(), scale=st.sampled_from(SCALES), seed=st.integers(0, 999), own=st.booleans())
def test_no_false_alarm(config: DIYConfig, scale: str, seed: int, own: bool) -> None:
    trace_healthy(config, scale, seed, own)


@pytest.fixture
def twins(tmp_path: Path) -> Pair:
    write_random_model(tmp_path / "model", small_configs()["gqa"], "fan-in")
    with exact(CPU):
        return Pair(tmp_path / "model", "float64", CPU)


def change(params: Any, path: str, function: Callable[[Any], Any]) -> Any:
    *parents, leaf = path.split("/")
    params = jax.tree.map(lambda array: array, params)
    inner = params
    for name in parents:
        inner = inner[name]
    inner[leaf] = function(inner[leaf])
    return params


@pytest.mark.parametrize(
    ("field", "value", "torch_path"),
    [
        ("rope_theta", 5e3, "model"),  # which makes the tables
        ("rms_norm_eps", 1e-3, "model.layers.0.attention_norm"),
    ],
)
def test_a_wrong_config(twins: Pair, field: str, value: Any, torch_path: str) -> None:
    config = dataclasses.replace(twins.config, **{field: value})
    model = diy_jax.DIYForCausalLM(config, dtype=jnp.float64, param_dtype=jnp.float64)
    with exact(CPU):
        found = parity.trace(twins.torch, model, twins.params, IDS).first_divergence
    assert found is not None
    assert (found.direction, found.torch) == ("forward", torch_path)
    assert found.flax == torch_path.replace(".0", "_0").replace(".", "/")


@pytest.mark.parametrize("jit", [False, True])
def test_a_wrong_weight(twins: Pair, jit: bool) -> None:
    path = "model/layers_1/attention/o_proj/kernel"
    with exact(CPU):
        params = change(twins.params, path, lambda kernel: kernel.T)
        rules = twin_rules(twins.config)
        result = parity.trace(twins.torch, twins.flax, params, IDS, rules=rules, jit=jit)
    found = result.first_divergence
    assert found is not None
    assert (found.torch, found.flax) == ("model.layers.1.attention.o_proj", path[:-7])
    assert found.input_error < 1e-14 < 0.1 < min(found.error, found.alone_error)
    assert result.parameters["model.layers.1.attention.o_proj.weight"] > 0.1
    assert sum(error > 0 for error in result.parameters.values()) == 1
    before = [row for row in result.rows if row.torch.startswith("model.layers.0")]
    assert len(before) == 12
    assert all(row.outputs < 1e-14 for row in before)


def traced_llama(path: Path, dtype: str) -> TraceResult:
    with exact(CPU):
        model = transformers.AutoModelForCausalLM.from_pretrained(
            path, dtype=TORCH_DTYPES[dtype], attn_implementation="eager"
        )
        model.config.use_cache = False
        flax, params = diy_jax.DIYForCausalLM.from_pretrained(path, jnp.dtype(dtype))
        return parity.trace(model, flax, params, IDS)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_llama_of_transformers(dtype: str, tmp_path: Path) -> None:
    write_random_model(tmp_path / "model", small_configs()["gqa"], "fan-in")
    result = traced_llama(tmp_path / "model", dtype)
    assert result.equal, str(result.first_divergence)
    assert len(result.rows) == 29
    assert all("inv_freq of the PyTorch model has no partner" in note for note in result.notes)


def test_its_norm_computes_in_float32_even_in_float64(tmp_path: Path) -> None:
    write_random_model(tmp_path / "model", small_configs()["gqa"], "fan-in")
    found = traced_llama(tmp_path / "model", "float64").first_divergence
    assert found is not None
    assert found.torch == "model.layers.0.input_layernorm"
    assert found.flax == "model/layers_0/attention_norm"
    assert 1e-9 < found.alone_error < 1e-6


@pytest.mark.parametrize(("lift", "jit"), [(nn.remat, False), (nn.remat, True), (nn.jit, False)])
def test_lifted_modules(lift: Any, jit: bool, device: Device) -> None:
    with exact(device):
        pair = small_pair(lift=lift)
        result = pair.trace(jit=jit)
        assert result.equal
        assert [row.torch for row in result.rows][1:4] == [f"layers.{i}" for i in range(3)]
        layer = pair.params["layers_1"]["inner"]
        layer["bias"] = layer["bias"] * 2
        found = pair.trace(jit=jit, rules=RULES).first_divergence
    assert found is not None
    assert (found.torch, found.flax) == ("layers.1", "layers_1/inner")


def test_compiled_modules_cannot_be_compiled_again(device: Device) -> None:
    with exact(device), pytest.raises(ValueError, match=r"nn\.jit hides calls .*pass jit=False"):
        small_pair(lift=nn.jit).trace(jit=True)


def test_a_wrapper_of_pytorch(device: Device) -> None:
    with exact(device):
        pair = small_pair()
        pair.torch = torch.nn.DataParallel(pair.torch).eval()
        result = pair.trace()
    assert result.equal
    assert result.notes == []
    assert [row.torch for row in result.rows][1] == "module.layers.0"


@pytest.mark.parametrize("side", ["Flax", "PyTorch"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_number_on_one_side_only(side: str, value: float, device: Device) -> None:
    with exact(device):
        pair = small_pair()
        if side == "Flax":
            pair.params["layers_1"]["inner"]["bias"][2] = value
        else:
            pair.torch.layers[1].bias.data[2] = value
        found = pair.trace(rules=RULES).first_divergence
    assert found is not None
    assert (found.torch, found.error) == ("layers.1", math.inf)
    assert f"output (NaN/inf on the {side} side only) is off by inf" in str(found)


def test_losses_of_ones_own(device: Device) -> None:
    losses = (lambda y: y.square().mean(), lambda y: (y**2).mean())
    with exact(device):
        pair = small_pair()
        result = pair.trace(loss=losses)
        expected = float(losses[0](pair.torch(torch.from_numpy(pair.inputs))).detach())
        assert result.equal
        assert result.loss == pytest.approx((expected, expected), rel=1e-14)
        wrong = pair.trace(loss=(losses[0], lambda y: (y**2).sum()))
    assert wrong.loss is not None
    assert wrong.loss[1] == pytest.approx(20 * expected)
    assert wrong.first_divergence is not None
    assert wrong.first_divergence.direction == "backward"


def test_without_gradients(device: Device) -> None:
    with exact(device):
        result = small_pair().trace(backward=False)
    assert (result.equal, result.loss, result.gradients) == (True, None, {})
    assert all(row.input_gradients is None for row in result.rows)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_without_64_bits(dtype: str) -> None:
    """As a user has JAX, who asked for nothing."""
    pair = small_pair(dtype)
    assert pair.trace().equal
    pair.params["out"]["kernel"] = pair.params["out"]["kernel"][::-1]
    found = pair.trace(jit=True).first_divergence
    assert found is not None
    assert (found.torch, found.dtype) == ("out", dtype)


def test_a_record_and_a_text(device: Device) -> None:
    with exact(device):
        pair: SmallPair = small_pair()
        record = pair.trace().to_dict()
    assert record["equal"] is True
    assert record["first_divergence"] is None
    assert [call["torch"] for call in record["calls"]] == [
        "(root)",
        *(f"layers.{i}" for i in range(3)),
        "out",
    ]


def test_what_has_been_compared_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what goes into the calls that are not over yet is there: a large model fits."""
    heard, seen, alive = Comparison.heard, list[Any](), list[int]()

    def listen(self: Comparison, site: Any, kind: Any, name: str, array: Any) -> None:
        alive.append(sum(reference() is not None for reference in seen))
        seen.append(weakref.ref(array))
        heard(self, site, kind, name, array)

    monkeypatch.setattr(Comparison, "heard", listen)
    assert small_pair().trace(backward=False).equal
    assert len(seen) == 16
    assert max(alive) <= 3
