"""AdamW and clipping against their formulas in numpy, and what decays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import diy_jax
from diy_core.mapping import flatten, tensors, unflatten
from diy_core.training.config import OptimizerConfig
from diy_jax.optimizer import build_optimizer, can_be_squared, clip_by_global_norm
from tests.clipping_tests import ClippingTests, gradients_like
from tests.oracles import CONFIGS, random_weights
from tests.training_oracles import Array, Tensors, adamw, random_gradients


def as_params(name: str, arrays: Tensors, dtype: Any = jnp.float64) -> Any:
    table = tensors(CONFIGS[name])
    return unflatten({t.flax: jnp.asarray(t.to_flax(arrays[t.hf]), dtype) for t in table})


def decayed_names(name: str, options: OptimizerConfig) -> set[str]:
    """What moves where all gradients are 0, as Hugging Face names."""
    config = CONFIGS[name]
    optimizer = build_optimizer(diy_jax.DIYForCausalLM(config), options)
    params = as_params(name, random_weights(config), jnp.float32)
    nothing = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(
        nothing, optimizer.init(params), params, learning_rate=jnp.float32(1)
    )
    flat = flatten(updates)
    return {t.hf for t in tensors(config) if flat[t.flax].any()}


@pytest.mark.parametrize("name", ["biases", "untied"])
def test_matrices_decay_and_vectors_and_embeddings_do_not(name: str) -> None:
    found = decayed_names(name, OptimizerConfig())
    projections = [f"self_attn.{letter}_proj" for letter in "qkvo"]
    projections += [f"mlp.{part}_proj" for part in ("gate", "up", "down")]
    assert found == {f"model.layers.{i}.{p}.weight" for i in range(2) for p in projections}
    more = decayed_names(name, OptimizerConfig(decay_embeddings=True)) - found
    head = {"lm_head.weight"} if name == "untied" else set()  # a tied head is the embedding
    assert more == {"model.embed_tokens.weight"} | head


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "options",
    [
        OptimizerConfig(),
        OptimizerConfig(
            beta1=0.8, beta2=0.999, eps=1e-5, weight_decay=0.3, decay_embeddings=True, clip_norm=0.5
        ),
        OptimizerConfig(clip_norm=0.0, weight_decay=0.0),
    ],
    ids=["defaults", "another", "neither clipped nor decayed"],
)
def test_thirty_steps_are_the_formula(options: OptimizerConfig) -> None:
    config = CONFIGS["untied"]
    first = random_weights(config)
    gradients, rates = random_gradients(first, 30), [1e-2 * (step + 1) / 30 for step in range(30)]
    optimizer = build_optimizer(diy_jax.DIYForCausalLM(config), options)
    params = as_params("untied", first)
    state = optimizer.init(params)

    @jax.jit
    def step(params: Any, state: Any, gradients: Any, rate: Any) -> Any:
        clipped, norm = clip_by_global_norm(gradients, options.clip_norm)
        updates, state = optimizer.update(clipped, state, params, learning_rate=rate)
        return optax.apply_updates(params, updates), state, norm

    for drawn, rate in zip(gradients, rates, strict=True):
        params, state, norm = step(params, state, as_params("untied", drawn), jnp.float64(rate))
        assert float(norm) == pytest.approx(_norm(drawn), rel=1e-14)
    expected = adamw(first, gradients, rates, options, decayed_names("untied", options))
    flat = flatten(params)
    for t in tensors(config):
        found = t.to_flax.inverse(np.asarray(flat[t.flax]))
        np.testing.assert_allclose(found, expected[t.hf], rtol=0, atol=1e-13)


def _norm(drawn: dict[str, Array]) -> float:
    return float(np.sqrt(sum((g**2).sum() for g in drawn.values())))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_clipping_is_that_of_torch(scale: float) -> None:
    arrays = [np.random.default_rng(i).normal(size=(5, 2)) * scale for i in range(3)]
    found, norm = clip_by_global_norm([jnp.asarray(array) for array in arrays], 0.5)
    wanted = np.sqrt(sum((array**2).sum() for array in arrays))
    assert float(norm) == pytest.approx(wanted, rel=1e-15)
    for one, array in zip(found, arrays, strict=True):
        expected = array * min(1.0, 0.5 / (wanted + 1e-6))
        np.testing.assert_allclose(one, expected, rtol=1e-15)


@pytest.mark.parametrize("mean", [0.0, 1e-3])
def test_the_norm_of_large_gradients_is_that_of_float64(mean: float) -> None:
    arrays = [
        np.random.default_rng(i).normal(mean, 1e-3, size).astype(np.float32)
        for i, size in enumerate([(4096, 512), (512, 4096), (512,)])
    ]
    _, norm = clip_by_global_norm([jnp.asarray(array) for array in arrays], 0.0)
    wanted = np.sqrt(sum((array.astype(np.float64) ** 2).sum() for array in arrays))
    assert float(norm) == pytest.approx(wanted, rel=8 * 2.0**-23)


_compiled = jax.jit(clip_by_global_norm, static_argnums=1)


@pytest.mark.usefixtures("x64")
class TestClipping(ClippingTests):
    def clip(self, gradients: Sequence[Array], max_norm: float) -> tuple[list[Array], Any]:
        found, norm = _compiled(list(gradients), max_norm)
        return [np.asarray(array) for array in found], np.asarray(norm)

    def can_be_squared(self, norm: Any, max_norm: float) -> bool:
        return bool(can_be_squared(jnp.asarray(norm), max_norm))


class TestClippingWithoutJit(TestClipping):
    def clip(self, gradients: Sequence[Array], max_norm: float) -> tuple[list[Array], Any]:
        with jax.disable_jit():
            found, norm = clip_by_global_norm([jnp.asarray(g) for g in gradients], max_norm)
        return [np.asarray(array) for array in found], np.asarray(norm)


def _plainly(gradients: Any, max_norm: float) -> Any:
    """With the norm of optax, right or wrong."""
    norm = optax.tree.norm(gradients)
    factor = jnp.minimum(1.0, max_norm / (norm + 1e-6))
    return jax.tree.map(lambda gradient: gradient * factor, gradients), norm


@pytest.mark.parametrize("size", [1e15, 1e3, 1.0, 1e-3, 1e-8])
def test_ordinary_gradients_keep_their_bits(size: float) -> None:
    given = gradients_like(size, size)
    found = _compiled(given, 1.0)
    wanted = jax.jit(_plainly, static_argnums=1)(given, 1.0)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_array_equal(one, other)


def test_ordinary_gradients_are_read_as_often_as_ever() -> None:
    """The second sum of squares is in a branch of its own; beside it a product for each number."""
    given = [np.zeros((512, 1024), np.float32)] * 2
    count = 2 * 512 * 1024

    def flops(function: Any) -> tuple[float, str, int]:
        program = jax.jit(function).lower(given).compile()
        memory = program.memory_analysis().temp_size_in_bytes
        return program.cost_analysis()["flops"], program.as_text(), memory

    ours, text, memory = flops(lambda g: clip_by_global_norm(g, 1.0))
    plain, _, _ = flops(lambda g: _plainly(g, 1.0))
    again, _, _ = flops(lambda g: optax.tree.norm(jax.tree.map(lambda x: x * g[0][0, 0], g)))
    assert text.count(" conditional(") == 1
    assert again == pytest.approx(3 * count, rel=1e-3)
    assert ours - again - plain == pytest.approx(count, rel=1e-3)
    assert memory < 4096


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_moments_have_the_dtype_of_the_parameters(dtype: str) -> None:
    model = diy_jax.DIYForCausalLM(CONFIGS["gqa"])
    optimizer = build_optimizer(model, OptimizerConfig())
    params = as_params("gqa", random_weights(CONFIGS["gqa"]), jnp.dtype(dtype))
    updates, state = optimizer.update(
        params, optimizer.init(params), params, learning_rate=jnp.float64(1e-3)
    )
    moments = [optax.tree.get(state, name) for name in ("mu", "nu")]
    for leaf in jax.tree.leaves((updates, moments)):
        assert leaf.dtype == dtype
