"""The chunked loss against its formula in float64, and that all logits never exist at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.extend.core import jaxprs_in_params
from jax.test_util import check_grads

from diy_jax.loss import cross_entropy
from tests.training_oracles import IGNORED, LossCase

CHUNKS = [1, 4, 20, 21, 1000]


def arrays(case: LossCase) -> tuple[jax.Array, jax.Array, jax.Array]:
    return jnp.asarray(case.hidden), jnp.asarray(case.head), jnp.asarray(case.labels)


def loss(hidden: Any, head: Any, labels: Any, **options: Any) -> Any:
    return cross_entropy(hidden, labels, lambda h: h @ head.T, **options)


@pytest.mark.usefixtures("x64", "strict")
@pytest.mark.parametrize("z_loss", [0.0, 0.01])
@pytest.mark.parametrize("chunk_tokens", CHUNKS)
def test_it_is_the_formula_and_so_are_its_gradients(chunk_tokens: int, z_loss: float) -> None:
    case = LossCase()
    hidden, head, labels = arrays(case)
    (total, tokens), found = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(
        hidden, head, labels, z_loss=z_loss, chunk_tokens=chunk_tokens
    )
    assert int(tokens) == case.counted
    assert float(total) == pytest.approx(case.loss(z_loss), rel=1e-14)
    for gradient, expected in zip(found, case.gradients(z_loss), strict=True):
        np.testing.assert_allclose(gradient, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.usefixtures("x64")
def test_it_is_the_loss_of_optax() -> None:
    hidden, head, labels = arrays(LossCase())
    total, _ = loss(hidden, head, labels, chunk_tokens=4)
    losses = optax.softmax_cross_entropy_with_integer_labels(
        hidden @ head.T, jnp.maximum(labels, 0)
    )
    wanted = jnp.where(labels >= 0, losses, 0).sum()
    assert float(total) == pytest.approx(float(wanted), rel=1e-14)


@pytest.mark.usefixtures("x64")
def test_its_gradient_is_that_of_finite_differences() -> None:
    hidden, head, labels = arrays(LossCase())
    check_grads(
        jax.jit(lambda *given: loss(*given, labels, z_loss=0.1, chunk_tokens=8)[0]),
        (hidden, head),
        order=1,
        modes=["rev"],
    )


@pytest.mark.usefixtures("x64")
def test_what_is_not_counted_has_no_influence_even_where_it_is_not_finite() -> None:
    case = LossCase()
    case.hidden[case.labels == IGNORED] = np.nan
    (total, _), found = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(
        *arrays(case), z_loss=0.1, chunk_tokens=4
    )
    assert float(total) == pytest.approx(LossCase().loss(0.1), rel=1e-14)
    assert np.asarray(found[0])[case.labels == IGNORED].tolist() == [[0.0] * 5] * (
        21 - case.counted
    )
    expected = LossCase().gradients(0.1)[1]
    np.testing.assert_allclose(found[1], expected, rtol=1e-12, atol=1e-13)


@pytest.mark.usefixtures("x64")
def test_nothing_counted_is_zero() -> None:
    hidden, head, labels = arrays(LossCase())
    labels = jnp.full_like(labels, IGNORED)
    (total, tokens), found = jax.value_and_grad(loss, has_aux=True)(
        hidden, head, labels, chunk_tokens=4
    )
    assert (float(total), int(tokens)) == (0.0, 0)
    assert not found.any()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_sum_is_in_float32_and_precise_where_the_model_is_sure(dtype: str) -> None:
    """exp(-10). logsumexp(z) - z[label] would be off by up to 4e-6, half a unit of 80."""
    logits = jnp.array([[[80.0, 70.0]]], dtype=dtype)
    total, _ = cross_entropy(logits, jnp.array([[0]]), lambda h: h)
    assert total.dtype == jnp.float32
    assert float(total) == pytest.approx(np.log1p(np.exp(-10.0)), rel=0, abs=1e-7)


def test_the_gradient_of_a_head_that_is_cast_sums_in_float32_over_the_chunks() -> None:
    hidden = jnp.ones((1, 600, 1), jnp.bfloat16)
    labels = jnp.zeros((1, 600), jnp.int32)

    def of_head(head: Any) -> Any:
        return cross_entropy(hidden, labels, lambda h: h @ head.T.astype(h.dtype), chunk_tokens=1)[
            0
        ]

    gradient = jax.grad(of_head)(jnp.zeros((2, 1)))
    assert gradient.ravel().tolist() == [-300.0, 300.0]  # in bfloat16 it would stay at 128


def gradient_of(chunk_tokens: int) -> Any:
    """The gradient as a function of hidden (4, 16, 8) and head (50, 8)."""
    labels = jnp.zeros((4, 16), jnp.int32)
    return jax.grad(
        lambda *given: loss(*given, labels, z_loss=0.1, chunk_tokens=chunk_tokens)[0], (0, 1)
    )


def sizes(jaxpr: Any) -> Iterator[int]:
    """Elements of the result of every operation, of those inside of others too."""
    for equation in jaxpr.eqns:
        yield from (variable.aval.size for variable in equation.outvars)
        for inner in jaxprs_in_params(equation.params):
            yield from sizes(inner)


def test_the_logits_of_one_chunk_are_the_largest_array_in_both_directions() -> None:
    given = jnp.ones((4, 16, 8)), jnp.ones((50, 8))
    for tokens in (16, 64):
        traced = jax.make_jaxpr(gradient_of(tokens))(*given)
        assert max(sizes(traced.jaxpr)) == tokens * 50


def test_memory_is_that_of_one_chunk() -> None:
    """Hidden states (8, 64, 16), a head (1000, 16): all logits would be 2 MB."""
    labels = jnp.zeros((8, 64), jnp.int32)

    def temporary(chunk_tokens: int) -> int:
        gradient = jax.grad(
            lambda *given: loss(*given, labels, z_loss=0.1, chunk_tokens=chunk_tokens)[0], (0, 1)
        )
        shapes = (
            jax.ShapeDtypeStruct((8, 64, 16), "float32"),
            jax.ShapeDtypeStruct((1000, 16), "float32"),
        )
        return int(jax.jit(gradient).lower(*shapes).compile().memory_analysis().temp_size_in_bytes)

    everything = 8 * 64 * 1000 * 4
    assert temporary(chunk_tokens=16) < everything / 4
    assert temporary(chunk_tokens=512) > everything


@pytest.mark.parametrize("label", [-1, 11, -99])
def test_other_labels_are_refused(label: int) -> None:
    case = LossCase()
    case.labels[2, 3] = label
    with pytest.raises(ValueError, match=rf"labels must lie in 0\.\.10 .* got {label} at \(2, 3\)"):
        loss(*arrays(case), chunk_tokens=4)


def test_a_chunk_holds_a_token() -> None:
    with pytest.raises(ValueError, match="chunk_tokens must be at least 1, got 0"):
        loss(*arrays(LossCase()), chunk_tokens=0)


@pytest.mark.parametrize(
    "kind", [np.int8, np.uint8, np.uint16, np.uint32, np.uint64, np.dtype(">i4"), list]
)
@pytest.mark.parametrize("on_device", [True, False])
def test_labels_may_be_any_integers(kind: Any, on_device: bool) -> None:
    """As an unsigned integer of 8 bits -100 is 156, which may be a token."""
    label = 100 if kind == np.int8 else 156
    labels = np.array([[1, label, 5, 7, 9]])
    rng = np.random.default_rng(0)
    hidden, head = jnp.asarray(rng.normal(size=(1, 5, 4))), jnp.asarray(rng.normal(size=(4, 300)))

    def loss(labels: Any) -> tuple[float, int]:
        total, count = cross_entropy(hidden, labels, lambda x: x @ head, chunk_tokens=2)
        return float(total), int(count)

    given = labels.tolist() if kind is list else labels.astype(kind)
    if on_device and kind is not list and given.dtype.isnative:
        given = jnp.asarray(given)
    logits = np.asarray(hidden[0]) @ np.asarray(head)
    rest = np.log(np.exp(logits).sum(axis=-1))
    expected = (rest - logits[np.arange(5), labels[0]]).sum()
    total, count = loss(given)
    assert count == 5
    assert np.isclose(total, expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([[1, 2], [3]], "pad the rows on the right with -100"),
        (np.zeros((0, 5), int), "none of it 0"),
    ],
    ids=["ragged", "no rows"],
)
def test_labels_without_a_shape_are_refused(labels: Any, message: str) -> None:
    rows = 0 if len(labels) == 0 else 1
    hidden, head = jnp.asarray(np.ones((rows, 5, 4))), jnp.asarray(np.ones((4, 23)))
    with pytest.raises(ValueError, match=message):
        cross_entropy(hidden, labels, lambda x: x @ head)
