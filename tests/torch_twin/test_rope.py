from __future__ import annotations

import numpy as np
import pytest
import torch

from diy_core.config import DIYConfig
from diy_torch.rope import apply_rope, rope_tables
from parity.check.measures import relative_l2
from tests.oracles import LINEAR, LLAMA3, Array, frequencies, rotate, tiny

DEFAULT = tiny(head_dim=10, rope_theta=500.0)
SCALED = [DEFAULT, tiny(rope_scaling=LINEAR), tiny(rope_scaling=LLAMA3, head_dim=16)]


def rotated(x: Array, positions: Array, config: DIYConfig) -> Array:
    """x (heads, S, H) at positions (S,), by the twin, float64."""
    tables = rope_tables(config, torch.from_numpy(positions)[None], torch.float64)
    return apply_rope(torch.from_numpy(x)[None], *tables)[0].numpy()


@pytest.mark.parametrize("config", SCALED, ids=["default", "linear", "llama3"])
@pytest.mark.parametrize("start", [0, 1000], ids=["near", "beyond the original context"])
def test_it_turns_complex_numbers(config: DIYConfig, start: int) -> None:
    x = np.random.default_rng(0).normal(size=(3, 7, config.head_size))
    positions = np.arange(start, start + 7)
    assert relative_l2(rotated(x, positions, config), rotate(x, positions, config)) <= 1e-12


def test_channel_j_turns_with_channel_j_plus_half() -> None:
    config = tiny(head_dim=4)
    angle = frequencies(config)[1]  # of channels 1 and 3, at position 1
    x = np.array([0.0, 1.0, 0.0, 0.0]).reshape(1, 1, 4)
    expected = [0.0, np.cos(angle), 0.0, np.sin(angle)]
    assert rotated(x, np.array([1]), config).ravel() == pytest.approx(expected, abs=1e-15)


def test_scores_depend_on_the_distance_alone() -> None:
    query, key = np.random.default_rng(0).normal(size=(2, 1, 1, DEFAULT.head_size))

    def score(query_position: int, key_position: int) -> float:
        turned = rotated(query, np.array([query_position]), DEFAULT)
        return float((turned * rotated(key, np.array([key_position]), DEFAULT)).sum())

    assert score(9, 2) == pytest.approx(score(107, 100), rel=1e-12)
    assert abs(score(9, 2) - score(9, 3)) > 1e-3


def test_linear_scaling_stretches_positions() -> None:
    config = tiny()
    stretched = tiny(rope_scaling=LINEAR)
    x = np.random.default_rng(0).normal(size=(2, 5, config.head_size))
    near, far = rotated(x, np.arange(5), config), rotated(x, 4 * np.arange(5), stretched)
    assert relative_l2(far, near) <= 1e-12


def test_llama3_keeps_fast_pairs_and_stretches_slow_ones() -> None:
    plain = frequencies(tiny(head_dim=16))
    cos, sin = rope_tables(
        tiny(rope_scaling=LLAMA3, head_dim=16), torch.tensor([[1]]), torch.float64
    )
    scaled = torch.atan2(sin, cos).numpy().ravel()
    assert scaled[0] == pytest.approx(plain[0], rel=1e-12)
    assert plain[1] / 8 < scaled[1] < plain[1]  # between the two: a blend
    assert scaled[-1] == pytest.approx(plain[-1] / 8, rel=1e-9)


def test_bfloat16_tables_are_computed_in_float32() -> None:
    positions = np.arange(2000, 2048)
    cos, sin = rope_tables(DEFAULT, torch.from_numpy(positions)[None], torch.bfloat16)
    assert cos.dtype == sin.dtype == torch.bfloat16
    angles = positions[:, None] * frequencies(DEFAULT)[None, :]
    half_a_step = 2.0**-9 + 1e-3  # of bfloat16 below 1, and what float32 loses at such angles
    assert abs(cos[0].double().numpy() - np.cos(angles)).max() <= half_a_step
    assert abs(sin[0].double().numpy() - np.sin(angles)).max() <= half_a_step
