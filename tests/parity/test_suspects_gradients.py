"""Gradients that are others on one side, of torch's own backward pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from parity.diagnosis.evidence import Value
from parity.diagnosis.values.gradients import gradient_suspects, missing_gradient
from tests.parity.test_suspects_evidence import both_sides, normal, only, ordered

BOUND = 1e-9


def gradient(scale: float = 1.0) -> Any:
    """Of a square kernel, by the mean of what it gives."""
    kernel = torch.from_numpy(normal(6, 6)).requires_grad_()
    (torch.tanh(torch.from_numpy(normal(4, 6, seed=1)) @ kernel).square().sum() * scale).backward()
    assert kernel.grad is not None
    return kernel.grad.numpy()


def clipped(array: Any) -> Any:
    return torch.from_numpy(array).clamp(-0.5, 0.5).numpy()


@both_sides
@pytest.mark.parametrize(
    ("change", "name", "words", "turned"),
    [
        (np.zeros_like, "gradient-missing", "no gradient in Flax", "no gradient in PyTorch"),
        (lambda a: a * 4, "gradient-scaled", "is 4 times PyTorch's", "is 0.25 times PyTorch's"),
        (lambda a: a.T.copy(), "gradient-transposed", "transposed", "transposed"),
        (clipped, "gradient-clipped", "clipped to 0.5 in Flax", ""),
    ],
)
def test_a_gradient_is_changed(change: Any, name: str, words: str, turned: str, odd: str) -> None:
    right = gradient()
    assert np.abs(right).max() > 0.5
    value = Value("kernel", *ordered(right, change(right), odd))
    found = gradient_suspects([("kernel", value)], {}, BOUND)
    if odd == "PyTorch" and not turned:
        assert any("in PyTorch" in s.sentence and "0.5" in s.sentence for s in found)
        return
    suspect = found[0]
    assert suspect.name == name
    assert (words if odd == "Flax" else turned) in suspect.sentence
    assert suspect.before == value.error
    assert suspect.after is not None
    assert suspect.after <= BOUND


@both_sides
def test_a_part_of_a_sum_is_missing(odd: str) -> None:
    skip, branch = normal(2, 5), normal(2, 5, seed=1)
    known = {"the output": Value("0", skip, skip), "the norm": Value("0", branch, branch)}
    value = Value("x", *ordered(skip + branch, skip, odd))
    found = {s.name: s.sentence for s in gradient_suspects([("x", value)], known, BOUND)}
    both, alone = "the output + the norm", "the output"
    one, other = (alone, both) if odd == "Flax" else (both, alone)
    assert found["gradient-sum"] == (
        f"the gradient of x is that of {one} in Flax, of {other} in PyTorch"
    )


def test_healthy_unrelated_and_odd_gradients() -> None:
    right = gradient()
    healthy, other = Value("a", right, right), Value("b", right, normal(6, 6, seed=3))
    assert not gradient_suspects([("a", healthy)], {}, BOUND)
    suspect = only(gradient_suspects([("a", healthy), ("b", other)], {"c": healthy}, BOUND))
    assert suspect.name == "gradient-differs"
    assert suspect.sentence == "the derivative is another by b, and the same by a"
    assert suspect.after is None
    for wrong in (right * np.nan, right * 1e300, np.where(right > 0, np.inf, right)):
        for sides in ((right, wrong), (wrong, right)):
            found = gradient_suspects([("a", Value("a", *sides))], {"c": healthy}, BOUND)
            assert not any("nan" in s.sentence for s in found)
    assert missing_gradient("x", "Flax", 1.0).sentence == "x has no gradient in Flax: detached"
