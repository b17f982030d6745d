"""Masks that hide something else on one side: all of them are made by loops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from parity.diagnosis.explain import explain
from tests.parity.test_suspects_evidence import both_sides, evidence_of, first

B, S, T = 2, 6, 9
Rule = Callable[[int, int, int], bool]


def mask(rule: Rule, queries: int = S, keys: int = S) -> Any:
    rows = [[[rule(b, i, j) for j in range(keys)] for i in range(queries)] for b in range(B)]
    return np.array(rows)


def causal(_: int, i: int, j: int) -> bool:
    return j <= i


def padded(b: int, i: int, j: int) -> bool:
    """The first row has no padding, the second two tokens on the left."""
    return j <= i and (b == 0 or j >= 2 or i == j)


CASES: dict[str, tuple[Rule, Rule, str, str]] = {
    "ahead": (causal, lambda b, i, j: j <= i + 1, "mask-one-ahead", "one key of the future"),
    "nothing": (causal, lambda b, i, j: True, "mask-left-out", "hides nothing"),
    "inverted": (causal, lambda b, i, j: j > i, "mask-inverted", "the other way round"),
    "inverted but own": (causal, lambda b, i, j: j >= i, "mask-inverted", "own key"),
    "own": (causal, lambda b, i, j: j == i, "mask-diagonal", "its own key only"),
    "swapped": (padded, lambda b, i, j: padded(b, j, i), "mask-transposed", "swapped"),
    "other row": (padded, causal, "mask-of-another-row", "that of the first row"),
    "last row": (padded, lambda b, i, j: padded(1, i, j), "mask-of-another-row", "last row"),
    "window": (causal, lambda b, i, j: 0 <= i - j < 3, "mask-window", "window of 3 keys"),
    "keys": (causal, lambda b, i, j: j <= i and j not in (1, 3), "mask-keys-hidden", "keys 1, 3"),
    "keys but own": (
        causal,
        lambda b, i, j: j <= i and (j != 1 or i == j),
        "mask-keys-hidden",
        "own kept",
    ),
    "future too": (
        lambda b, i, j: padded(b, i, j) and (i < 4 or j != 1),
        lambda b, i, j: (padded(b, i, j) and (i < 4 or j != 1)) or j > i,
        "mask-not-causal",
        "the future too",
    ),
    "documents": (
        lambda b, i, j: j <= i and i // 3 == j // 3,
        causal,
        "mask-causal-only",
        "only causal",
    ),
    "prefix": (lambda b, i, j: j <= i or j < 3, causal, "mask-prefix", "up to key 2"),
}


# The same the other way round.
SAME = {"inverted", "inverted but own", "swapped"}


@both_sides
@pytest.mark.parametrize("case", CASES)
def test_what_a_mask_hides(case: str, odd: str) -> None:
    rule, other, name, words = CASES[case]
    if case == "other row" and odd == "PyTorch":
        name, words = "mask-keys-hidden", "hides keys 0, 1"  # Flax hides what PyTorch shows
        suspect = first(evidence_of(mask(rule), mask(other), odd), name, words, "in Flax")
        return
    suspect = first(
        evidence_of(mask(rule), mask(other), odd), name, words, *([odd] if case not in SAME else [])
    )
    assert suspect.after == 0
    assert not explain(evidence_of(mask(rule), mask(rule), odd))


@both_sides
def test_a_mask_that_hides_each_query_from_itself(odd: str) -> None:
    right = mask(lambda b, i, j: padded(b, i, j) or j == 0)
    wrong = mask(lambda b, i, j: (j + 1 < S and (padded(b, i, j + 1) or j == -1)) or j == 0 == i)
    found = first(evidence_of(right, wrong, odd), "mask-one-behind", "own key", odd)
    assert found.after == 0


@both_sides
@pytest.mark.parametrize("where", ["top-left", "bottom-right"])
def test_a_mask_of_fewer_queries_than_keys(where: str, odd: str) -> None:
    """Queries come after `T - S` keys that are cached; in one row after fewer."""

    def right(b: int, i: int, j: int) -> bool:
        return j <= i + 2 - b

    wrong = {"top-left": causal, "bottom-right": lambda b, i, j: j <= i + T - S}[where]
    evidence = evidence_of(mask(right, S, T), mask(wrong, S, T), odd)
    first(evidence, f"mask-{where}", where, odd)


@both_sides
def test_unrelated_masks_are_counted(odd: str) -> None:
    generator = np.random.default_rng(0)
    right, wrong = (generator.random((B, S, S)) < 0.5 for _ in range(2))
    more, fewer = 0, 0
    for a, b in zip(right.ravel(), wrong.ravel(), strict=True):
        more, fewer = more + (b and not a), fewer + (a and not b)
    found = first(evidence_of(right, wrong, odd), "mask-differs")
    assert found.after is None
    ours, theirs = (more, fewer) if odd == "Flax" else (fewer, more)
    assert f"of Flax shows {ours} pairs of query and key that PyTorch hides" in found.sentence
    assert f"hides {theirs} that it shows" in found.sentence
