"""What a GPU or a TPU would run, on a machine without one: programs lowered for both of them."""

from __future__ import annotations

import dataclasses
import importlib
import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import export

import diy_jax
from diy_jax import random
from tests.oracles import CONFIGS

# The package has a function of this name.
compiled_step = importlib.import_module("diy_jax.generate")._step

PLATFORMS = ("cuda", "tpu")
IDS = jax.ShapeDtypeStruct((2, 5), np.int32)
LENGTHS = jax.ShapeDtypeStruct((2,), np.int32)

every_config = pytest.mark.parametrize("name", ["gqa", "untied", "biases", "llama3"])
every_dtype = pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["f32", "bf16"])


@pytest.fixture(params=["as it is", "exact"], autouse=True)
def exact(request: pytest.FixtureRequest) -> Iterator[bool]:
    """JAX as it starts; and as `parity` sets it: without TF32, and in 64 bits.

    In 64 bits a stray number or array of Python's or numpy's becomes float64.
    """
    chosen = request.param == "exact"
    precision = "highest" if chosen else None
    with jax.enable_x64(chosen), jax.default_matmul_precision(precision):
        yield chosen


def build(name: str, dtype: Any) -> tuple[diy_jax.DIYForCausalLM, Any]:
    """A model and the shapes of its params."""
    config = CONFIGS[name]
    params = jax.eval_shape(lambda: diy_jax.init_params(config, dtype=dtype))
    return diy_jax.DIYForCausalLM(config, dtype=dtype, param_dtype=dtype), params


def lower(function: Any, *args: Any, exact: bool) -> tuple[str, Any]:
    """The program of a jitted function for GPU and TPU, and what it returns, as shapes.

    JAX refuses operations that one of the platforms does not have. Beyond that, the program must
    not call the host or a library of one platform, and must not compute in float64: a TPU has none,
    and a GPU is slow at it. Single numbers may be, such as -inf in 64 bits.
    """
    exported = export.export(function, platforms=PLATFORMS)(*args)
    assert exported.platforms == PLATFORMS
    assert not exported.ordered_effects
    assert not exported.unordered_effects
    text = exported.mlir_module()
    assert "custom_call" not in text
    assert not re.search(r"\dxf64" if exact else r"f64", text)
    products = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
    pinned = [line for line in products if "precision = [HIGHEST, HIGHEST]" in line]
    assert len(products) >= 19  # in two layers 7 projections and 2 in the attention; the logits
    assert len(pinned) == (len(products) if exact else 0)
    return text, jax.tree.unflatten(exported.out_tree, exported.out_avals)


@every_config
@every_dtype
def test_the_forward_pass_is_lowered(name: str, dtype: Any, exact: bool) -> None:
    model, params = build(name, dtype)

    @jax.jit
    def masked(params: Any, ids: Any, mask: Any) -> Any:
        return model.apply({"params": params}, ids, mask)

    @jax.jit
    def last(params: Any, ids: Any, lengths: Any) -> Any:
        return model.apply({"params": params}, ids, seq_lengths=lengths, logits_to_keep=2)

    _, logits = lower(masked, params, IDS, IDS, exact=exact)
    assert _kind(logits) == ((2, 5, 23), dtype)
    _, logits = lower(last, params, IDS, LENGTHS, exact=exact)
    assert _kind(logits) == ((2, 2, 23), dtype)


@every_config
@every_dtype
@pytest.mark.parametrize("columns", [1, 64], ids=["a step", "a prompt"])
def test_generation_is_lowered(name: str, dtype: Any, exact: bool, columns: int) -> None:
    model, params = build(name, dtype)
    past = jax.eval_shape(lambda: diy_jax.init_cache(model.config, 2, 64, dtype))
    ids = jax.ShapeDtypeStruct((2, columns), np.int32)
    text, (tokens, new) = lower(compiled_step, model, params, ids, LENGTHS, past, exact=exact)
    assert tokens.shape == (2,)
    assert jax.tree.map(_kind, new) == jax.tree.map(_kind, past)
    donated = re.findall(r"tf\.aliasing_output|jax\.buffer_donor", text)
    assert len(donated) == len(jax.tree.leaves(past))


@every_dtype
def test_a_gradient_with_dropout_is_lowered(dtype: Any, exact: bool) -> None:
    config = dataclasses.replace(CONFIGS["gqa"], attention_dropout=0.5, residual_dropout=0.5)
    params = jax.eval_shape(lambda: diy_jax.init_params(config, dtype=dtype))
    model = diy_jax.DIYForCausalLM(config, dtype=dtype, param_dtype=dtype)

    @jax.jit
    def gradient(params: Any, ids: Any, key: Any, step: Any) -> Any:
        def loss(params: Any) -> Any:
            folded = random.fold_in(key, step)
            logits = model.apply({"params": params}, ids, segment_ids=ids, dropout_key=folded)
            return jnp.square(logits.astype(jnp.float32)).sum()

        return jax.grad(loss)(params)

    key = jax.ShapeDtypeStruct((2,), np.uint32)
    step = jax.ShapeDtypeStruct((), np.uint32)
    _, gradients = lower(gradient, params, IDS, key, step, exact=exact)
    assert jax.tree.map(_kind, gradients) == jax.tree.map(_kind, params)


@every_config
@every_dtype
def test_a_train_step_is_lowered(name: str, dtype: Any, exact: bool) -> None:
    model, params = build(name, dtype)
    optimizer = optax.adamw(1e-3)

    @jax.jit
    def step(params: Any, state: Any, ids: Any, mask: Any, segments: Any) -> Any:
        def mean_loss(params: Any) -> Any:
            logits = model.apply({"params": params}, ids, mask, segment_ids=segments)
            losses = optax.softmax_cross_entropy_with_integer_labels(
                logits[:, :-1].astype(jnp.float32), ids[:, 1:], where=mask[:, 1:] == 1
            )
            return losses.sum() / mask[:, 1:].sum()

        loss, gradients = jax.value_and_grad(mean_loss)(params)
        updates, state = optimizer.update(gradients, state, params)
        return loss, optax.apply_updates(params, updates), state

    state = jax.eval_shape(optimizer.init, params)
    _, (loss, *new) = lower(step, params, state, IDS, IDS, IDS, exact=exact)
    assert _kind(loss) == ((), jnp.float32)
    assert jax.tree.map(_kind, new) == jax.tree.map(_kind, [params, state])


def _kind(x: Any) -> tuple[Any, Any]:
    return x.shape, x.dtype
