"""One optimizer step in JAX."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import diy_jax
from diy_core.config import DIYConfig
from diy_core.mapping import flatten, tensors, unflatten
from diy_core.training.config import TrainConfig, as_dict
from diy_jax.optimizer import build_optimizer
from diy_jax.step import StepResult, build_step
from tests.oracles import CONFIGS, Array, random_weights
from tests.step_tests import StepTests
from tests.training_oracles import random_batch, train_config

_STEPS: dict[tuple[DIYConfig, str], Any] = {}


def compiled(model: DIYConfig, config: TrainConfig, watch: Any = ()) -> Any:
    """The optimizer and the step, one for all tests that want the same."""
    key = model, json.dumps([as_dict(config), watch], sort_keys=True)
    if key not in _STEPS:
        twin = diy_jax.DIYForCausalLM(model)
        optimizer = build_optimizer(twin, config.optimizer)
        _STEPS[key] = optimizer, build_step(twin, optimizer, config, watch=watch)
    return _STEPS[key]


class Training:
    """Params with their optimizer state and step; learning rate 1e-2."""

    def __init__(
        self, model: DIYConfig, config: TrainConfig, weights: Any = None, watch: Any = ()
    ) -> None:
        self.config, dtype = model, "float64" if config.dtype == "float64" else "float32"
        weights = random_weights(model) if weights is None else weights
        self.params = unflatten(
            {t.flax: jnp.asarray(t.to_flax(weights[t.hf]), dtype) for t in tensors(model)}
        )
        self.optimizer, self.step = compiled(model, config, watch)
        self.state = self.optimizer.init(self.params)

    def run(self, batch: Any, number: int = 0, seed: int = 3) -> StepResult:
        self.params, self.state, result = self.step(
            self.params, self.state, batch, 1e-2, number, seed
        )
        return result

    def parameters(self) -> dict[str, Array]:
        return self.by_name(self.params)

    def moments(self, name: str) -> dict[str, Array]:
        return self.by_name(optax.tree.get(self.state, {"mean": "mu", "square": "nu"}[name]))

    def by_name(self, tree: Any) -> dict[str, Array]:
        flat = flatten(tree)
        return {t.hf: np.array(t.to_flax.inverse(flat[t.flax])) for t in tensors(self.config)}

    def set_first_norm(self, value: float) -> None:
        scale = self.params["model"]["norm"]["scale"]
        self.params["model"]["norm"]["scale"] = scale.at[0].set(value)


@pytest.mark.usefixtures("x64")
class TestStep(StepTests):
    training = Training


@pytest.fixture
def compilations() -> Iterator[list[str]]:
    """The functions that XLA compiled."""
    seen: list[str] = []

    def listen(event: str, seconds: float, **details: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(str(details.get("fun_name")))

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seen
    jax.monitoring.unregister_event_duration_listener(listen)


def test_it_is_compiled_once(compilations: list[str]) -> None:
    config = train_config(dtype="float32", accumulation_steps=2)
    model = diy_jax.DIYForCausalLM(CONFIGS["gqa"])
    optimizer = build_optimizer(model, config.optimizer)
    step = build_step(model, optimizer, config)
    params = diy_jax.init_params(CONFIGS["gqa"])
    state = optimizer.init(params)
    compilations.clear()
    for number, rate in enumerate((1.0, 0.5, np.float64(0.25), 0.1)):
        params, state, _ = step(params, state, random_batch(23, number, 2), rate, number, number)
        if number == 0:
            assert len(compilations) >= 1
            compilations.clear()
    assert compilations == []


def test_it_is_given_the_memory_of_its_arguments() -> None:
    training = Training(CONFIGS["gqa"], train_config(dtype="float32"))
    given = jax.tree.leaves((training.params, training.state))
    training.run(random_batch(23))
    assert all(leaf.is_deleted() for leaf in given if leaf.size)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((training.params, training.state)))


def products(remat: bool) -> int:
    """Matrix products of a step of eight layers, as XLA is given them."""
    model = dataclasses.replace(CONFIGS["gqa"], num_hidden_layers=8)
    training = Training(model, train_config(dtype="float32", remat=remat))

    def step(params: Any, state: Any, batch: Any) -> Any:
        return training.step(params, state, batch, 1e-2, 0, 0)

    lowered = jax.jit(step).lower(training.params, training.state, random_batch(23))
    return str(lowered.as_text()).count("stablehlo.dot_general")


def test_each_layer_is_computed_again() -> None:
    """On a CPU XLA sees through it and keeps what it has; on accelerators it does not."""
    again = products(remat=True) - products(remat=False)
    assert again == 8 * 8  # all nine products of a layer but the last, which no gradient needs
