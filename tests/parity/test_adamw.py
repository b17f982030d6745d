"""AdamW of both frameworks against the formula, written out in numpy."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from diy_core.config import DIYConfig
from diy_core.mapping import tensors
from parity.check.measures import relative_l2
from parity.check.optimizers import Recipe, clip_by_global_norm, gradients, run_optimizers
from parity.environment import Device, exact
from parity.random_models import random_weights
from tests.parity.numpy_adamw import updated

CONFIG = DIYConfig(
    vocab_size=11,
    hidden_size=8,
    intermediate_size=12,
    num_hidden_layers=1,
    num_attention_heads=2,
    attention_bias=True,
    tie_word_embeddings=False,
)
FIRST = {tensor.hf: random_weights(tensor, "fan-in", 0) for tensor in tensors(CONFIG)}


@pytest.mark.parametrize(
    "recipe", [Recipe(), Recipe(0.05, 0.9, 0.999, 1e-8, 0.3, 0.5)], ids=["ours", "another"]
)
def test_both_are_the_formula_over_an_exchange_of_states(recipe: Recipe, device: Device) -> None:
    with exact(device):
        found = run_optimizers(FIRST, CONFIG, recipe, 6, 0, device)
    expected = updated(FIRST, CONFIG, recipe, list(gradients(FIRST, 6, 0)))
    for side in found:
        assert side.keys() == expected.keys()
        assert max(relative_l2(side[name], expected[name]) for name in expected) <= 1e-13


def test_the_state_is_what_goes_on_after_the_exchange(device: Device) -> None:
    """Another way to say it: with nothing carried, three updates after three would be others."""
    with exact(device):
        whole = run_optimizers(FIRST, CONFIG, Recipe(), 6, 0, device)[0]
    last = list(gradients(FIRST, 6, 0))[3:]
    middle = updated(FIRST, CONFIG, Recipe(), list(gradients(FIRST, 3, 0)))
    fresh = updated({name: middle[name] for name in FIRST}, CONFIG, Recipe(), last)
    assert min(relative_l2(fresh[name], whole[name]) for name in FIRST) > 1e-6


def test_gradients_are_clipped_at_every_other_step() -> None:
    norms = [
        np.sqrt(sum((array**2).sum() for array in drawn.values()))
        for drawn in gradients(FIRST, 4, 0)
    ]
    assert [norm > Recipe().max_norm for norm in norms] == [False, True, False, True]


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_clipping_is_that_of_torch_and_not_of_optax(scale: float, device: Device) -> None:
    with exact(device):
        arrays = [np.random.default_rng(i).normal(size=5) * scale for i in range(3)]
        parameters = [torch.nn.Parameter(torch.zeros(5, dtype=torch.float64)) for _ in arrays]
        for parameter, array in zip(parameters, arrays, strict=True):
            parameter.grad = torch.from_numpy(array.copy())
        torch.nn.utils.clip_grad_norm_(parameters, 0.5)
        updates = [jnp.asarray(array) for array in arrays]
        clip, other = clip_by_global_norm(0.5), optax.clip_by_global_norm(0.5)
        found, _ = clip.update(updates, clip.init(updates))
        optaxs, _ = other.update(updates, other.init(updates))
    expected = [parameter.grad.numpy() for parameter in parameters if parameter.grad is not None]
    assert all(relative_l2(np.asarray(a), b) <= 1e-15 for a, b in zip(found, expected, strict=True))
    if scale >= 1:
        assert relative_l2(np.asarray(optaxs[0]), expected[0]) > 1e-10


def test_our_hyperparameters_are_exact_in_float32() -> None:
    recipe = Recipe()
    decay = 1 - recipe.learning_rate * recipe.weight_decay
    for value in (*dataclasses.astuple(recipe), 1 - recipe.beta1, 1 - recipe.beta2, decay):
        assert float(np.float32(value)) == value
