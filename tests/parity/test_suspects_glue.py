"""Activations, gates and sums that are others on one side, by torch's own functions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional

from parity.diagnosis.explain import explain
from tests.parity.test_suspects_evidence import both_sides, evidence_of, first, normal

SHAPE = (2, 5, 8)
Function = Callable[[torch.Tensor], torch.Tensor]
ACTIVATIONS: dict[str, Function] = {
    "silu": functional.silu,
    "gelu (exact)": functional.gelu,
    "gelu (tanh)": lambda x: functional.gelu(x, approximate="tanh"),
    "gelu (sigmoid)": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": functional.relu,
    "squared relu": lambda x: functional.relu(x).square(),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softplus": lambda x: functional.softplus(x, threshold=1000),
    "elu": functional.elu,
    "leaky relu": functional.leaky_relu,
    "mish": functional.mish,
    "relu6": functional.relu6,
    "leaky relu (0.1)": lambda x: functional.leaky_relu(x, 0.1),
    "leaky relu (0.2)": lambda x: functional.leaky_relu(x, 0.2),
    "selu": functional.selu,
    "celu (0.5)": lambda x: functional.celu(x, 0.5),
    "softsign": functional.softsign,
    "squared": torch.square,
    "sine": torch.sin,
    "absolute value": torch.abs,
    "hard sigmoid": functional.hardsigmoid,
    "log sigmoid": functional.logsigmoid,
    "exponential": torch.exp,
    "hard swish": functional.hardswish,
    "no activation": lambda x: x,
}


def apply(function: Function, *arrays: Any) -> Any:
    return function(*(torch.from_numpy(a) for a in arrays)).numpy()


@both_sides
@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("gated", [False, True])
def test_an_activation_is_another(name: str, gated: bool, odd: str) -> None:
    gate, up = normal(*SHAPE) * 4, normal(*SHAPE, seed=1)
    usual = "gelu (tanh)" if name == "silu" else "silu"
    right, wrong = (apply(ACTIVATIONS[n], gate) * (up if gated else 1) for n in (usual, name))
    before = {"gate_proj": gate, "up_proj": up} if gated else {"fc": gate}
    evidence = evidence_of(right, wrong, odd, before=before, stage="down_proj")
    said = f"{name} of {'gate_proj, times up_proj' if gated else 'fc'} in {odd}"
    said = said.removeprefix("no activation of ")
    suspect = first(evidence, "activation", "what goes into down_proj is")
    assert said in suspect.sentence


GATES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "silu of up, times gate": lambda g, u: functional.silu(u) * g,
    "silu of gate, times 1 + up": lambda g, u: functional.silu(g) * (u + 1),
    "silu of gate, plus up": lambda g, u: functional.silu(g) + u,
    "silu of gate, times silu of up": lambda g, u: functional.silu(g) * functional.silu(u),
    "swish (beta 1.5) of gate, times up": lambda g, u: g * torch.sigmoid(1.5 * g) * u,
    "silu of the product of gate and up": lambda g, u: functional.silu(g * u),
    "silu of gate, cut off at 5, times up": lambda g, u: functional.silu(g).clamp(-5, 5) * u,
    "silu of gate, which is cut off at 7 above, times up": (
        lambda g, u: functional.silu(g.clamp(max=7)) * u
    ),
}


@both_sides
@pytest.mark.parametrize("said", GATES)
def test_a_gate_is_another(said: str, odd: str) -> None:
    gate, up = normal(*SHAPE) * 5, normal(*SHAPE, seed=1)
    right, wrong = (
        apply(lambda g, u: functional.silu(g) * u, gate, up),
        apply(GATES[said], gate, up),
    )
    evidence = evidence_of(right, wrong, odd, before={"gate": gate, "up": up}, stage="down")
    suspect = first(evidence, "activation", f"{said} in {odd}", "silu of gate, times up in ")
    assert suspect.after is not None


@both_sides
@pytest.mark.parametrize(
    ("wrong", "name", "words"),
    [
        ((1, 0), "sum", "x in "),
        ((0, 1), "sum", "attn in "),
        ((2, 1), "sum", "2 x + attn in "),
        ((1, 0.5), "sum", "x + 0.5 attn in "),
        ((1, -1), "sum", "x + -1 attn in "),
    ],
)
def test_a_sum_is_another(wrong: tuple[float, float], name: str, words: str, odd: str) -> None:
    x, attn = normal(*SHAPE), normal(*SHAPE, seed=1)
    one, other = (a * x + b * attn for a, b in ((1, 1), wrong))
    evidence = evidence_of(
        one, other, odd, inputs={"args.0": x}, before={"attn": attn}, stage="mlp"
    )
    usual = "PyTorch" if odd == "Flax" else "Flax"
    first(evidence, name, words + odd, f"x + attn in {usual}")


@both_sides
def test_a_table_without_rows_is_left_out(odd: str) -> None:
    word, table = normal(*SHAPE), normal(*SHAPE[1:], seed=1)
    evidence = evidence_of(
        word + table, word, odd, before={"word": word, "position": table}, stage="norm"
    )
    usual = "PyTorch" if odd == "Flax" else "Flax"
    first(evidence, "sum", f"word in {odd}", f"word + position in {usual}")


@both_sides
def test_an_input_that_is_scaled(odd: str) -> None:
    x = normal(*SHAPE)
    evidence = evidence_of(x, 8**0.5 * x, odd, inputs={"args.0": x}, stage="layer")
    first(evidence, "scale", f"2.828 x in {odd}")


@both_sides
def test_what_is_no_sum_of_what_is_known(odd: str) -> None:
    x, attn, other = (normal(*SHAPE, seed=i) for i in range(3))
    evidence = evidence_of(
        x + attn, other, odd, inputs={"args.0": x}, before={"attn": attn}, stage="mlp"
    )
    usual = "PyTorch" if odd == "Flax" else "Flax"
    words = f"is x + attn in {usual}, and no sum of such values in {odd}"
    assert first(evidence, "other-input", words).after is None


def test_a_part_that_is_called_less_often() -> None:
    evidence = evidence_of(normal(*SHAPE), normal(*SHAPE, seed=1))
    for times, said in (((2, 1), "once in Flax, twice"), ((0, 3), "3 times in Flax, never")):
        calls = dataclasses.replace(evidence, calls=[("norm", *times)])
        assert first(calls, "called-otherwise", f"norm is called {said} in PyTorch").after is None


def test_healthy_sums_and_gates() -> None:
    gate, up = normal(*SHAPE), normal(*SHAPE, seed=1)
    right = apply(lambda g, u: functional.silu(g) * u, gate, up)
    assert not explain(evidence_of(right, right, before={"gate": gate, "up": up}, stage="down"))


@both_sides
def test_a_known_value_is_missing_from_something_unknown(odd: str) -> None:
    """As where a shared expert is left out: what the others give is not a part."""
    shared, unknown = normal(*SHAPE), normal(*SHAPE, seed=1)
    right, wrong = unknown + shared, unknown
    evidence = evidence_of(right, wrong, odd, before={"shared": shared})
    more, fewer = ("PyTorch", "Flax") if odd == "Flax" else ("Flax", "PyTorch")
    first(evidence, "sum", f"has shared added in {more}, not in {fewer}")


def test_a_sum_is_said_in_the_fewest_values() -> None:
    x, a = normal(*SHAPE), normal(*SHAPE, seed=1)
    before = {"x": x, "a": a, "both": x + a, "none": 0 * x, "noise": normal(*SHAPE, seed=2)}
    suspect = first(evidence_of(x + a, x, before=before), "sum")
    assert suspect.sentence == "the output is x in Flax, both in PyTorch"


def test_many_values_take_no_longer_than_a_moment() -> None:
    values = {f"layers.{i}": normal(*SHAPE, seed=i) for i in range(40)}
    right = values["layers.3"] + values["layers.30"]
    suspect = first(evidence_of(right, values["layers.3"], before=values), "sum")
    assert suspect.sentence == "the output is layers.3 in Flax, layers.3 + layers.30 in PyTorch"


def test_a_tensor_that_one_side_alone_has_is_said() -> None:
    evidence = dataclasses.replace(
        evidence_of(normal(*SHAPE), normal(*SHAPE, seed=1)),
        torch_only={"lm_head.weight": normal(4, 5), "inv_freq": normal(3)},
    )
    suspect = first(evidence, "tensor-alone")
    assert suspect.sentence == "lm_head.weight of PyTorch has no partner in Flax"
