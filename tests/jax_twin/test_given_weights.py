"""Weights as JAX users hand them over."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.core
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from flax.nnx.bridge.variables import NNXMeta
from flax.training.train_state import TrainState

import diy_jax
from diy_core.errors import CheckpointError
from diy_core.mapping import flatten
from diy_jax.given_weights import given_weights, plain_weights
from tests.jax_twin.build import build
from tests.oracles import CONFIGS, tiny
from tests.tiny_checkpoints import read, same

Params = dict[str, Any]
OTHER_MESH = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("y",))


def boxed(box: type[nn.Partitioned[Any]]) -> Callable[[Params], Any]:
    return lambda params: jax.tree.map(lambda leaf: box(leaf, ("x",) * leaf.ndim), params)


def state(params: Params) -> TrainState:
    return TrainState.create(apply_fn=None, params=params, tx=optax.sgd(1.0))


def nnx_state(params: Params) -> nnx.State[Any, Any]:
    """With the keys of dropout, as `nnx.state(module)` has them beside the parameters."""
    variables = jax.tree.map(nnx.Param, params)
    return nnx.State({**variables, "rngs": nnx.state(nnx.Rngs(0)).raw_mapping})


WAYS: dict[str, Callable[[Params], Any]] = {
    "params": lambda params: params,
    "variables": lambda params: {"params": params},
    "variables with others": lambda params: {"params": params, "cache": {"k": jnp.ones(1)}},
    "frozen": lambda params: flax.core.freeze({"params": params}),
    "partitioned": boxed(nn.Partitioned),
    "partitioned over a mesh that is gone": lambda params: jax.tree.map(
        lambda leaf: nn.Partitioned(leaf, ("x",) * leaf.ndim, mesh=OTHER_MESH), params
    ),
    "logically partitioned": lambda params: {"params": boxed(nn.LogicallyPartitioned)(params)},
    "train state": state,
    "train state of variables": lambda params: state({"params": params}),
    "nnx": nnx_state,
    "nnx, as Linen has it": lambda params: jax.tree.map(
        lambda leaf: NNXMeta(nnx.Param, leaf, {}), params
    ),
    "inside another module": lambda params: {"params": {"policy": params}},
    "numpy": lambda params: jax.tree.map(np.asarray, params),
    "flat": flax.traverse_util.flatten_dict,
    "flat with slashes": lambda params: flax.traverse_util.flatten_dict(params, sep="/"),
    "flat with dots": lambda params: flax.traverse_util.flatten_dict(params, sep="."),
    "of another byte order": lambda params: jax.tree.map(
        lambda leaf: np.asarray(leaf).astype(">f4"), params
    ),
    "flat variables": lambda params: flax.traverse_util.flatten_dict({"params": params}, sep="/"),
}


@pytest.mark.parametrize("name", ["gqa", "untied"])
@pytest.mark.parametrize("way", WAYS)
def test_there_is_one_meaning(way: str, name: str) -> None:
    built = build(CONFIGS[name], jnp.float32)
    found = given_weights(WAYS[way](built.params), built.model.config)
    expected = flatten(built.params)
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[path], leaf) for path, leaf in expected.items())


def test_params_of_the_model_without_its_head_are_those_of_a_tied_one() -> None:
    built = build(tiny(), jnp.float32)
    found = given_weights({"params": built.params["model"]}, built.model.config)
    assert found.keys() == flatten(built.params).keys()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([1], "params: are a list: pass the nested dict, of an nnx module nnx.state(module, nnx"),
        ({"model": {"norm": {"scale": 3}}}, "parameter model/norm/scale is a int and no array"),
        (
            {"model": {"norm": {"scale": jax.ShapeDtypeStruct((16,), jnp.float32)}}},
            "parameter model/norm/scale has a shape and no values: initialise or restore it",
        ),
    ],
)
def test_where_there_is_none_it_says_what_to_pass(given: Any, words: str) -> None:
    with pytest.raises(CheckpointError) as refused:
        plain_weights(given)
    assert words in str(refused.value)


def test_arrays_that_a_step_has_taken_are_named() -> None:
    taken = jnp.ones(3)
    taken.delete()
    with pytest.raises(CheckpointError, match="model/w was deleted, or donated to a step: pass"):
        plain_weights({"params": {"model": {"w": taken}}})


@pytest.mark.parametrize("transform", [jax.jit, jax.grad, jax.vmap])
def test_arrays_without_values_inside_of_a_transformation_are_named(
    transform: Callable[..., Any],
) -> None:
    with pytest.raises(CheckpointError, match=r"params: are traced, .*: make this call outside"):
        transform(lambda w: plain_weights({"params": {"model": {"w": w}}}))(jnp.ones(3))


def test_layers_in_one_array_are_named() -> None:
    built = build(tiny(), jnp.float32)
    layers = [built.params["model"][f"layers_{i}"] for i in range(2)]
    stacked = {"layers": jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)}
    with pytest.raises(CheckpointError) as refused:
        given_weights({"params": {"model": built.params["model"] | stacked}}, built.model.config)
    (fault,) = refused.value.faults
    assert fault.startswith("has all layers stacked in one array, as nn.scan leaves them (model/l")


def test_biases_of_zeros_add_nothing_and_others_are_too_many() -> None:
    built = build(tiny(), jnp.float32)
    expected = flatten(built.params)
    odd = dict(expected)
    odd["lm_head", "bias"] = jnp.zeros(built.model.config.vocab_size, jnp.bfloat16)
    odd["model", "layers_0", "attention", "q_proj", "bias"] = np.zeros(16, np.float32)
    notes: list[str] = []
    assert given_weights(odd, built.model.config, notes).keys() == expected.keys()
    assert notes == [
        "2 biases were dropped, such as lm_head/bias: the config has no such bias, and zeros add "
        "nothing"
    ]
    odd["lm_head", "bias"] = odd["lm_head", "bias"].at[3].set(1e-30)
    with pytest.raises(CheckpointError, match="unexpected tensor lm_head/bias"):
        given_weights(odd, built.model.config)
    biased = build(tiny(attention_bias=True), jnp.float32)
    found = given_weights(biased.params, biased.model.config)
    assert found.keys() == flatten(biased.params).keys()


def test_what_does_not_fit_keeps_its_faults() -> None:
    built = build(tiny(), jnp.float32)
    params = {"policy": built.params, "value": {"kernel": jnp.ones((16, 1))}}
    with pytest.raises(CheckpointError) as refused:
        given_weights(params, built.model.config)
    assert "missing tensor model/norm/scale (16,)" in refused.value.faults
    assert "unexpected tensor value/kernel (16, 1)" in refused.value.faults


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.int32, jnp.float8_e4m3fn])
def test_quantised_arrays_are_no_weights(dtype: Any) -> None:
    built = build(tiny(), jnp.float32)
    params = {**flatten(built.params)}
    params["model", "norm", "scale"] = params["model", "norm", "scale"].astype(dtype)
    with pytest.raises(CheckpointError) as refused:
        given_weights(params, built.model.config)
    assert refused.value.faults == [
        f"parameter model/norm/scale is {jnp.dtype(dtype)}, and weights are floats: dequantise or "
        "convert it first"
    ]


def test_they_are_saved_and_generated_with(tmp_path: Path) -> None:
    built = build(tiny(), jnp.float32)
    given = {"params": boxed(nn.LogicallyPartitioned)(built.params)}
    built.model.save_pretrained(tmp_path / "plain", built.params)
    built.model.save_pretrained(tmp_path / "given", given)
    assert same(read(tmp_path / "plain"), read(tmp_path / "given"))
    ids = [[1, 2, 3]]
    one = diy_jax.generate(built.model, built.params, ids, max_new_tokens=3)
    other = diy_jax.generate(built.model, given, ids, max_new_tokens=3)
    assert np.array_equal(one.sequences, other.sequences)
