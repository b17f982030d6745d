"""What is pooled, reduced, activated or flattened otherwise on one side, by torch's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional

from parity.diagnosis.explain import explain
from tests.parity.test_suspects_evidence import both_sides, evidence_of, first, normal

Tensor = torch.Tensor
Function = Callable[[Tensor, Tensor], Tensor]


def pooled(x: Tensor, **how: Any) -> Tensor:
    """Windows of 3 at stride 2, of (B, H, W, C)."""
    return functional.avg_pool2d(x.movedim(-1, 1), 3, 2, 1, **how).movedim(1, -1)


def largest(x: Tensor) -> Tensor:
    return functional.max_pool2d(x.movedim(-1, 1), 3, 2, 1).movedim(1, -1)


def mean(x: Tensor) -> Tensor:
    return x.mean((1, 2))


# What PyTorch does with x and the output y of a part, what Flax does, and what is said of it.
CASES: dict[str, tuple[Function, Function, str, str]] = {
    "padding of a pool": (
        lambda x, y: pooled(y),
        lambda x, y: pooled(y, count_include_pad=False),
        "padding 1 (not counted) in {odd}",
        "padding 1 (counted) in {usual}",
    ),
    "pool": (
        lambda x, y: pooled(y),
        lambda x, y: largest(y),
        "max pooling of windows of 3 at stride 2, padding 1 in {odd}",
        "average pooling of windows of 3 at stride 2, padding 1 (counted) in {usual}",
    ),
    "mean": (
        lambda x, y: mean(y),
        lambda x, y: y.amax((1, 2)),
        "the maximum over positions in {odd}",
        "the mean over positions in {usual}",
    ),
    "activation and sum": (
        lambda x, y: mean(functional.relu(x + y)),
        lambda x, y: mean(x + functional.relu(y)),
        "relu of part, + x in {odd}",
        "relu of (part + x) in {usual}",
    ),
    "all at once": (
        lambda x, y: mean(pooled(functional.silu(x + y))),
        lambda x, y: mean(largest(functional.silu(x + y))),
        "max pooling of windows of 3",
        "average pooling of windows of 3",
    ),
    "flattened": (
        lambda x, y: y.movedim(-1, 1).flatten(1),
        lambda x, y: y.flatten(1),
        "flattened, channels last in {odd}",
        "flattened, channels first in {usual}",
    ),
}


@both_sides
@pytest.mark.parametrize("case", CASES)
def test_a_value_is_made_otherwise(case: str, odd: str) -> None:
    right, wrong, *words = CASES[case]
    x, y = normal(2, 6, 7, 5), normal(2, 6, 7, 5, seed=1)
    sides = [f(torch.from_numpy(x), torch.from_numpy(y)).numpy() for f in (right, wrong)]
    known: dict[str, Any] = {"inputs": {"args.0": x}, "before": {"part": y}, "stage": "head"}
    usual = "PyTorch" if odd == "Flax" else "Flax"
    said = [text.format(odd=odd, usual=usual) for text in words]
    suspect = first(evidence_of(*sides, odd, **known), "made-otherwise", *said)
    assert suspect.after is not None
    assert not explain(evidence_of(sides[0], sides[0], odd, **known))


@both_sides
@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda y: y[:, -1], "the last position in"),
        (lambda y: y[:, 2], "position 2 in"),
        (lambda y: y.mean(1), "the mean over positions in"),
        (lambda y: y.sum(1), "the sum over positions in"),
    ],
)
def test_another_position_is_taken(wrong: Callable[[Any], Any], words: str, odd: str) -> None:
    y = normal(2, 6, 5)
    usual = "PyTorch" if odd == "Flax" else "Flax"
    evidence = evidence_of(y[:, 0], wrong(y), odd, before={"layers": y}, stage="pooler")
    first(evidence, "made-otherwise", f"{words} {odd}", f"position 0 in {usual}")


def test_what_neither_side_can_be_known_by() -> None:
    y = normal(2, 6, 5)
    evidence = evidence_of(y[:, 0], normal(2, 5, seed=3), before={"layers": y}, stage="pooler")
    assert "made-otherwise" not in {s.name for s in explain(evidence)}
