"""What became of a tensor: it is damaged by other people's code, and has to be described."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import pytest
import torch
from torch.nn import functional

from parity.diagnosis.tensors.changes import describe, divisions, fitted, side_of
from parity.diagnosis.tensors.rows import levels, part_that_differs, place, rearranged, rows_alike
from tests.parity.test_suspects_evidence import normal


def narrow(array: Any, dtype: torch.dtype) -> Any:
    return torch.from_numpy(array).to(dtype).double().numpy()


def as_numpy(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Any], Any]:
    return lambda array: change(torch.from_numpy(array)).contiguous().numpy()


def quantised(array: Any, kind: torch.dtype = torch.qint8) -> Any:
    """8 bits with one scale; torch computes in float32."""
    scale = float(np.float32(np.abs(array).max() / 127))
    tensor = torch.from_numpy(array).float()
    levels = torch.fake_quantize_per_tensor_affine(tensor, scale, 0, -128, 127)
    return levels.double().numpy()


def by_output(array: Any) -> Any:
    """8 bits with a scale for each output; kernels lie as (in, out)."""
    scales = torch.from_numpy(np.abs(array).max(0) / 127).float()
    tensor = torch.from_numpy(array).float()
    zeros = torch.zeros(len(scales), dtype=torch.int32)
    found = torch.fake_quantize_per_channel_affine(tensor, scales, zeros, 1, -128, 127)
    return found.double().numpy()


def by_llama_cpp(kind: gguf.GGMLQuantizationType) -> Callable[[Any], Any]:
    def change(array: Any) -> Any:
        rows = np.ascontiguousarray(array.T, np.float32)  # blocks lie along the inputs
        back = gguf.quants.dequantize(gguf.quants.quantize(rows, kind), kind)
        return np.ascontiguousarray(back.T).astype(np.float64)

    return change


def truncated(array: Any) -> Any:
    """bfloat16 by dropping the lower half of a float32."""
    upper = array.astype("<f4").view("<u2").reshape(*array.shape, 2)[..., 1]
    return np.ascontiguousarray(upper).view(ml_dtypes.bfloat16).astype(np.float64)


def by_half_blocks(array: Any) -> Any:
    """Every head's rotary halves, interleaved channel by channel."""
    out = np.empty_like(array)
    for head in range(0, array.shape[1], 8):
        for i in range(4):
            out[:, head + 2 * i] = array[:, head + i]
            out[:, head + 2 * i + 1] = array[:, head + 4 + i]
    return out


