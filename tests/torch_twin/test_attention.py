from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch

from diy_torch.attention import Attention, attention_mask_from_positions
from diy_torch.cache import init_cache
from diy_torch.rope import rope_tables
from diy_torch.tensors import to_numpy, to_tensor
from parity.check.measures import relative_l2
from tests.oracles import CONFIGS, Array, NumpyModel, random_weights, softmax, tiny
from tests.torch_twin.build import build


def mask(
    queries: list[int], keys: list[int], segments: tuple[list[int], list[int]] | None = None
) -> list[list[int]]:
    rows = [torch.tensor([row]) for row in (queries, keys, *(segments or ()))]
    result = attention_mask_from_positions(*rows)
    assert result.dtype == torch.bool
    return result[0].int().tolist()


def test_a_query_sees_itself_and_what_is_before_it() -> None:
    assert mask([0, 1, 2], [0, 1, 2]) == [
        [1, 0, 0],
        [1, 1, 0],
        [1, 1, 1],
    ]


def test_with_a_cache_the_last_query_is_aligned_with_its_own_slot() -> None:
    assert mask([2, 3], [0, 1, 2, 3, 4]) == [
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
    ]


def test_segments_do_not_see_each_other() -> None:
    segments = [7, 7, 2, 2, 2]
    assert mask([0, 1, 2, 3, 4], [0, 1, 2, 3, 4], (segments, segments)) == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 1, 1, 1],
    ]


def test_each_row_has_a_mask_of_its_own() -> None:
    queries = torch.tensor([[0], [2]])
    result = attention_mask_from_positions(queries, torch.tensor([[0, 1, 2], [0, 1, 2]]))
    assert result.int().tolist() == [[[1, 0, 0]], [[1, 1, 1]]]


@pytest.mark.parametrize("name", CONFIGS)
def test_it_is_the_formula_head_by_head(name: str) -> None:
    config = CONFIGS[name]
    x = np.random.default_rng(1).normal(size=(2, 6, config.hidden_size))
    oracle = NumpyModel(config, random_weights(config))
    expected = np.stack([oracle.attention("model.layers.1.self_attn", row) for row in x])
    positions = torch.arange(6).expand(2, -1)
    with torch.no_grad():
        output, present = (
            build(config)
            .model.layers[1]
            .attention(
                torch.from_numpy(x),
                rope_tables(config, positions, torch.float64),
                attention_mask_from_positions(positions, positions),
            )
        )
    assert present is None
    assert relative_l2(output.numpy(), expected) <= 1e-12


def test_with_a_cache_it_is_the_same_formula() -> None:
    config = CONFIGS["gqa"]
    x = np.random.default_rng(1).normal(size=(1, 6, config.hidden_size))
    expected = NumpyModel(config, random_weights(config)).attention(
        "model.layers.0.self_attn", x[0]
    )
    attention, outputs = build(config).model.layers[0].attention, []
    past = init_cache(config, 1, dtype=torch.float64)[0]
    slots = torch.arange(64)[None]
    with torch.no_grad():
        for start, stop in ((0, 3), (3, 6)):
            positions = torch.arange(start, stop)[None]
            output, present = attention(
                torch.from_numpy(x[:, start:stop]),
                rope_tables(config, positions, torch.float64),
                attention_mask_from_positions(positions, slots),
                torch.tensor([stop - start], dtype=torch.int32),
                past,
            )
            assert present is not None
            past = present
            outputs.append(output[0].numpy())
    assert relative_l2(np.concatenate(outputs), expected) <= 1e-12


def test_bfloat16_scores_and_softmax_are_computed_in_float32() -> None:
    config = tiny(num_attention_heads=1, num_key_value_heads=1, head_dim=16)
    attention = Attention(config).to(torch.bfloat16)
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        getattr(attention, name).weight = torch.nn.Parameter(torch.eye(16, dtype=torch.bfloat16))
    x = np.random.default_rng(0).normal(size=(1, 32, 16)).astype(ml_dtypes.bfloat16)
    no_turn = torch.ones(1, 32, 8, dtype=torch.bfloat16), torch.zeros(1, 32, 8).bfloat16()
    positions = torch.arange(32)[None]
    causal = attention_mask_from_positions(positions, positions)
    with torch.no_grad():
        output = to_numpy(attention(to_tensor(x), no_turn, causal)[0])[0]

    def attend(scores_as: type, weights_as: type) -> Array:
        wide, rows = x[0].astype(np.float64), []
        for t in range(32):
            scores = (wide[: t + 1] @ wide[t] / 4).astype(scores_as).astype(np.float64)
            weights = softmax(scores).astype(weights_as).astype(np.float64)
            rows.append(weights @ wide[: t + 1])
        return np.stack(rows).astype(ml_dtypes.bfloat16)

    as_promised = attend(np.float32, ml_dtypes.bfloat16)
    assert (output != as_promised).mean() <= 0.005  # float32 sums round in another order
    for other in (attend(ml_dtypes.bfloat16, ml_dtypes.bfloat16), attend(np.float32, np.float32)):
        assert (output != other).mean() > 0.05
