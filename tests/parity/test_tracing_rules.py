"""Rules given by hand, on concrete tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from parity.tracing.match.rules import Link, Rule, RuleError, links_of, usual_operation


def numbers(*shape: int) -> Any:
    return np.arange(np.prod(shape)).reshape(shape)


def link(rule: Rule, torch: dict[str, tuple[int, ...]], flax: dict[str, tuple[int, ...]]) -> Link:
    (found,) = links_of([rule], torch, flax)
    return found


def refused(rules: list[Rule], torch: dict[str, Any], flax: dict[str, Any]) -> str:
    with pytest.raises(RuleError) as caught:
        links_of(rules, torch, flax)
    text = str(caught.value)
    assert "infer_rules(torch_module, flax_variables) prints a table to start from" in text
    return text


@pytest.mark.parametrize(
    ("names", "shape", "target", "expected"),
    [
        # Square: only the names say that the axes are turned.
        (("fc.weight", "fc/kernel"), (4, 4), (4, 4), lambda w: w.T),
        (("wte.weight", "wte/embedding"), (4, 4), (4, 4), lambda w: w),
        (("ln.weight", "ln/scale"), (4,), (4,), lambda w: w),
        (
            ("conv.weight", "conv/kernel"),
            (3, 3, 3, 3),
            (3, 3, 3, 3),
            lambda w: np.transpose(w, (2, 3, 1, 0)),
        ),
        # DenseGeneral: outputs that are heads, and inputs that are.
        (("q.weight", "q/kernel"), (6, 6), (6, 2, 3), lambda w: w.T.reshape(6, 2, 3)),
        (("o.weight", "o/kernel"), (6, 6), (2, 3, 6), lambda w: w.T.reshape(2, 3, 6)),
        (("q.bias", "q/bias"), (6,), (2, 3), lambda w: w.reshape(2, 3)),
    ],
)
def test_the_layouts_of_both_frameworks(
    names: tuple[str, str], shape: Any, target: Any, expected: Any
) -> None:
    weight = numbers(*shape)
    found = link(Rule(*names), {names[0]: shape}, {names[1]: target})
    np.testing.assert_array_equal(found.from_torch(weight), expected(weight))


def test_axes_that_are_given_are_taken() -> None:
    torch, flax = {"a.weight": (4, 4)}, {"a/kernel": (4, 4)}
    found = link(Rule("a.weight", "a/kernel", (0, 1)), torch, flax)
    np.testing.assert_array_equal(found.from_torch(numbers(4, 4)), numbers(4, 4))
    text = refused([Rule("a.weight", "a/kernel", (1, 0))], {"a.weight": (4, 5)}, flax)
    assert "a.weight (4, 5) does not become a/kernel (4, 4) by axes (1, 0)" in text


def test_numbers_stand_for_numbers_wherever_they_are() -> None:
    torch = {f"stage{i}.{j}.weight": (2,) for i in range(2) for j in (0, 10)}
    flax = {f"stage_{i}/norm_{j}/scale": (2,) for i in range(2) for j in (0, 10)}
    rule = Rule("stage{i}.{i}.weight", "stage_{i}/norm_{i}/scale")
    found = {(k.torch, k.flax) for k in links_of([rule], torch, flax)}
    assert found == set(zip(torch, flax, strict=True))


def test_one_tensor_is_split_into_several() -> None:
    rule = Rule("c_attn.weight", ("q/kernel", "k/kernel", "v/kernel"))
    flax = {"q/kernel": (8, 4, 3), "k/kernel": (8, 2, 3), "v/kernel": (8, 2, 3)}
    links = links_of([rule], {"c_attn.weight": (24, 8)}, flax)
    weight = numbers(24, 8)
    for found, (start, stop), heads in zip(
        links, [(0, 12), (12, 18), (18, 24)], (4, 2, 2), strict=True
    ):
        expected = weight[start:stop].T.reshape(8, heads, 3)
        np.testing.assert_array_equal(found.from_torch(weight), expected)


def test_one_tensor_is_split_along_another_axis() -> None:
    """GPT-2's Conv1D holds (in, out)."""
    rule = Rule("c.weight", ("q/kernel", "k/kernel"), axes=(0, 1), axis=1)
    links = links_of([rule], {"c.weight": (5, 6)}, {"q/kernel": (5, 4), "k/kernel": (5, 2)})
    weight = numbers(5, 6)
    np.testing.assert_array_equal(links[0].from_torch(weight), weight[:, :4])
    np.testing.assert_array_equal(links[1].from_torch(weight), weight[:, 4:])


def test_several_tensors_are_joined_to_one() -> None:
    rule = Rule(("q.weight", "k.weight"), "qk/kernel")
    links = links_of([rule], {"q.weight": (4, 5), "k.weight": (2, 5)}, {"qk/kernel": (5, 6)})
    query, key = numbers(4, 5), -numbers(2, 5)
    joined = np.concatenate([query, key]).T
    for found, part in zip(links, (query, key), strict=True):
        np.testing.assert_array_equal(found.from_torch(part), found.from_flax(joined))


