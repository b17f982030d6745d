"""Rotary tables and caches that are others on one side, made by loops."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from parity.diagnosis.evidence import Evidence, Part, Value
from tests.parity.test_suspects_evidence import both_sides, evidence_of, first, normal, ordered

S, HALF = 9, 4
Angle = Callable[[int, int], float]


def usual(p: int, j: int, theta: float = 100.0) -> float:
    return p * theta ** (-j / HALF)


def table(angle: Angle, function: Callable[[float], float]) -> Any:
    return np.array([[[function(angle(p, j)) for j in range(HALF)] for p in range(S)]])


def rotary(right: tuple[Any, Any], wrong: tuple[Any, Any], odd: str) -> Evidence:
    values = [
        Value(f"args.{i}", *ordered(a, b, odd))
        for i, (a, b) in enumerate(zip(right, wrong, strict=True))
    ]
    evidence = evidence_of(normal(2), normal(2, seed=1), stage="layers.0")
    target = max(values, key=lambda value: value.error)
    return dataclasses.replace(evidence, target=target, parts=[Part("layers.0", values, [])])


CASES: dict[str, tuple[Angle, str, str]] = {
    "theta": (lambda p, j: usual(p, j, 500.0), "rope-theta", "theta is"),
    "scaled": (lambda p, j: usual(p, j) / 2, "rope-scaled", "0.5 times"),
    "ahead": (lambda p, j: usual(p + 1, j), "position-ahead", "one too high in Flax"),
    "backwards": (lambda p, j: -usual(p, j), "rope-backwards", "opposite signs"),
    "swapped": (lambda p, j: math.pi / 2 - usual(p, j), "rope-swapped", "cos and sin"),
    "reversed": (lambda p, j: usual(p, HALF - 1 - j), "rope-reversed", "opposite orders"),
    "constant": (lambda p, j: usual(3, j), "rope-constant", "the same at all positions in {odd}"),
    "partial": (lambda p, j: usual(p, j) * (j < 2), "rope-partial", "2 of 4 frequencies are 0 in"),
    "offset": (lambda p, j: usual(p + 4, j), "positions", "off by +4 in Flax"),
}


@both_sides
@pytest.mark.parametrize("case", CASES)
def test_angles_are_others(case: str, odd: str) -> None:
    angle, name, words = CASES[case]
    right, wrong = ([table(a, f) for f in (math.cos, math.sin)] for a in (usual, angle))
    if odd == "PyTorch" and case in ("scaled", "ahead", "offset"):
        name = {"ahead": "position-behind"}.get(case, name)
        words = {"scaled": "2 times", "ahead": "too low in Flax", "offset": "-4 in Flax"}[case]
    suspect = first(rotary(tuple(right), tuple(wrong), odd), name, words.format(odd=odd))
    if case == "theta":
        assert f"500 in {odd}" in suspect.sentence
        assert "100 in" in suspect.sentence


@both_sides
def test_tables_that_are_rounded(odd: str) -> None:
    right = tuple(table(usual, f) for f in (math.cos, math.sin))
    wrong = tuple(a.astype(np.float32).astype(float) for a in right)
    first(rotary(right, wrong, odd), "rounded", f"rounded to float32 in {odd}")


# Caches are (B, K, T, H).


def cache(odd: str, change: Callable[[Any, Any], Any]) -> Evidence:
    """Two tokens are written, at slots 3 and 4; the rest of the six is as it was."""
    old, value = (np.zeros((2, 2, 6, 4)) for _ in range(2))
    old[:, :, :3] = normal(2, 2, 3, 4)
    new = old.copy()
    new[:, :, 3:5] = normal(2, 2, 2, 4, seed=1)
    value[:, :, :5] = normal(2, 2, 5, 4, seed=2)
    keys = Value("cache.key", *ordered(new, change(old.copy(), new.copy()), odd))
    evidence = evidence_of(new, new)
    return dataclasses.replace(
        evidence,
        target=keys,
        inputs=[Value("cache.key", old, old)],
        outputs=[keys, Value("cache.value", value, value)],
    )


def shifted(old: Any, new: Any) -> Any:
    old[:, :, 4:6] = new[:, :, 3:5]
    return old


def spoilt(old: Any, new: Any) -> Any:
    new[:, :, 1] = 0
    return new


def backwards(old: Any, new: Any) -> Any:
    new[:, :, [3, 4]] = new[:, :, [4, 3]]
    return new


def padding(old: Any, new: Any) -> Any:
    new[:, :, 5] = 1.5
    return new


@both_sides
@pytest.mark.parametrize(
    ("change", "name", "words"),
    [
        (lambda old, new: old, "cache-position", "not written at all in {odd}"),
        (shifted, "cache-position", "[4, 5] in {odd}"),
        (spoilt, "cache-spoilt", "keys of earlier tokens are zeroed in {odd} (row 0: [1]"),
        (padding, "cache-padding-written", "to other slots too in {odd}"),
        (backwards, "cache-reversed", "the reverse order in {odd}"),
        (lambda old, new: new + (new - old), "cache-scaled", "2 times"),
        (
            lambda old, new: np.where(new == old, old, new.astype(np.float16).astype(float)),
            "cache-rounded",
            "rounded to float16 in {odd}",
        ),
        (lambda old, new: np.where(new == old, old, new[::-1]), "cache-rows", "another row"),
        (lambda old, new: np.where(new == old, old, new[:, ::-1]), "cache-heads", "heads in the"),
    ],
)
def test_what_a_cache_holds(change: Any, name: str, words: str, odd: str) -> None:
    said = words.format(odd=odd)
    if odd == "PyTorch" and name in ("cache-reversed", "cache-rows", "cache-heads"):
        said = said.replace("PyTorch", "Flax")  # the same the other way round
    if odd == "PyTorch" and name == "cache-scaled":
        said = "0.5 times"
    if odd == "PyTorch" and name == "cache-padding-written":  # or Flax writes too little
        name, said = "cache-position", "[3, 4] in Flax, [3, 4, 5] in PyTorch"
    first(cache(odd, change), name, said)
