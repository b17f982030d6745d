"""A tensor that is not the same on both sides: a linear layer whose kernel was damaged."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from parity.diagnosis.evidence import Evidence, Parameter
from parity.diagnosis.explain import explain
from parity.tracing.compare.errors import relative_error
from tests.parity.test_suspects_evidence import (
    both_sides,
    evidence_of,
    first,
    link,
    normal,
    ordered,
)

IN, OUT = 16, 12
X = normal(3, IN)


def damaged(right: Any, wrong: Any, odd: str, others: dict[str, Any] | None = None) -> Evidence:
    mine, theirs = ordered(right, wrong, odd)
    return dataclasses.replace(
        evidence_of(X @ right, X @ wrong, odd),
        parameters=[Parameter("proj.weight", link("proj.weight"), mine, theirs)],
        others=[(link(name), array) for name, array in (others or {}).items()],
        with_parameters=lambda changes: relative_error(X @ mine, X @ next(iter(changes.values()))),
    )


def changed(kind: str) -> Any:
    wrong = normal(IN, OUT)
    if kind == "zero":
        wrong[:] = 0
    elif kind == "part zero":
        wrong[:, 4:8] = 0
    elif kind == "repeated":
        wrong[8:12] = wrong[:4]
    elif kind == "exchanged":
        wrong[[2, 5]] = wrong[[5, 2]]
    elif kind == "low rank":
        wrong += normal(IN, 2, seed=1) @ normal(2, OUT, seed=2)
    elif kind == "one value":
        wrong[3, 4] += 1
    elif kind == "pruned":
        wrong[np.abs(wrong) < 0.3] = 0
    return wrong


@both_sides
@pytest.mark.parametrize(
    ("kind", "name", "words", "sided"),
    [
        ("zero", "weight-zero", "proj.weight is all zeros", True),
        ("part zero", "weight-zero", "in outputs 4 to 7 of 12 only", True),
        ("repeated", "rows-repeated", "inputs 0 to 3 again in the place of 8 to 11", True),
        ("exchanged", "rows-exchanged", "has inputs 2 and 5 exchanged", False),
        ("low rank", "weight-low-rank", "rank 2", False),
        ("one value", "weight-differs", "1 of 192 values", False),
        ("pruned", "weight-pruned", "of its values set to zero", True),
    ],
)
def test_what_became_of_a_kernel(kind: str, name: str, words: str, sided: bool, odd: str) -> None:
    evidence = damaged(normal(IN, OUT), changed(kind), odd)
    suspect = first(evidence, name, words)
    assert suspect.after == 0
    if sided:
        assert ("PyTorch" in suspect.sentence) == (odd == "PyTorch")


@both_sides
@pytest.mark.parametrize("transposed", [False, True])
def test_the_values_of_another_tensor(transposed: bool, odd: str) -> None:
    another = normal(OUT, IN, seed=4).T if not transposed else normal(OUT, IN, seed=4)
    wrong = another.T.copy() if transposed else another.copy()
    evidence = damaged(normal(IN, OUT), wrong, odd, {"layers.1.weight": another})
    words = "holds the values of layers.1.weight" + (", transposed" if transposed else "")
    suspect = first(evidence, "weight-of-another", words)
    assert ("PyTorch" in suspect.sentence) == (odd == "PyTorch")


@both_sides
def test_a_kernel_that_is_related_to_nothing(odd: str) -> None:
    for wrong in (normal(IN, OUT, seed=5), normal(IN, OUT) + 1e-3 * normal(IN, OUT, seed=6)):
        suspect = first(damaged(normal(IN, OUT), wrong, odd), explain_name(wrong))
        assert suspect.after == 0


def explain_name(wrong: Any) -> str:
    return "weight-noise" if np.abs(wrong - normal(IN, OUT)).max() < 0.1 else "weight-differs"


def test_a_tensor_that_is_not_to_blame() -> None:
    evidence = damaged(normal(IN, OUT), normal(IN, OUT, seed=5), "Flax")
    innocent = dataclasses.replace(evidence, with_parameters=lambda _: 0.5)
    assert not [s for s in explain(innocent) if s.name.startswith("weight")]
    assert not explain(damaged(normal(IN, OUT), normal(IN, OUT), "Flax"))


@both_sides
def test_values_that_are_no_numbers(odd: str) -> None:
    right, wrong = normal(IN, OUT), normal(IN, OUT)
    wrong[:, 3] = np.nan
    evidence = dataclasses.replace(damaged(right, wrong, odd), with_parameters=lambda changes: 0.0)
    words = f"{IN} values that are no finite numbers in {odd}", f"outputs 3 of {OUT}"
    (suspect,) = explain(evidence)
    assert suspect.name == "weight-not-finite"
    if odd == "Flax":
        assert all(part in suspect.sentence for part in words), suspect.sentence


def test_the_values_of_another_tensor_in_another_order() -> None:
    right, other = normal(IN, OUT), normal(IN, OUT, seed=5)
    wrong = np.concatenate((other[:, 6:], other[:, :6]), 1)
    first(
        damaged(right, wrong, "Flax", {"k_proj.weight": other}),
        "weight-of-another",
        "holds the values of k_proj.weight, and has its outputs with the halves exchanged",
    )


@both_sides
def test_key_heads_that_are_tiled_and_not_repeated(odd: str) -> None:
    """Two heads of 2 for 3 queries each."""
    heads = normal(IN, 2, 2)
    right = np.repeat(heads, 3, axis=1).reshape(IN, OUT) + 1e-3 * normal(IN, OUT, seed=3)
    wrong = right.reshape(IN, 2, 3, 2).swapaxes(1, 2).reshape(IN, OUT)
    first(damaged(right, wrong, odd), "heads-regrouped", "groups of 2 outputs")