def test_all_faults_are_said_at_once() -> None:
    torch = {"a.weight": (2, 3), "b.weight": (4,), "c.weight": (6, 2)}
    flax = {"a/kernel": (3, 2), "b/scale": (5,), "q": (4, 2), "k": (4, 2)}
    rules = [
        Rule("a.weight", "a/kernel"),
        Rule("a.{i}.weight", "a_{i}/kernel"),
        Rule("a.weight", "a/kernel"),
        Rule("b.weight", "b/scale"),
        Rule("b.weight", "nowhere"),
        Rule("c.weight", ("q", "k")),
        Rule(("a.weight", "b.weight"), ("q", "k")),
    ]
    text = refused(rules, torch, flax)
    for fault in (
        "a.{i}.weight matches no tensor of the PyTorch model",
        "two rules match the PyTorch tensor a.weight: a.weight and a.weight",
        "two rules match the Flax tensor a/kernel: a.weight and a.weight",
        "b.weight (4,) and b/scale (5,): no operation leads between them",
        "nowhere is not a tensor of the Flax model",
        "c.weight (6, 2) is not split by q, k: 8 of 6 on axis 0",
        "a.weight + b.weight: either side may have several names, not both",
    ):
        assert fault in text
    assert text.startswith("7 faults in the rules;")


def test_no_rules_are_no_rules() -> None:
    assert "there are none" in refused([], {"a": (1,)}, {"a": (1,)})


def test_sizes_that_differ_have_no_usual_operation() -> None:
    assert usual_operation("a.weight", "a/kernel", (3, 4), (3, 5)) is None


def test_layers_that_lie_in_one_tensor() -> None:
    """In the order of their numbers, whatever the order of their names; each along a named axis."""
    torch = {f"layers.{i}.{name}": (3, 2) for i in (10, 2, 0) for name in ("a.weight", "b")}
    flax = {"layers/a/kernel": (2, 3, 3), "layers/b": (3, 3, 2)}
    rules = [
        Rule("layers.{i}.a.weight", "layers/a/kernel", stack=1),
        Rule("layers.{i}.b", "layers/b", stack=0),
    ]
    found = links_of(rules, torch, flax)
    weights = {name: numbers(3, 2) + 100 * i for i, name in enumerate(sorted(torch))}
    stacks = {
        "layers/a/kernel": np.stack([weights[f"layers.{i}.a.weight"].T for i in (0, 2, 10)], 1),
        "layers/b": np.stack([weights[f"layers.{i}.b"] for i in (0, 2, 10)]),
    }
    assert {link.torch for link in found} == set(torch)
    for link in found:
        expected = link.from_flax(stacks[link.flax])
        np.testing.assert_array_equal(link.from_torch(weights[link.torch]), expected)


def test_one_stack_for_each_number_that_is_left() -> None:
    torch = {f"stage{i}.{j}.w": (2,) for i in range(2) for j in range(3)}
    flax = {f"stage_{i}/w": (3, 2) for i in range(2)}
    found = links_of([Rule("stage{i}.{i}.w", "stage_{i}/w", stack=0)], torch, flax)
    places = {link.torch: (link.flax, link.flax_part) for link in found}
    assert places["stage1.2.w"] == ("stage_1/w", (0, 2, 3))
    assert len(places) == 6


def test_a_tensor_that_is_split_into_several_stacks() -> None:
    torch = {f"h.{i}.qkv.weight": (8, 4) for i in range(3)}
    flax = {"h/q/kernel": (3, 4, 4), "h/k/kernel": (3, 4, 2), "h/v/kernel": (3, 4, 2)}
    found = links_of([Rule("h.{i}.qkv.weight", tuple(flax), stack=0)], torch, flax)
    (value,) = [k for k in found if k.flax == "h/v/kernel" and k.torch == "h.1.qkv.weight"]
    weight = numbers(8, 4)
    np.testing.assert_array_equal(value.from_torch(weight), weight[6:].T[None])
    assert value.flax_part == (0, 1, 2)


@pytest.mark.parametrize(
    ("rule", "flax", "expected"),
    [
        (Rule("l.{i}.w", "l/w", stack=0), (4, 2), "l/w (4, 2) does not hold 3 layers along axis 0"),
        (Rule("l.{i}.w", "l/w", stack=2), (3, 2), "l/w (3, 2) does not hold 3 layers along axis 2"),
        (Rule("l.{i}.w", "l/w", stack=0), (3, 5), "l.0.w (2,) and l/w (5,): no operation leads"),
        (Rule("l.{i}.w", "l/w"), (3, 2), "no operation leads between them"),
        (
            Rule(("l.{i}.w", "l.{i}.u"), "l/w", stack=0),
            (3, 4),
            "l.{i}.w + l.{i}.u: tensors that are joined cannot be stacked as well",
        ),
    ],
)
def test_stacks_that_are_none(rule: Rule, flax: tuple[int, ...], expected: str) -> None:
    torch = {f"l.{i}.{name}": (2,) for i in range(3) for name in ("w", "u")}
    assert expected in refused([rule], torch, {"l/w": flax})
