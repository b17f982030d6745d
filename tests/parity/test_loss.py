"""The loss of both twins: the same numbers, and the same words for what is refused."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import diy_jax.loss
import diy_torch.loss
from parity.environment import Device, exact
from tests.training_oracles import LossCase, token_losses


def of_torch(case: LossCase, dtype: str, **options: float) -> list[float]:
    hidden, head = (
        torch.from_numpy(array).to(getattr(torch, dtype)).requires_grad_()
        for array in (case.hidden, case.head)
    )
    labels = torch.from_numpy(case.labels)
    total, tokens = diy_torch.loss.cross_entropy(hidden, labels, lambda h: h @ head.T, **options)
    total.backward()
    assert hidden.grad is not None
    assert head.grad is not None
    values = [total.detach(), tokens, *hidden.grad.flatten(), *head.grad.flatten()]
    return [float(value) for value in values]


def of_jax(case: LossCase, dtype: str, **options: float) -> list[float]:
    hidden, head = (jnp.asarray(array, dtype) for array in (case.hidden, case.head))
    (total, tokens), found = jax.value_and_grad(
        lambda hidden, head: diy_jax.loss.cross_entropy(
            hidden, jnp.asarray(case.labels), lambda h: h @ head.T, **options
        ),
        argnums=(0, 1),
        has_aux=True,
    )(hidden, head)
    return [float(value) for value in (total, tokens, *found[0].ravel(), *found[1].ravel())]


@pytest.mark.parametrize(("dtype", "bound"), [("float64", 1e-14), ("float32", 1e-6)])
@pytest.mark.parametrize("chunk_tokens", [4, 1024])
def test_both_are_the_same_function(
    dtype: str, bound: float, chunk_tokens: int, device: Device
) -> None:
    with exact(device):
        case, options = LossCase(1), {"z_loss": 0.01, "chunk_tokens": chunk_tokens}
        one, other = of_torch(case, dtype, **options), of_jax(case, dtype, **options)
    np.testing.assert_allclose(one, other, rtol=bound, atol=bound * 10)


def test_a_large_vocabulary_costs_no_precision(device: Device) -> None:
    """Frequent tokens first, as in a real one: torch's own cross-entropy is 5e-6 off on a CPU."""
    size = 49152
    noise = np.random.default_rng(0).normal(0.0, 4.0, (1, 16, size))
    logits = (noise - np.log(np.arange(1, size + 1))).astype(np.float32)
    labels = logits.argmax(-1).astype(np.int32)
    expected = token_losses(logits, labels, 0.0).sum()
    with exact(device):
        one, _ = diy_torch.loss.cross_entropy(
            torch.from_numpy(logits), torch.from_numpy(labels), lambda h: h
        )
        other, _ = diy_jax.loss.cross_entropy(jnp.asarray(logits), jnp.asarray(labels), lambda h: h)
    assert [float(one), float(other)] == pytest.approx([expected] * 2, rel=3e-7, abs=0)


@pytest.mark.parametrize("label", [-1, -101, 11])
def test_labels_are_refused_with_the_same_words(label: int) -> None:
    case, words = LossCase(), []
    case.labels[1, 2] = label
    for run in (of_torch, of_jax):
        with pytest.raises(ValueError) as caught:
            run(case, "float32", chunk_tokens=4)
        words.append(str(caught.value))
    assert words[0] == words[1]
    assert f"got {label} at (1, 2)" in words[0]


def test_what_is_not_counted_has_one_number() -> None:
    assert diy_torch.loss.IGNORED == diy_jax.loss.IGNORED == -100
