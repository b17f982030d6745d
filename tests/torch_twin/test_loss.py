"""The chunked loss against its formula in float64, and that all logits never exist at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from diy_torch.loss import cross_entropy
from tests.training_oracles import IGNORED, LossCase

CHUNKS = [1, 4, 20, 21, 1000]


def leaves(case: LossCase, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    arrays = torch.from_numpy(case.hidden).to(dtype), torch.from_numpy(case.head).to(dtype)
    return (*(array.requires_grad_() for array in arrays), torch.from_numpy(case.labels))


@pytest.mark.parametrize("z_loss", [0.0, 0.01])
@pytest.mark.parametrize("chunk_tokens", CHUNKS)
def test_it_is_the_formula_and_so_are_its_gradients(chunk_tokens: int, z_loss: float) -> None:
    case = LossCase()
    hidden, head, labels = leaves(case)
    total, tokens = cross_entropy(
        hidden, labels, lambda h: h @ head.T, z_loss=z_loss, chunk_tokens=chunk_tokens
    )
    total.backward()
    assert int(tokens) == case.counted
    assert total.item() == pytest.approx(case.loss(z_loss), rel=1e-14)
    for leaf, expected in zip((hidden, head), case.gradients(z_loss), strict=True):
        assert leaf.grad is not None
        np.testing.assert_allclose(leaf.grad.numpy(), expected, rtol=1e-12, atol=1e-13)


def test_it_is_the_loss_of_torch() -> None:
    hidden, head, labels = leaves(LossCase())
    total, _ = cross_entropy(hidden, labels, lambda h: h @ head.T, chunk_tokens=4)
    logits = (hidden @ head.T).flatten(0, 1)
    wanted = functional.cross_entropy(logits, labels.flatten().long(), reduction="sum")
    assert total.item() == pytest.approx(wanted.item(), rel=1e-14)


def test_its_gradient_is_that_of_finite_differences() -> None:
    hidden, head, labels = leaves(LossCase())

    def loss(hidden: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
        return cross_entropy(hidden, labels, lambda h: h @ head.T, z_loss=0.1, chunk_tokens=8)[0]

    assert torch.autograd.gradcheck(loss, (hidden, head))


def test_what_is_not_counted_has_no_influence_even_where_it_is_not_finite() -> None:
    case = LossCase()
    case.hidden[case.labels == IGNORED] = np.nan
    hidden, head, labels = leaves(case)
    total, _ = cross_entropy(hidden, labels, lambda h: h @ head.T, z_loss=0.1, chunk_tokens=4)
    total.backward()
    assert total.item() == pytest.approx(LossCase().loss(0.1), rel=1e-14)
    assert hidden.grad is not None
    assert head.grad is not None
    assert hidden.grad.numpy()[case.labels == IGNORED].tolist() == [[0.0] * 5] * (21 - case.counted)
    expected = LossCase().gradients(0.1)[1]
    np.testing.assert_allclose(head.grad.numpy(), expected, rtol=1e-12, atol=1e-13)


def test_nothing_counted_is_zero() -> None:
    hidden, head, labels = leaves(LossCase())
    labels = torch.full_like(labels, IGNORED)
    total, tokens = cross_entropy(hidden, labels, lambda h: h @ head.T, chunk_tokens=4)
    total.backward()
    assert (total.item(), int(tokens)) == (0.0, 0)
    assert hidden.grad is not None
    assert not hidden.grad.any()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_sum_is_in_float32_and_precise_where_the_model_is_sure(dtype: str) -> None:
    """exp(-10). logsumexp(z) - z[label] would be off by up to 4e-6, half a unit of 80."""
    logits = torch.tensor([[[80.0, 70.0]]], dtype=getattr(torch, dtype))
    total, _ = cross_entropy(logits, torch.tensor([[0]]), lambda h: h)
    assert total.dtype == torch.float32
    assert total.item() == pytest.approx(np.log1p(np.exp(-10.0)), rel=0, abs=1e-7)


def test_the_gradient_of_a_head_that_is_cast_sums_in_float32_over_the_chunks() -> None:
    head = torch.zeros(2, 1, requires_grad=True)
    hidden = torch.ones(1, 600, 1, dtype=torch.bfloat16)
    labels = torch.zeros(1, 600, dtype=torch.int32)
    total, _ = cross_entropy(hidden, labels, lambda h: h @ head.T.to(h.dtype), chunk_tokens=1)
    total.backward()
    assert head.grad is not None
    assert head.grad.flatten().tolist() == [-300.0, 300.0]  # in bfloat16 it would stay at 128


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(found):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return found


def largest(chunk_tokens: int) -> int:
    hidden = torch.ones(4, 16, 8, requires_grad=True)
    head = torch.ones(50, 8, requires_grad=True)
    labels = torch.zeros(4, 16, dtype=torch.int32)
    with Largest() as seen:
        total, _ = cross_entropy(
            hidden, labels, lambda h: h @ head.T, z_loss=0.1, chunk_tokens=chunk_tokens
        )
        total.backward()
    return seen.elements


def test_the_logits_of_one_chunk_are_the_largest_tensor_in_both_directions() -> None:
    assert largest(chunk_tokens=16) == 16 * 50
    assert largest(chunk_tokens=64) == 64 * 50


def test_no_logits_are_kept_for_the_backward_pass() -> None:
    hidden, head, labels = leaves(LossCase())
    kept: list[int] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        cross_entropy(hidden, labels, lambda h: h @ head.T, z_loss=0.1, chunk_tokens=5)
    assert max(kept, default=0) < 5 * 11


@pytest.mark.parametrize("label", [-1, 11, -99])
def test_other_labels_are_refused(label: int) -> None:
    hidden, head, labels = leaves(LossCase())
    labels[2, 3] = label
    with pytest.raises(ValueError, match=rf"labels must lie in 0\.\.10 .* got {label} at \(2, 3\)"):
        cross_entropy(hidden, labels, lambda h: h @ head.T, chunk_tokens=4)


def test_a_chunk_holds_a_token() -> None:
    hidden, head, labels = leaves(LossCase())
    with pytest.raises(ValueError, match="chunk_tokens must be at least 1, got 0"):
        cross_entropy(hidden, labels, lambda h: h @ head.T, chunk_tokens=0)


@pytest.mark.parametrize(
    "kind", [np.int8, np.uint8, np.uint16, np.uint32, np.uint64, np.dtype(">i4"), list]
)
@pytest.mark.parametrize("on_device", [True, False])
def test_labels_may_be_any_integers(kind: Any, on_device: bool) -> None:
    """As an unsigned integer of 8 bits -100 is 156, which may be a token."""
    label = 100 if kind == np.int8 else 156
    labels = np.array([[1, label, 5, 7, 9]])
    rng = np.random.default_rng(0)
    hidden, head = (
        torch.from_numpy(rng.normal(size=(1, 5, 4))),
        torch.from_numpy(rng.normal(size=(4, 300))),
    )

    def loss(labels: Any) -> tuple[float, int]:
        total, count = cross_entropy(hidden, labels, lambda x: x @ head, chunk_tokens=2)
        return float(total), int(count)

    given = labels.tolist() if kind is list else labels.astype(kind)
    if on_device and kind is not list and given.dtype.isnative:
        given = torch.from_numpy(given)
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
    hidden, head = torch.from_numpy(np.ones((rows, 5, 4))), torch.from_numpy(np.ones((4, 23)))
    with pytest.raises(ValueError, match=message):
        cross_entropy(hidden, labels, lambda x: x @ head)
