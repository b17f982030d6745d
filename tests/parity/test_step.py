"""Both twins train alike: the same losses, norms, counts and parameters, with everything on."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import diy_jax
import diy_torch
from diy_core.config import DIYConfig
from diy_core.mapping import flatten, tensors, unflatten
from diy_core.training.config import TrainConfig
from diy_jax.optimizer import build_optimizer as build_optax
from diy_jax.step import build_step as build_jax_step
from diy_torch.optimizer import build_optimizer
from diy_torch.step import build_step
from diy_torch.tensors import assign_weights, to_numpy
from parity.environment import Device, exact
from parity.random_models import random_weights, small_configs
from tests.training_oracles import Array, random_batch, train_config

STEPS = 20


@dataclasses.dataclass
class Run:
    """Loss, norm, tokens and skipped of each step, and the parameters by Hugging Face name."""

    results: list[tuple[float, float, int, bool]]
    parameters: dict[str, Array]


def batches(config: DIYConfig, passes: int) -> list[dict[str, Array]]:
    return [random_batch(config.vocab_size, number, passes) for number in range(STEPS)]


def rate(number: int) -> float:
    """A warmup."""
    return 1e-3 * min(1.0, (number + 1) / 5)


def summary(result: Any) -> tuple[float, float, int, bool]:
    return float(result.loss), float(result.grad_norm), int(result.tokens), bool(result.skipped)


def weights(config: DIYConfig) -> dict[str, Array]:
    return {t.hf: random_weights(t, "fan-in", 0) for t in tensors(config)}


def run_torch(config: DIYConfig, options: TrainConfig, device: Device) -> Run:
    model = diy_torch.DIYForCausalLM(config)
    dtype = torch.float64 if options.dtype == "float64" else torch.float32
    first = weights(config)
    named = ((t.torch, first[t.hf]) for t in tensors(config))
    assign_weights(model, named, dtype, device.torch, tied=config.tie_word_embeddings)
    step = build_step(model, build_optimizer(model, options.optimizer), options)
    results = [
        summary(step(batch, rate(number), number, 7))
        for number, batch in enumerate(batches(config, options.accumulation_steps))
    ]
    named = dict(model.named_parameters())
    return Run(results, {t.hf: to_numpy(named[t.torch].detach()) for t in tensors(config)})


def run_jax(config: DIYConfig, options: TrainConfig, device: Device) -> Run:
    dtype, first = "float64" if options.dtype == "float64" else "float32", weights(config)
    flax = {t.flax: jnp.asarray(t.to_flax(first[t.hf]), dtype) for t in tensors(config)}
    params, model = jax.device_put(unflatten(flax), device.jax), diy_jax.DIYForCausalLM(config)
    optimizer = build_optax(model, options.optimizer)
    step, state = build_jax_step(model, optimizer, options), optimizer.init(params)
    results = []
    for number, batch in enumerate(batches(config, options.accumulation_steps)):
        params, state, result = step(params, state, batch, rate(number), number, 7)
        results.append(summary(result))
    flat = flatten(params)
    return Run(
        results, {t.hf: t.to_flax.inverse(np.asarray(flat[t.flax])) for t in tensors(config)}
    )


def distance(one: dict[str, Array], other: dict[str, Array]) -> float:
    """Relative L2 over all parameters."""
    squares = [((one[n] - other[n]) ** 2).sum() / (one[n] ** 2).sum() for n in one]
    return float(np.sqrt(max(squares)))


@pytest.mark.parametrize("name", ["gqa", "untied", "biases"])
def test_twenty_steps_in_float64_with_everything_on(name: str, device: Device) -> None:
    """Dropout, packing, passes, a z-loss, clipping, decay, warmup, remat."""
    config = dataclasses.replace(small_configs()[name], attention_dropout=0.1, residual_dropout=0.2)
    options = train_config(
        accumulation_steps=2,
        remat=True,
        loss={"z_loss": 1e-3},
        optimizer={"clip_norm": 0.5, "decay_embeddings": name == "untied"},
    )
    with exact(device):
        one, other = (run(config, options, device) for run in (run_torch, run_jax))
    losses = [[result[0] for result in run.results] for run in (one, other)]
    assert len(losses[0]) == STEPS
    assert len(set(losses[0])) == STEPS
    for first, second in zip(one.results, other.results, strict=True):
        assert first[:2] == pytest.approx(second[:2], rel=1e-11)
        assert first[2:] == second[2:]
    assert not any(skipped for *_, skipped in one.results)
    assert all(norm > 0.5 for _, norm, *_ in one.results)  # so all of them were clipped
    assert distance(one.parameters, other.parameters) <= 1e-11
    assert distance(weights(config), one.parameters) > 1e-3  # they did move


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-5), ("bfloat16", 2e-2)])
def test_losses_lie_on_each_other_in_float32_and_bfloat16(
    dtype: str, bound: float, device: Device
) -> None:
    config = dataclasses.replace(small_configs()["gqa"], residual_dropout=0.1)
    options = train_config(dtype=dtype, accumulation_steps=2)
    with exact(device):
        one, other = (run(config, options, device) for run in (run_torch, run_jax))
    losses = [[result[0] for result in run.results] for run in (one, other)]
    assert losses[0] == pytest.approx(losses[1], rel=bound)


def test_other_batches_are_refused_with_the_same_words(device: Device) -> None:
    config, options, words = small_configs()["gqa"], train_config(), []
    changes: list[tuple[str, Any]] = [
        ("input_ids", 131),
        ("labels", -1),
        ("labels", 131),
        ("segment_ids", "a float"),
        ("segment_ids", "another shape"),
    ]
    model, twin = (
        diy_torch.DIYForCausalLM(config, dtype=torch.float64),
        diy_jax.DIYForCausalLM(config),
    )
    optimizer = build_optax(twin, options.optimizer)
    step = build_step(model, build_optimizer(model, options.optimizer), options)
    jax_step = build_jax_step(twin, optimizer, options)
    for name, value in changes:
        batch = random_batch(config.vocab_size)
        if value == "a float":
            batch[name] = batch[name].astype(np.float32)
        elif value == "another shape":
            batch[name] = batch[name][:, :2]
        else:
            batch[name][0, 1, 2] = value
        for run in (step, lambda *given: jax_step(None, None, *given)):
            with pytest.raises(ValueError) as caught:
                run(batch, 1e-3, 0, 0)
            words.append(str(caught.value))
    assert words[::2] == words[1::2]
    assert len(set(words)) == len(changes)
