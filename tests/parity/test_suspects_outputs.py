"""Values of which nothing else is known, changed by torch's own functions; and places."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from parity.diagnosis.explain import explain
from tests.parity.test_suspects_evidence import both_sides, evidence_of, first, normal

SHAPE = (2, 5, 8)


def permuted(groups: int) -> Callable[[Any], Any]:
    return lambda a: (
        torch.from_numpy(a).unflatten(-1, (groups, -1)).transpose(-1, -2).flatten(-2).numpy()
    )


def eight_bits(array: Any) -> Any:
    scale = np.abs(array).max() / 127
    levels = np.array([round(float(v / scale)) for v in array.ravel()]).reshape(array.shape)
    return levels * scale


CASES: dict[str, tuple[Callable[[Any], Any], str, str]] = {
    "zero": (np.zeros_like, "output-zero", "is zero"),
    "scaled": (lambda a: a * 0.7, "scale", "0.7 times"),
    "by a root": (lambda a: a * 8**0.5, "scale", "= sqrt(8) times"),
    "sign": (np.negative, "scale", "-1 times"),
    "clipped": (lambda a: torch.from_numpy(a).clamp(-1, 1).numpy(), "clipped", "cut off at 1 "),
    "capped": (lambda a: 2 * torch.tanh(torch.from_numpy(a) / 2).numpy(), "softcap", "2 * tanh"),
    "softmax": (lambda a: torch.from_numpy(a).softmax(-1).numpy(), "softmax", "softmax"),
    "log-softmax": (
        lambda a: torch.from_numpy(a).log_softmax(-1).numpy(),
        "log-softmax",
        "log-softmax",
    ),
    "unit": (
        lambda a: torch.nn.functional.normalize(torch.from_numpy(a), dim=-1).numpy(),
        "normalised",
        "length 1",
    ),
    "rms": (
        lambda a: torch.nn.functional.rms_norm(torch.from_numpy(a), (8,), eps=0.0).numpy(),
        "normalised",
        "mean square of 1",
    ),
    "bias": (lambda a: a + np.arange(8.0), "constant", "one vector everywhere"),
    "table": (lambda a: a + normal(5, 8, seed=3), "position-table", "same table in every row"),
    "channels": (lambda a: a * np.arange(1.0, 9), "channel-scaled", "(1 to 8)"),
    "tokens": (lambda a: a * np.arange(1.0, 6)[:, None], "token-scaled", "(1 to 5)"),
    "flipped": (lambda a: torch.from_numpy(a).flip(-1).numpy(), "flipped", "its channels"),
    "halves": (lambda a: torch.from_numpy(a).roll(4, -1).numpy(), "halves", "its channels"),
    "regrouped": (permuted(2), "heads-regrouped", "4 x 2 in place of 2 x 4"),
    "rounded": (
        lambda a: torch.from_numpy(a).bfloat16().double().numpy(),
        "rounded",
        "rounded to bfloat16",
    ),
    "quantised": (eight_bits, "quantised", "8 bits"),
}
# What has no side, or is known by another name from the other side.
TURNED = {
    "scaled": "1.42857",
    "by a root": "1/sqrt(8)",
    "regrouped": "",
    "channels": "",
    "tokens": "",
    "flipped": "",
    "halves": "",
}


@both_sides
@pytest.mark.parametrize("case", CASES)
def test_a_value_is_changed(case: str, odd: str) -> None:
    change, name, words = CASES[case]
    right = normal(*SHAPE)
    kept = right.copy()
    evidence = evidence_of(right, change(right.copy()), odd)
    if odd == "PyTorch" and case in TURNED:
        first(evidence, name, TURNED[case])
    else:
        first(evidence, name, words, *(() if case in ("bias", "table", "regrouped") else (odd,)))
    np.testing.assert_array_equal(right, kept)


@both_sides
@pytest.mark.parametrize(("shift", "words"), [(1, "behind"), (-1, "ahead of")])
def test_a_value_stands_one_position_off(shift: int, words: str, odd: str) -> None:
    right = normal(*SHAPE)
    evidence = evidence_of(right, np.roll(right, shift, 1), odd)
    turned = {"ahead of": "behind", "behind": "ahead of"}
    said = words if odd == "Flax" else turned[words]
    first(evidence, "shifted", f"one position {said} PyTorch's in Flax")
    ids = np.arange(10).reshape(2, 5) * 7 % 11
    evidence = evidence_of(ids, np.roll(ids, shift, 1), odd)
    first(evidence, "shifted", f"one position {said} PyTorch's in Flax")


@both_sides
@pytest.mark.parametrize(
    ("wrong", "name", "words"),
    [
        (lambda a: a + 2, "shifted", "is +2 off everywhere in Flax"),
        (np.zeros_like, "constant", "is 0 everywhere in {odd}"),
        (lambda a: a[:, ::-1], "flipped", "in the reverse order along its axis 1 in"),
    ],
)
def test_ids_that_are_others(wrong: Any, name: str, words: str, odd: str) -> None:
    ids = np.arange(10).reshape(2, 5) * 7 % 11
    evidence = evidence_of(ids, wrong(ids), odd)
    words = words.format(odd=odd) if odd == "Flax" or name == "constant" else ""
    first(evidence, name, words)
    assert not explain(evidence_of(ids, ids))


@both_sides
def test_dropout_that_is_on(odd: str) -> None:
    torch.manual_seed(0)
    right = normal(*SHAPE)
    wrong = torch.nn.functional.dropout(torch.from_numpy(right), 0.25).numpy()
    share = int((wrong == 0).sum()) / wrong.size
    first(evidence_of(right, wrong, odd), "dropout", f"{share:.0%} of its values zeroed", odd)


@both_sides
def test_a_bias_that_is_left_out(odd: str) -> None:
    right, bias = normal(*SHAPE), normal(8, seed=1)
    evidence = evidence_of(right, right - bias, odd, parameters={"proj.bias": bias})
    words = {"Flax": "left out in Flax", "PyTorch": "added in Flax, not in PyTorch"}[odd]
    first(evidence, "bias-dropped", f"proj.bias looks {words}")


@both_sides
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_differences_as_small_as_rounding(dtype: Any, odd: str) -> None:
    a, b = normal(2, 64, 64), normal(2, 64, 64, seed=1)
    wrong = a.astype(dtype).astype(float) @ b.astype(dtype).astype(float)
    name = "TF32" if dtype is np.float16 else "float32"
    suspect = first(evidence_of(a @ b, wrong, odd), f"precision-{name}")
    assert suspect.after is None


@both_sides
def test_where_a_difference_is(odd: str) -> None:
    right = normal(4, 6, 8)
    wrong = right.copy()
    wrong[1, 2:4, [0, 5]] += normal(2, 2, seed=1)
    words = "only in rows 1 of 4, positions 2 to 3 of 6, channels 0, 5 of 8"
    assert first(evidence_of(right, wrong, odd), "only-in", words).after is None
    wrong = right.copy()
    wrong[3] = np.nan
    assert "rows 3 of 4" in first(evidence_of(right, wrong, odd), "only-in").sentence


@both_sides
def test_a_part_that_is_zero(odd: str) -> None:
    right = normal(4, 6, 8)
    wrong = right.copy()
    wrong[2] = 0
    first(evidence_of(right, wrong, odd), "part-zero", "zero in rows 2 of 4", odd)


def test_unrelated_values_have_no_cause() -> None:
    for shape in ((8,), (6, 8), SHAPE):
        assert not explain(evidence_of(normal(*shape), normal(*shape, seed=1)))


@both_sides
@pytest.mark.parametrize(("centred", "eps"), [(False, 0.0), (False, 1e-5), (True, 1e-3)])
def test_a_value_is_normalised_without_a_weight(centred: bool, eps: float, odd: str) -> None:
    right = normal(*SHAPE) + 1
    x = right - right.mean(-1, keepdims=True) if centred else right
    wrong = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + eps)
    words = f"normalised to a mean square of 1 in {odd}, eps {eps:g}"
    first(evidence_of(right, wrong, odd), "normalised", words, "mean sub" if centred else " is ")


def test_statistics_that_are_rounded() -> None:
    right = normal(*SHAPE)
    wrong = right * (1 + 1e-8 * normal(*SHAPE[:-1], 1, seed=3))
    first(evidence_of(right, wrong), "token-scaled", "its statistics are rounded")


def test_ids_most_of_which_are_off_by_one() -> None:
    ids = np.arange(40).reshape(4, 10)
    found = explain(evidence_of(ids, (ids + 1) % 40))
    assert (found[0].name, found[0].after) == ("shifted", None)
    assert "+1 off in 98% of its values in Flax" in found[0].sentence
