"""AdamW and clipping in both frameworks, made equal, and the check that they are.

What differs by default is said here once: optax decays 1e-4 and torch 1e-2; torch clips by
min(1, c / (norm + 1e-6)) and optax by c / norm.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from numpy.typing import NDArray

from diy_core.config import DIYConfig
from diy_core.mapping import Tensor, flatten, tensors, unflatten
from diy_torch.tensors import to_numpy, to_tensor
from parity.convert.optimizer_state import optimizer_state_to_optax, optimizer_state_to_torch
from parity.environment import Device

Tensors = dict[str, NDArray[Any]]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Hyperparameters of AdamW, and the norm to which gradients are clipped.

    Chosen so that training is stable enough to be compared in float32:

    - Powers of two and their complements, because torch rounds 1 - learning_rate * weight_decay to
      float32 before it multiplies. With 1e-3 and 0.1 that shrinks all weights by 1.7e-8 too much or
      too little at each step, which was ten times the error of everything else.
    - An eps well above the rounding of a gradient. With 1e-8 an element whose gradient is nearly
      zero moves by a full step in a direction that rounding decides: single runs were off by 2e-6,
      with 8e-6 none by more than 4e-8.
    """

    learning_rate: float = 2.0**-10
    beta1: float = 1 - 2.0**-3
    beta2: float = 1 - 2.0**-5
    eps: float = 2.0**-17
    weight_decay: float = 2.0**-3
    max_norm: float = 1.0


def decays(tensor: Tensor) -> bool:
    """Matrices decay; norm scales and biases do not."""
    return tensor.kind in ("embedding", "projection")


def torch_adamw(
    parameters: Mapping[str, torch.nn.Parameter], config: DIYConfig, recipe: Recipe
) -> torch.optim.AdamW:
    """`torch.optim.AdamW` over parameters by torch name, in two groups: decayed and not."""
    groups = [
        {
            "params": [
                (t.torch, parameters[t.torch]) for t in tensors(config) if decays(t) is flag
            ],
            "weight_decay": recipe.weight_decay if flag else 0.0,
        }
        for flag in (True, False)
    ]
    betas = recipe.beta1, recipe.beta2
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=betas, eps=recipe.eps)


@functools.lru_cache(maxsize=8)
def optax_adamw(config: DIYConfig, recipe: Recipe) -> optax.GradientTransformation:
    """Clipping and AdamW as a chain of optax's, over Flax params."""
    return optax.chain(
        clip_by_global_norm(recipe.max_norm),
        optax.adamw(
            recipe.learning_rate,
            b1=recipe.beta1,
            b2=recipe.beta2,
            eps=recipe.eps,
            weight_decay=recipe.weight_decay,
            mask=decay_mask(config),
        ),
    )


def decay_mask(config: DIYConfig) -> dict[str, Any]:
    """True for the params that decay, in the shape of the Flax params."""
    return unflatten({tensor.flax: decays(tensor) for tensor in tensors(config)})


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """Scale all gradients by min(1, max_norm / (norm + 1e-6)), as `torch.nn.utils` does."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        factor = jnp.minimum(1.0, max_norm / (optax.tree.norm(updates) + 1e-6))
        return jax.tree.map(lambda update: update * factor, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


class _Both:
    """The same parameters under both optimizers; `step` gives both the same gradients."""

    def __init__(self, first: Tensors, config: DIYConfig, recipe: Recipe, device: Device) -> None:
        self.config, self.recipe, self.device = config, recipe, device
        self.parameters = {
            t.torch: torch.nn.Parameter(to_tensor(first[t.hf].copy()).to(device.torch))
            for t in tensors(config)
        }
        self.torch = torch_adamw(self.parameters, config, recipe)
        flax = {t.flax: jnp.asarray(t.to_flax(first[t.hf])) for t in tensors(config)}
        self.params = jax.device_put(unflatten(flax), device.jax)
        self.optax = optax_adamw(config, recipe)
        self.state = self.optax.init(self.params)

    def step(self, gradients: Tensors) -> None:
        for t in tensors(self.config):
            grad = to_tensor(gradients[t.hf].copy())  # clipped in place
            self.parameters[t.torch].grad = grad.to(self.device.torch)
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.recipe.max_norm)
        self.torch.step()
        flax = unflatten({t.flax: t.to_flax(gradients[t.hf]) for t in tensors(self.config)})
        updates, self.state = self.optax.update(flax, self.state, self.params)
        self.params = optax.apply_updates(self.params, updates)

    def exchange(self) -> None:
        """Each optimizer goes on with the state of the other."""
        mask = decay_mask(self.config)
        template = torch_adamw(self.parameters, self.config, self.recipe).state_dict()
        for_torch = optimizer_state_to_torch(self.state, template, self.config, decay_mask=mask)
        self.state = optimizer_state_to_optax(
            self.torch.state_dict(), self.state, self.config, decay_mask=mask
        )
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
    first: Tensors, config: DIYConfig, recipe: Recipe, steps: int, seed: int, device: Device
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
