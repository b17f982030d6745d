"""Dropout in both twins: the same elements, the same function, the same gradients."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.utils.checkpoint import checkpoint

import diy_jax.random
import diy_torch.random
from diy_core.config import DIYConfig
from diy_core.mapping import flatten, tensors
from parity.check.measures import relative_l2
from tests.jax_twin.build import build as build_flax
from tests.jax_twin.build import run as run_flax
from tests.oracles import CONFIGS, Array, NumpyModel, random_ids, random_weights, rotate, softmax
from tests.torch_twin.build import build as build_torch

RATES: dict[str, float] = {"attention_dropout": 0.3, "residual_dropout": 0.2}
PULL = np.random.default_rng(1).normal(size=(2, 6, 23))
SEGMENTS = np.array([[1, 1, 1, 2, 2, 2], [1, 1, 1, 1, 0, 0]])


@pytest.fixture(autouse=True)
def _x64() -> Iterator[None]:
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        yield


def config_of(name: str, **rates: float) -> DIYConfig:
    return dataclasses.replace(CONFIGS[name], **(rates or RATES))


def of_torch(config: DIYConfig, seed: int | None, remat: bool = False) -> tuple[Array, Any]:
    """Logits, and gradients of their product with `PULL` by name."""
    model = build_torch(config)
    if remat:
        for layer in model.model.layers:
            plain = layer.forward
            layer.forward = lambda *args, plain=plain: checkpoint(plain, *args, use_reentrant=False)
    key = None if seed is None else diy_torch.random.key(seed)
    logits = model(random_ids(config, 2, 6), segment_ids=SEGMENTS, dropout_key=key)
    (logits * torch.from_numpy(PULL)).sum().backward()
    gradients = {name: p.grad.numpy() for name, p in model.named_parameters()}
    return logits.detach().numpy(), gradients


def of_flax(config: DIYConfig, seed: int | None, remat: bool = False) -> tuple[Array, Any]:
    built, ids = build_flax(config), random_ids(config, 2, 6)

    def loss(params: Any, key: Any) -> Any:
        extras = {"segment_ids": SEGMENTS, "dropout_key": key}
        logits = built.model.apply({"params": params}, ids, **extras)
        return (logits * PULL).sum(), logits

    key = None if seed is None else diy_jax.random.key(seed)
    call = jax.jit(jax.grad(jax.checkpoint(loss) if remat else loss, has_aux=True))
    gradients, logits = call(built.params, key)
    return np.array(logits), gradients


def agree(config: DIYConfig, one: tuple[Array, Any], other: tuple[Array, Any]) -> None:
    assert relative_l2(other[0], one[0]) <= 1e-12
    leaves = flatten(other[1])
    for tensor in tensors(config):
        leaf = np.array(leaves[tensor.flax])
        leaf = leaf.T if tensor.flax[-1] == "kernel" else leaf
        assert relative_l2(leaf, one[1][tensor.torch]) <= 1e-12, tensor.torch


@dataclasses.dataclass
class DroppedInNumpy(NumpyModel):
    """One row of a batch; what is kept is said by `jax.random` and plain sums."""

    row: int
    key: Any

    def factor(self, prefix: str, site: int, rate: float, *shape: int) -> NDArray[Any]:
        layer = int(prefix.split(".")[2])
        key = jax.random.fold_in(jax.random.fold_in(self.key, layer), site)
        kept = np.array(jax.random.uniform(key, (2, *shape), jnp.float32)) >= np.float32(rate)
        return kept[self.row] / (1 - rate)

    def attention(self, prefix: str, x: Array) -> Array:
        config, (steps, width) = self.config, x.shape
        heads, size, positions = config.num_attention_heads, config.head_size, np.arange(steps)
        rate = config.attention_dropout
        factor = self.factor(prefix, 0, rate, heads, steps, steps)
        query, key, value = (
            self.linear(f"{prefix}.{name}_proj", x).reshape(steps, -1, size) for name in "qkv"
        )
        mixed = np.zeros((steps, heads, size))
        for head in range(heads):
            group = head // (heads // config.kv_heads)
            q = rotate(query[:, head], positions, config)
            k = rotate(key[:, group], positions, config)
            for t in range(steps):
                weights = softmax(k[: t + 1] @ q[t] / np.sqrt(size)) * factor[head, t, : t + 1]
                mixed[t, head] = weights @ value[: t + 1, group]
        out = self.linear(f"{prefix}.o_proj", mixed.reshape(steps, -1))
        return out * self.factor(prefix, 1, config.residual_dropout, steps, width)

    def feedforward(self, prefix: str, x: Array) -> Array:
        rate = self.config.residual_dropout
        return super().feedforward(prefix, x) * self.factor(prefix, 2, rate, *x.shape)


def test_it_is_the_model_in_plain_numpy_with_factors_of_jax_s_numbers() -> None:
    config = config_of("gqa")
    ids, weights = random_ids(config, 2, 6), random_weights(config)
    root = jax.random.key(3, impl="threefry2x32")
    expected = np.stack(
        [DroppedInNumpy(config, weights, row, root).logits(ids[row]) for row in range(2)]
    )
    with torch.no_grad():
        of_both = [build_torch(config)(ids, dropout_key=diy_torch.random.key(3)).numpy()]
    of_both.append(run_flax(build_flax(config), ids, dropout_key=root))
    for logits in of_both:
        assert relative_l2(logits, expected) <= 1e-12


@pytest.mark.parametrize("name", ["untied", "biases"])
def test_logits_and_gradients_are_the_same(name: str) -> None:
    config = config_of(name)
    agree(config, of_torch(config, 3), of_flax(config, 3))


@pytest.mark.parametrize("rate", RATES)
def test_each_rate_alone_is_the_same_too(rate: str) -> None:
    config = config_of("gqa", **{rate: 0.5})
    agree(config, of_torch(config, 3), of_flax(config, 3))


def test_what_is_computed_again_drops_the_same() -> None:
    config = config_of("gqa")
    plain, again = of_torch(config, 3), of_torch(config, 3, remat=True)
    assert (plain[0] == again[0]).all()
    for name, gradient in plain[1].items():
        assert (gradient == again[1][name]).all()
    agree(config, plain, of_flax(config, 3, remat=True))


def test_without_a_key_rates_change_nothing() -> None:
    config, none = config_of("gqa"), CONFIGS["gqa"]
    one, other = of_torch(config, None), of_torch(none, None)
    assert (one[0] == other[0]).all()
    assert (of_torch(none, 3)[0] == other[0]).all()  # nor a key without rates
    for name, gradient in one[1].items():
        assert (gradient == other[1][name]).all()
    model, ids = build_flax(none), random_ids(none, 2, 6)
    keyed = run_flax(model, ids, dropout_key=diy_jax.random.key(3))
    assert (keyed == run_flax(model, ids)).all()


def test_without_a_key_rates_compile_nothing_else() -> None:
    def program(config: DIYConfig) -> str:
        built = build_flax(config)
        return (
            jax.jit(lambda p, ids: built.model.apply({"params": p}, ids))
            .lower(built.params, jnp.asarray(random_ids(config, 2, 6)))
            .as_text()
        )

    assert program(config_of("gqa")) == program(CONFIGS["gqa"])


def test_another_key_drops_otherwise_and_the_same_key_the_same() -> None:
    config = config_of("gqa")
    model, ids = build_torch(config), random_ids(config, 2, 6)
    keys = [*diy_torch.random.split(diy_torch.random.key(0), 4), diy_torch.random.key(9)]
    with torch.no_grad():
        logits = [model(ids, dropout_key=key) for key in keys]
        assert torch.equal(model(ids, dropout_key=keys[2]), logits[2])
    for i in range(len(keys)):
        for j in range(i):
            assert relative_l2(logits[i].numpy(), logits[j].numpy()) > 0.1
