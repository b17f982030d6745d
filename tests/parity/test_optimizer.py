"""AdamW of both twins: the same parameters after thirty steps, and the same that decay."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

import diy_jax
import diy_jax.optimizer
import diy_torch.optimizer
from diy_core.mapping import flatten, tensors, unflatten
from diy_core.training.config import OptimizerConfig
from parity.environment import Device, exact
from parity.random_models import small_configs
from tests.oracles import CONFIGS, random_weights
from tests.torch_twin.build import build
from tests.training_oracles import random_gradients


@pytest.mark.parametrize("name", ["biases", "untied"])
def test_both_give_the_same_parameters_after_thirty_steps(name: str, device: Device) -> None:
    config = CONFIGS[name]
    options = OptimizerConfig(beta2=0.99, weight_decay=0.3, decay_embeddings=name == "untied")
    first = random_weights(config)
    table = tensors(config)
    with exact(device):
        model = build(config).to(device.torch)
        named = dict(model.named_parameters())
        adamw = diy_torch.optimizer.build_optimizer(model, options)
        optimizer = diy_jax.optimizer.build_optimizer(diy_jax.DIYForCausalLM(config), options)

        @jax.jit
        def step(params: Any, state: Any, gradients: Any, rate: Any) -> Any:
            clipped, norm = diy_jax.optimizer.clip_by_global_norm(gradients, options.clip_norm)
            updates, state = optimizer.update(clipped, state, params, learning_rate=rate)
            return optax.apply_updates(params, updates), state, norm

        def on_device(arrays: Any) -> Any:
            flax = unflatten({t.flax: jnp.asarray(t.to_flax(arrays[t.hf])) for t in table})
            return jax.device_put(flax, device.jax)

        params = on_device(first)
        state = optimizer.init(params)
        for number, drawn in enumerate(random_gradients(first, 30)):
            rate = 1e-2 / (number + 1)
            for t in table:
                named[t.torch].grad = torch.from_numpy(drawn[t.hf].copy()).to(device.torch)
            norm = diy_torch.optimizer.clip_by_global_norm(
                [p.grad for p in named.values()], options.clip_norm
            )
            for group in adamw.param_groups:
                group["lr"] = rate
            adamw.step()
            params, state, other = step(params, state, on_device(drawn), jnp.float64(rate))
            assert norm.item() == pytest.approx(float(other), rel=1e-14)
        flat = flatten(params)
        for t in table:
            one, other = named[t.torch].detach().cpu().numpy(), np.asarray(flat[t.flax])
            np.testing.assert_allclose(one, t.to_flax.inverse(other), rtol=0, atol=1e-13)


@pytest.mark.parametrize("decay_embeddings", [False, True])
def test_the_same_parameters_decay(decay_embeddings: bool) -> None:
    options = OptimizerConfig(decay_embeddings=decay_embeddings)
    for config in small_configs().values():
        for t in tensors(config):
            one, other = (twin.optimizer.decays(t, options) for twin in (diy_torch, diy_jax))
            assert one is other