Q8, Q4 = gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.Q4_0
# What is done to a tensor of 64 inputs and 32 outputs, how it is called, and what is said.
DAMAGE: dict[str, tuple[Callable[[Any], Any], str, str]] = {
    "zeros": (as_numpy(torch.zeros_like), "weight-zero", "all zeros"),
    "ones": (as_numpy(torch.ones_like), "weight-one", "all ones"),
    "sign": (as_numpy(torch.neg), "weight-negated", "other sign"),
    "plus one": (as_numpy(lambda t: t.add(1.0)), "weight-plus-one", "1 + w"),
    "reciprocal": (as_numpy(torch.reciprocal), "weight-reciprocal", "1 / w"),
    "absolute": (as_numpy(torch.abs), "weight-absolute", "lost its signs"),
    "exponential": (as_numpy(torch.exp), "weight-exponential", "is the exponential"),
    "squared": (as_numpy(torch.square), "weight-squared", "is squared"),
    "float32": (lambda a: narrow(a, torch.float32), "weight-rounded", "to float32"),
    "float16": (lambda a: narrow(a, torch.float16), "weight-rounded", "to float16"),
    "bfloat16": (lambda a: narrow(a, torch.bfloat16), "weight-rounded", "to bfloat16"),
    "float8": (lambda a: narrow(a, torch.float8_e4m3fn), "weight-rounded", "to float8"),
    "e5m2": (lambda a: narrow(a, torch.float8_e5m2), "weight-rounded", "to float8 (e5m2)"),
    "cut off": (truncated, "weight-rounded", "cut off to bfloat16"),
    "clipped": (as_numpy(lambda t: t.clamp(-1.25, 1.25)), "weight-clipped", "cut off at 1.25"),
    "8 bits": (quantised, "weight-quantised", "8 bits, with a scale for the tensor"),
    "8 bits each": (by_output, "weight-quantised", "8 bits, with a scale for each output"),
    "Q8_0": (by_llama_cpp(Q8), "weight-quantised", "8 bits, with a scale for 32 inputs of an"),
    "Q4_0": (by_llama_cpp(Q4), "weight-quantised", "4 bits, with a scale for 32 inputs of an"),
    "scaled": (as_numpy(lambda t: t * 3), "weight-scaled", "scaled by 3"),
    "by a root": (as_numpy(lambda t: t * 64**-0.5), "weight-scaled", "0.125 = 1/sqrt(64)"),
    "reshaped": (as_numpy(lambda t: t.T.reshape(64, 32)), "weight-reshaped", "reshaped"),
    "upside down": (as_numpy(lambda t: t.flip(0)), "weight-flipped", "along its inputs"),
    "mirrored": (as_numpy(lambda t: t.flip(1)), "weight-flipped", "along its outputs"),
    "rolled": (as_numpy(lambda t: t.roll(1, 0)), "weight-shifted", "by 1 along its inputs"),
    "rolled back": (as_numpy(lambda t: t.roll(-1, 1)), "weight-shifted", "-1 along its outputs"),
    "interleaved": (by_half_blocks, "rope-interleaved", "4 heads of 8, in its outputs"),
    "halves": (as_numpy(lambda t: t.roll(16, 1)), "halves-exchanged", "outputs with the halves"),
    "heads": (
        as_numpy(lambda t: t.reshape(64, 4, 8).flip(1).reshape(64, 32)),
        "heads-reversed",
        "each of 4 groups of 8",
    ),
    "regrouped": (
        as_numpy(lambda t: t.reshape(64, 4, 8).transpose(1, 2).reshape(64, 32)),
        "heads-regrouped",
        "in its outputs",
    ),
}
# What is the same the other way round, or has another name then.
BACK = {
    "reciprocal": "weight-reciprocal", "sign": "weight-negated", "scaled": "weight-scaled",
    "by a root": "weight-scaled", "upside down": "weight-flipped", "mirrored": "weight-flipped",
    "rolled": "weight-shifted", "rolled back": "weight-shifted", "halves": "halves-exchanged",
    "heads": "heads-reversed", "regrouped": "heads-regrouped", "interleaved": "rope-interleaved",
    "reshaped": "weight-reshaped",
}  # fmt: skip


@pytest.mark.parametrize("way", DAMAGE)
def test_what_became_of_a_tensor_is_described(way: str) -> None:
    change, name, words = DAMAGE[way]
    right = normal(64, 32)
    wrong = change(right.copy())
    kept = right.copy(), wrong.copy()
    found = describe(right, wrong)
    assert found is not None
    assert found[0] == name
    assert words in found[1]
    assert describe(right, right) is None
    np.testing.assert_array_equal(right, kept[0])
    np.testing.assert_array_equal(wrong, kept[1])
    back = describe(wrong, right)
    assert (back and back[0]) == BACK.get(way)


@pytest.mark.parametrize(
    ("change", "name", "words"),
    [
        (lambda a: np.where(np.abs(a) < 0.5, 0, a), "weight-pruned", "values set to zero"),
        (lambda a: a + 0.25, "weight-shifted-by", "0.25 added everywhere"),
        (
            lambda a: functional.normalize(torch.from_numpy(a), dim=0).numpy(),
            "weight-normalised",
            "each output normalised",
        ),
        (
            lambda a: functional.normalize(torch.from_numpy(a), dim=1).numpy(),
            "weight-normalised",
            "each input normalised",
        ),
        (lambda a: a * np.arange(1.0, 33), "weight-scaled-by-channel", "for each output (1 to 32)"),
        (
            lambda a: a * np.arange(1.0, 65)[:, None],
            "weight-scaled-by-channel",
            "for each input (1 to 64)",
        ),
    ],
)
def test_numbers_are_fitted(change: Any, name: str, words: str) -> None:
    right = normal(64, 32)
    assert describe(right, change(right)) is None
    found = fitted(right, change(right))
    assert found is not None
    assert found[0] == name
    assert words in found[1]


@pytest.mark.parametrize("axes", [(0, 1, 3, 2), (3, 2, 1, 0), (2, 3, 0, 1)])
def test_the_axes_of_a_convolution(axes: tuple[int, ...]) -> None:
    right = normal(3, 3, 3, 3)
    wrong = torch.from_numpy(right).permute(axes).contiguous().numpy()
    assert describe(right, wrong) == ("weight-transposed", f"looks transposed by {axes}")
    flipped = torch.from_numpy(right).flip((0, 1)).numpy()
    words = "is flipped along its spatial axes"
    assert describe(right, flipped) == ("weight-flipped", words)


