"""Operations between layouts, found from shapes."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parity.tracing.match.operations import Rearrange, candidates, permutation


def numbers(shape: tuple[int, ...]) -> Any:
    return np.arange(math.prod(shape)).reshape(shape)


@st.composite
def moved(draw: st.DrawFn) -> tuple[Any, Any]:
    """An array, and the same with its axes reordered and some neighbours of the result merged."""
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)))
    axes = tuple(draw(st.permutations(range(len(shape)))))
    array = numbers(shape)
    turned = array.transpose(axes)
    # Merged axes keep their order, as where heads are merged.
    merged = [turned.shape[0]]
    for before, axis in itertools.pairwise(axes):
        if axis > before and draw(st.booleans()):
            merged[-1] *= shape[axis]
        else:
            merged.append(shape[axis])
    return array, turned.reshape(merged)


@given(moved())
def test_what_was_done_is_among_the_candidates_and_each_can_be_undone(pair: Any) -> None:
    for one, other in (pair, pair[::-1]):
        found = list(candidates(one.shape, other.shape))
        assert any(np.array_equal(operation(one), other) for operation in found)
        for operation in found:
            assert operation(one).shape == operation.merged == other.shape
            np.testing.assert_array_equal(operation.inverse(operation(one)), one)
            np.testing.assert_array_equal(operation.inverse.inverse(one), operation(one))


@pytest.mark.parametrize(
    ("source", "target", "axes"),
    [
        ((3, 5), (5, 3), (1, 0)),  # a linear layer's weight
        ((8, 3, 2, 7), (2, 7, 3, 8), (2, 3, 1, 0)),  # a convolution's weight
        ((2, 3, 8, 12), (2, 8, 12, 3), (0, 2, 3, 1)),  # an image
    ],
)
def test_the_only_way_between_two_layouts(
    source: tuple[int, ...], target: tuple[int, ...], axes: tuple[int, ...]
) -> None:
    assert list(candidates(source, target)) == [permutation(source, axes)]


def test_heads_are_split_and_merged_without_mixing_them() -> None:
    array = numbers((6, 5))  # (heads * size, inputs)
    expected = array.reshape(2, 3, 5).transpose(2, 0, 1)
    split = [o for o in candidates((6, 5), (5, 2, 3)) if np.array_equal(o(array), expected)]
    assert [str(operation) for operation in split] == ["reshape (2, 3, 5), transpose (2, 0, 1)"]
    back = split[0].inverse
    np.testing.assert_array_equal(back(expected), array)
    assert str(back) == "transpose (1, 2, 0), reshape (6, 5)"


def test_the_identity_comes_first_and_says_nothing() -> None:
    first, *others = candidates((3, 3, 3), (3, 3, 3))
    assert first.is_identity
    assert str(first) == ""
    assert len(others) == 5
    assert not any(operation.is_identity for operation in others)


@pytest.mark.parametrize(("one", "other"), [((2, 3), (5,)), ((2, 3), (3, 3)), ((4, 9), (6, 6))])
def test_between_sizes_that_differ_there_is_none(
    one: tuple[int, ...], other: tuple[int, ...]
) -> None:
    assert list(candidates(one, other)) == []


def test_axes_of_size_1_come_and_go() -> None:
    array = numbers((4, 5, 1))
    found = [operation(array) for operation in candidates((4, 5, 1), (4, 5))]
    assert len(found) == 1
    np.testing.assert_array_equal(found[0], array[..., 0])
    assert [o.merged for o in candidates((), (1, 1))] == [(1, 1)]


def test_many_axes_are_not_tried() -> None:
    assert list(candidates((2,) * 6, (2,) * 6)) == []


def test_an_operation_takes_any_array_library() -> None:
    import jax.numpy as jnp

    operation = Rearrange((6,), (2, 3), (1, 0), (3, 2))
    expected = numbers((6,)).reshape(2, 3).T
    np.testing.assert_array_equal(operation(jnp.arange(6)), expected)


def test_axes_that_run_the_other_way() -> None:
    """As the spatial ones of a transposed convolution's kernel do."""
    kernel = numbers((2, 3, 4, 5))
    turned = Rearrange(kernel.shape, kernel.shape, (2, 3, 0, 1), (4, 5, 2, 3), flipped=(2, 3))
    np.testing.assert_array_equal(turned(kernel), kernel[:, :, ::-1, ::-1].transpose(2, 3, 0, 1))
    np.testing.assert_array_equal(turned.inverse(turned(kernel)), kernel)
    assert str(turned) == "flip (2, 3), transpose (2, 3, 0, 1)"
    assert not turned.is_identity
    assert not Rearrange((4,), (4,), (0,), (4,), flipped=(0,)).is_identity
