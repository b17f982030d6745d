"""The twins' own training step: everything is on, and what is wrong with a part of it is seen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diy_jax.block
import diy_jax.optimizer
import diy_jax.step
from diy_core.config import DIYConfig
from diy_core.mapping import flatten, tensors
from diy_core.validate import IGNORED
from parity.check.own_steps import SKIPPED, STEPS, OwnSteps, check, train_torch
from parity.environment import Device, exact
from parity.random_models import random_weights, write_random_model
from parity.twins import Pair

CONFIG = DIYConfig(
    vocab_size=37,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    attention_bias=True,
)
WEIGHTS = {t.hf: random_weights(t, "fan-in", 0) for t in tensors(CONFIG)}
Damage = Callable[[pytest.MonkeyPatch], None]


@pytest.fixture
def pair(tmp_path: Path, device: Device) -> Iterator[Pair]:
    write_random_model(tmp_path / "model", CONFIG, "fan-in")
    jax.clear_caches()
    with exact(device):
        yield Pair(tmp_path / "model", "float64", device)
    jax.clear_caches()


def test_batches_are_packed_uneven_and_one_has_no_labels() -> None:
    steps = OwnSteps.make(CONFIG, 0)
    assert steps.reach == f"{STEPS} steps, 0-23"
    for number, batch in enumerate(steps.batches):
        labels, segments = batch["labels"], batch["segment_ids"]
        counted = (labels != IGNORED).sum(axis=(1, 2))
        assert (number == SKIPPED) == (not counted.any())
        if number != SKIPPED:
            assert counted[0] > counted[1] > 0
            assert (labels == IGNORED)[:, :, :-1].any()
        ids = batch["input_ids"]
        same = segments[..., 1:] == segments[..., :-1]
        known = labels[..., :-1] != IGNORED
        assert (labels[..., :-1][known & same] == ids[..., 1:][known & same]).all()
    assert any((np.diff(batch["segment_ids"]) != 0).any() for batch in steps.batches)


def test_steps_do_something_each(device: Device) -> None:
    with exact(device):
        found = train_torch(OwnSteps.make(CONFIG, 0), WEIGHTS, device)
    assert found["skipped"].tolist() == [float(step == SKIPPED) for step in range(STEPS)]
    assert (found["tokens"] > 0).tolist() == [step != SKIPPED for step in range(STEPS)]
    norms = found["norm"][found["skipped"] == 0]
    assert (norms > 0.5).all()  # so they are clipped
    assert all(np.abs(found[name] - first).max() > 1e-4 for name, first in WEIGHTS.items())


def test_healthy_twins_take_the_same_steps(pair: Pair) -> None:
    found = check(pair, WEIGHTS, 0)
    assert found.passed
    assert found.value < 1e-12
    assert (found.name, found.dtype, found.bound) == ("step", "float64", 1e-10)
    names = {error.name for error in found.tensors}
    assert {"loss", "norm", "tokens"} < names
    for name in WEIGHTS:
        assert {name, f"exp_avg of {name}", f"exp_avg_sq of {name}"} < names
    flat = flatten(pair.params)
    assert all(
        (np.asarray(flat[t.flax]) == t.to_flax(WEIGHTS[t.hf])).all() for t in tensors(CONFIG)
    )


def decay_everywhere(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("diy_jax.optimizer.decays", lambda tensor, options: True)


def moments_uncorrected(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("diy_jax.optimizer.optax.tree.bias_correction", lambda moment, decay, n: moment)


def loss_with(**changes: Any) -> Damage:
    def damage(patch: pytest.MonkeyPatch) -> None:
        true = diy_jax.step.token_losses
        patch.setattr(
            "diy_jax.step.token_losses",
            lambda hidden, labels, project, **options: true(
                hidden, labels, project, **(options | changes)
            ),
        )

    return damage


def labels_not_ignored(patch: pytest.MonkeyPatch) -> None:
    true = diy_jax.step.token_losses
    patch.setattr(
        "diy_jax.step.token_losses",
        lambda hidden, labels, project, **options: true(
            hidden, jnp.maximum(labels, 0), project, **options
        ),
    )


def dropout_unscaled(patch: pytest.MonkeyPatch) -> None:
    true = diy_jax.block.dropout
    patch.setattr("diy_jax.block.dropout", lambda key, x, rate: true(key, x, rate) * (1 - rate))


def recomputed_layers_drop_nothing(patch: pytest.MonkeyPatch) -> None:
    true = jax.checkpoint

    def forgetful(function: Any, **options: Any) -> Any:
        run = true(function, **options)
        return lambda *arguments: (
            run(*arguments[:-1], None) if len(arguments) > 5 else run(*arguments)
        )

    patch.setattr("diy_jax.step.jax.checkpoint", forgetful)


@pytest.mark.parametrize(
    "damage",
    [
        decay_everywhere,
        moments_uncorrected,
        loss_with(z_loss=0.0),
        labels_not_ignored,
        dropout_unscaled,
        recomputed_layers_drop_nothing,
    ],
)
def test_what_is_wrong_with_a_part_of_it_is_seen(
    damage: Damage, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage(monkeypatch)
    assert not check(pair, WEIGHTS, 0).passed
