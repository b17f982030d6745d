"""AdamW and clipping of both twins over the same gradients, and their states exchanged."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from numpy.typing import NDArray

import diy_jax
import diy_jax.optimizer
import diy_torch
import diy_torch.optimizer
from diy_core.config import DIYConfig
from diy_core.mapping import flatten, tensors, unflatten
from diy_core.training.config import OptimizerConfig
from diy_torch.tensors import assign_weights, to_numpy, to_tensor
from parity.convert.optimizer_state import optimizer_state_to_optax, optimizer_state_to_torch
from parity.environment import Device

Tensors = dict[str, NDArray[Any]]


# Chosen so that training is stable enough to be compared in float32:
#
# - Powers of two and their complements, because torch rounds 1 - learning_rate * weight_decay to
#   float32 before it multiplies. With 1e-3 and 0.1 that shrinks all weights by 1.7e-8 too much or
#   too little at each step, which was ten times the error of everything else.
# - An eps well above the rounding of a gradient. With 1e-8 an element whose gradient is nearly zero
#   moves by a full step in a direction that rounding decides: single runs were off by 2e-6, with
#   8e-6 none by more than 4e-8.
RECIPE = OptimizerConfig(
    learning_rate=2.0**-10,
    beta1=1 - 2.0**-3,
    beta2=1 - 2.0**-5,
    eps=2.0**-17,
    weight_decay=2.0**-3,
    decay_embeddings=True,
    clip_norm=1.0,
    schedule="constant",
    final_learning_rate=1.0,
)


class _Both:
    """The same parameters under the optimizers of both twins, which get the same gradients."""

    def __init__(
        self, first: Tensors, config: DIYConfig, recipe: OptimizerConfig, device: Device
    ) -> None:
        self.config, self.recipe, self.device = config, recipe, device
        with torch.device("meta"):
            model = diy_torch.DIYForCausalLM(config)
        weights = ((t.torch, first[t.hf].copy()) for t in tensors(config))  # they are changed
        assign_weights(model, weights, None, device.torch, tied=config.tie_word_embeddings)
        self.parameters = dict(model.named_parameters())
        self.torch = diy_torch.optimizer.build_optimizer(model, recipe)
        flax = {t.flax: jnp.asarray(t.to_flax(first[t.hf])) for t in tensors(config)}
        self.params = jax.device_put(unflatten(flax), device.jax)
        self.flax = diy_jax.optimizer.build_optimizer(diy_jax.DIYForCausalLM(config), recipe)
        self.state = self.flax.init(self.params)

    def step(self, gradients: Tensors) -> None:
        given = []
        for t in tensors(self.config):
            grad = to_tensor(gradients[t.hf].copy()).to(self.device.torch)  # clipped in place
            self.parameters[t.torch].grad = grad
            given.append(grad)
        diy_torch.optimizer.clip_by_global_norm(given, self.recipe.clip_norm)
        self.torch.step()
        flax = unflatten({t.flax: t.to_flax(gradients[t.hf]) for t in tensors(self.config)})
        rate = np.float64(self.recipe.learning_rate)
        self.params, self.state = self._update(flax, self.state, self.params, rate)

    @functools.partial(jax.jit, static_argnums=0)
    def _update(self, gradients: Any, state: Any, params: Any, rate: Any) -> tuple[Any, Any]:
        clipped, _ = diy_jax.optimizer.clip_by_global_norm(gradients, self.recipe.clip_norm)
        updates, state = self.flax.update(clipped, state, params, learning_rate=rate)
        return optax.apply_updates(params, updates), state

    def exchange(self) -> None:
        """Each optimizer goes on with the state of the other."""
        state = self.torch.state_dict()
        for_torch = optimizer_state_to_torch(self.state, state, self.config)
        self.state = optimizer_state_to_optax(state, self.state, self.config)
        self.torch.load_state_dict(for_torch)

    def results(self) -> tuple[Tensors, Tensors]:
        """Parameters and both moments of both optimizers, by name, in the torch layout."""
        one, other = {}, {}
        moments = {"exp_avg": "mu", "exp_avg_sq": "nu"}
        of_optax = {key: flatten(optax.tree.get(self.state, key)) for key in moments.values()}
        flax = flatten(self.params)
        for t in tensors(self.config):
            parameter = self.parameters[t.torch]
            one[t.hf] = to_numpy(parameter.detach())
            other[t.hf] = t.to_flax.inverse(np.asarray(flax[t.flax]))
            for key, field in moments.items():
                name = f"{key} of {t.hf}"
                one[name] = to_numpy(self.torch.state[parameter][key])
                other[name] = t.to_flax.inverse(np.asarray(of_optax[field][t.flax]))
        return one, other


def run_optimizers(
    first: Tensors,
    config: DIYConfig,
    recipe: OptimizerConfig,
    steps: int,
    seed: int,
    device: Device,
) -> tuple[Tensors, Tensors]:
    """Both optimizers over the same gradients, exchanging their states half way.

    Args:
        first: parameters by Hugging Face name, in the torch layout.
        config: the model's.
        recipe: of the optimizers.
        steps: in all.
        seed: of the gradients, see `gradients`.
        device: where.

    Returns:
        Parameters and moments in the end, of torch and of optax.
    """
    both = _Both(first, config, recipe, device)
    for step, found in enumerate(gradients(first, steps, seed)):
        if step == steps // 2:
            both.exchange()
        both.step(found)
    return both.results()


def gradients(first: Tensors, steps: int, seed: int) -> Iterator[Tensors]:
    """Random gradients like `first`, their common norm in turn above and below 1.

    So that they are clipped at every other step.
    """
    for step in range(steps):
        generator = np.random.default_rng([seed, 2, step])
        drawn = {
            name: generator.standard_normal(array.shape).astype(array.dtype, copy=False)
            for name, array in first.items()
        }
        norm = float(np.sqrt(sum(array.size for array in first.values())))
        for array in drawn.values():
            array *= (10.0 if step % 2 else 0.1) / norm
        yield drawn