def test_a_square_kernel_that_is_transposed() -> None:
    right = normal(8, 8)
    assert describe(right, right.T.copy()) == ("weight-transposed", "looks transposed")


def test_large_numbers_overflow_in_silence() -> None:
    right = normal(8, 8) * 1e5
    found = describe(right, narrow(right, torch.float16))
    assert found == ("weight-rounded", "is rounded to float16")
    assert describe(right * 1e290, normal(8, 8)) is None


@pytest.mark.parametrize("shape", [(7,), (8, 6), (2, 3, 4), (2, 1, 3, 2, 4)], ids=str)
def test_unrelated_tensors_are_not_described(shape: tuple[int, ...]) -> None:
    right, wrong = normal(*shape), normal(*shape, seed=1)
    for a, b in ((right, wrong), (np.abs(right), np.abs(wrong)), (right, right)):
        assert describe(a, b) is None
        assert a is b or fitted(a, b) is None


def test_ways_to_see_an_axis() -> None:
    assert divisions(6) == [(1, 6), (2, 3), (3, 2)]
    assert divisions(1) == []
    assert [side_of(normal(2, 3), axis) for axis in (0, 1)] == ["inputs", "outputs"]
    assert side_of(normal(2, 3, 4), 2) == "axis 2"


@pytest.mark.parametrize("related", ["rows", "noise"])
def test_a_large_tensor_is_described_in_little_memory(related: str) -> None:
    right = normal(4096, 576)
    wrong = right[::-1] if related == "rows" else right + 1e-3 * np.cos(right)
    for look in (describe, fitted, part_that_differs, rearranged):
        tracemalloc.start()
        look(right, wrong)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 4.5 * right.nbytes, look.__name__


# Rows, columns and parts.


def test_the_part_that_differs_is_found_and_named() -> None:
    right = normal(12, 8)
    wrong = right.copy()
    wrong[3:6] += 1
    part = part_that_differs(right, wrong)
    assert part is not None
    assert place(right.shape, part) == "inputs 3 to 5 of 12"
    wrong = right.copy()
    wrong[[1, 4, 9], 2:4] += 1
    part = part_that_differs(right, wrong)
    assert part is not None
    assert place(right.shape, part) == "3 of 12 inputs (1, 4, 9) and outputs 2 to 3 of 8"
    assert right[part].shape == (3, 2)
    corners = right.copy()
    corners[[0, -1], [0, -1]] += 1
    for wrong in (right, corners, right + 1):
        assert part_that_differs(right, wrong) is None
    one = normal(2, 3, 4)
    other = one.copy()
    other[:, 1] = 0
    part = part_that_differs(one, other)
    assert part is not None
    assert place(one.shape, part) == "axis 1 1 of 3"


@pytest.mark.parametrize("axis", [0, 1])
def test_rows_that_stand_elsewhere(axis: int) -> None:
    right, side = normal(12, 12), ("inputs", "outputs")[axis]

    def moved(order: list[int]) -> Any:
        return np.stack([right.take(i, axis) for i in order], axis)

    found = rearranged(right, moved([0, 3, 2, 1, *range(4, 12)]))
    assert found == ("rows-exchanged", f"has {side} 1 and 3 exchanged")
    order = [8, 9, 10, 11, 0, 1, 2, 3, 4, 5, 6, 7]
    words = f"has its {side} in another order: blocks of 4, 2, 0, 1"
    assert rearranged(right, moved(order)) == ("rows-reordered", words)
    order = [0, 1, 2, 3, 4, 5, 6, 7, 4, 5, 6, 7]
    words = f"has {side} 4 to 7 again in the place of 8 to 11"
    assert rearranged(right, moved(order)) == ("rows-repeated", words)
    assert rearranged(right, right) is None
    assert rearranged(right, right + 1) is None


def test_rows_that_are_alike_and_few_levels() -> None:
    assert rows_alike(np.tile(normal(6), (4, 1))) == (
        "rows-alike",
        "holds the same in all its inputs",
    )
    alike = rows_alike(np.repeat(normal(4, 1), 6, axis=1))
    assert alike == ("rows-alike", "holds the same in all its outputs")
    assert rows_alike(normal(4, 6)) is None
    assert rows_alike(np.ones((4, 6), bool)) is not None
    assert levels(np.sign(normal(64, 32))) == "2 values"
    blocks = by_llama_cpp(Q4)(normal(64, 64))
    assert "values in each block of 32, beside the largest" in str(levels(blocks))
    assert levels(normal(64, 64)) is None
