"""The last logits of each row: which they are, and what is wrong with them alone is seen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diy_jax.inputs
from parity.batch import Batch
from parity.check.kept import checks, kept_tokens
from parity.check.plan import random_batch
from parity.environment import Device, exact
from parity.random_models import write_random_model
from parity.twins import Pair
from tests.oracles import tiny

CONFIG = tiny(max_position_embeddings=32)
LENGTHS = np.array([9, 2, 5], np.int32)


@pytest.fixture
def pair(tmp_path: Path, device: Device) -> Iterator[Pair]:
    write_random_model(tmp_path / "model", CONFIG, "fan-in")
    jax.clear_caches()
    with exact(device):
        yield Pair(tmp_path / "model", "float64", device)
    jax.clear_caches()


def red(pair: Pair) -> set[str]:
    batch = random_batch(CONFIG, LENGTHS, 0)
    found = checks(pair, batch, pair.device.name)
    assert [check.name for check in found] == ["kept torch", "kept flax"]
    assert all(check.compared == 9 * CONFIG.vocab_size for check in found)
    assert all(check.reach == "3 rows, 0-8" for check in found)
    return {check.name for check in found if not check.passed}


def test_the_last_three_of_each_row_and_of_a_short_one_its_first_again() -> None:
    batch = Batch(np.zeros((3, 9), np.int32), LENGTHS)
    places = [batch.place(int(token)) for token in kept_tokens(batch)]
    wanted = {0: (6, 7, 8), 1: (0, 0, 1), 2: (2, 3, 4)}
    assert places == [
        f"row {row}, position {at}" for row, positions in wanted.items() for at in positions
    ]


def test_healthy_twins_agree(pair: Pair) -> None:
    assert red(pair) == set()


def masks_forgotten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("diy_jax.inputs.lengths_from_mask", lambda mask, lengths, ids, has_cache: lengths)


def masks_count_one_too_many(patch: pytest.MonkeyPatch) -> None:
    true = diy_jax.inputs.lengths_from_mask
    patch.setattr(
        "diy_jax.inputs.lengths_from_mask",
        lambda mask, *rest: jnp.minimum(true(mask, *rest) + 1, mask.shape[1]),
    )


def caches_begin_late(patch: pytest.MonkeyPatch) -> None:
    true = diy_jax.inputs.empty_cache

    def empty(config: Any, batch: int, columns: int, dtype: Any) -> Any:
        found = true(config, batch, columns + 1, dtype)
        return [(slots, position + 1) for slots, position in found]

    patch.setattr("diy_jax.inputs.empty_cache", empty)


def kept_backwards(patch: pytest.MonkeyPatch) -> None:
    true = jnp.take_along_axis
    patch.setattr(
        "diy_jax.model.jnp.take_along_axis",
        lambda array, index, axis: true(array, index[:, ::-1], axis=axis),
    )


@pytest.mark.parametrize(
    "damage", [masks_forgotten, masks_count_one_too_many, caches_begin_late, kept_backwards]
)
def test_what_is_wrong_is_seen(
    damage: Callable[[pytest.MonkeyPatch], None], pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage(monkeypatch)
    assert red(pair) == {"kept flax"}
