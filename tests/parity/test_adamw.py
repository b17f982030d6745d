"""AdamW of both frameworks against the formula, written out in numpy."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from diy_core.config import DIYConfig
from diy_core.mapping import tensors
from diy_core.training.config import OptimizerConfig
from parity.check.measures import relative_l2
from parity.check.optimizers import RECIPE, gradients, run_optimizers
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
    "recipe",
    [
        RECIPE,
        OptimizerConfig(
            learning_rate=0.05, beta2=0.999, weight_decay=0.3, decay_embeddings=True, clip_norm=0.5
        ),
    ],
    ids=["ours", "another"],
)
def test_both_are_the_formula_over_an_exchange_of_states(
    recipe: OptimizerConfig, device: Device
) -> None:
    with exact(device):
        found = run_optimizers(FIRST, CONFIG, recipe, 6, 0, device)
    expected = updated(FIRST, CONFIG, recipe, list(gradients(FIRST, 6, 0)))
    for side in found:
        assert side.keys() == expected.keys()
        assert max(relative_l2(side[name], expected[name]) for name in expected) <= 1e-13


def test_the_state_is_what_goes_on_after_the_exchange(device: Device) -> None:
    """Another way to say it: with nothing carried, three updates after three would be others."""
    with exact(device):
        whole = run_optimizers(FIRST, CONFIG, RECIPE, 6, 0, device)[0]
    last = list(gradients(FIRST, 6, 0))[3:]
    middle = updated(FIRST, CONFIG, RECIPE, list(gradients(FIRST, 3, 0)))
    fresh = updated({name: middle[name] for name in FIRST}, CONFIG, RECIPE, last)
    assert min(relative_l2(fresh[name], whole[name]) for name in FIRST) > 1e-6


def test_gradients_are_clipped_at_every_other_step() -> None:
    norms = [
        np.sqrt(sum((array**2).sum() for array in drawn.values()))
        for drawn in gradients(FIRST, 4, 0)
    ]
    assert [norm > RECIPE.clip_norm for norm in norms] == [False, True, False, True]


def test_our_hyperparameters_are_exact_in_float32() -> None:
    recipe = RECIPE
    decay = 1 - recipe.learning_rate * recipe.weight_decay
    values = [value for value in dataclasses.astuple(recipe) if isinstance(value, float)]
    for value in (*values, 1 - recipe.beta1, 1 - recipe.beta2, decay):
        assert float(np.float32(value)) == value
