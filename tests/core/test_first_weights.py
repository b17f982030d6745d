"""First weights: the same bits for the same seed and name, whatever else the model holds."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest

from diy_core import DIYConfig
from diy_core.first_weights import first_weights

SMALL: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "tie_word_embeddings": False,
    "attention_bias": True,
    "mlp_bias": True,
}


def draw(seed: Any = 0, **change: Any) -> dict[str, np.ndarray]:
    config = DIYConfig(**(SMALL | change))
    return {tensor.hf: array for tensor, array in first_weights(config, seed)}


def same(one: np.ndarray, other: np.ndarray) -> bool:
    return one.tobytes() == other.tobytes()


def test_the_same_seed_gives_the_same_bits() -> None:
    one, other = draw(7), draw(np.int64(7))
    assert list(one) == list(other)
    assert all(same(one[name], other[name]) for name in one)


def test_the_bits_are_pinned() -> None:
    digest = hashlib.sha256(b"".join(array.tobytes() for array in draw(0).values())).hexdigest()
    assert digest == "288505b3c282795f8bc79343d1c929c01032bf7ad65d0f19f81630dee37249b5"
    query = draw(0)["model.layers.0.self_attn.q_proj.weight"]
    np.testing.assert_array_equal(
        query[0, :3], np.float32([-0.021092426, -0.022378974, 0.01536936])
    )


def test_another_seed_or_another_name_gives_other_values() -> None:
    one, other = draw(0), draw(1)
    drawn = [name for name in one if one[name].ndim == 2]
    assert len(drawn) == 2 + 2 * 7
    assert not any(same(one[name], other[name]) for name in drawn)
    values = [one[name].ravel()[:8].tobytes() for name in drawn]
    assert len(set(values)) == len(values)


def test_a_tensor_does_not_depend_on_the_others() -> None:
    one = draw()
    deeper = draw(num_hidden_layers=3, tie_word_embeddings=True, attention_bias=False)
    shared = one.keys() & deeper.keys()
    assert len(deeper) - len(shared) == 7 + 3 + 2  # the third layer
    assert len(shared) == 1 + 2 * (7 + 3 + 2) + 1
    assert all(same(one[name], deeper[name]) for name in shared)


def test_the_distributions_are_those_of_the_table() -> None:
    weights = draw(vocab_size=3000, hidden_size=64, intermediate_size=500, initializer_range=0.3)
    for name, array in weights.items():
        assert array.dtype == np.float32, name
        if name.endswith("norm.weight"):
            assert (array == 1).all(), name
        elif name.endswith(".bias"):
            assert (array == 0).all(), name
        else:
            count = array.size  # four standard errors
            assert abs(array.mean()) < 4 * 0.3 / count**0.5, name
            assert abs(array.std() / 0.3 - 1) < 4 / (2 * count) ** 0.5, name
    assert (
        abs(
            np.corrcoef(*(weights[f"model.layers.{i}.mlp.up_proj.weight"].ravel() for i in (0, 1)))[
                0, 1
            ]
        )
        < 0.03
    )


def test_initializer_range_scales_and_zero_is_allowed() -> None:
    name = "model.embed_tokens.weight"
    one, other = draw(initializer_range=0.25)[name], draw(initializer_range=0.5)[name]
    np.testing.assert_array_equal(2 * one, other)
    assert not draw(initializer_range=0.0)[name].any()


@pytest.mark.parametrize("seed", [-1, 1.0, "0", None, True, np.float32(0)])
def test_a_seed_that_is_no_count_is_refused(seed: Any) -> None:
    with pytest.raises(ValueError, match="seed must be a non-negative integer, got"):
        draw(seed)


def test_large_seeds_differ() -> None:
    one, other = (next(iter(draw(seed).values())) for seed in (2**64, 2**200))
    assert not same(one, other)
