"""Curves of the report: which tensor belongs to which point, and the worst of several models."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from parity.batch import Batch
from parity.check.compare import worst_tensor
from parity.check.curves import (
    Curve,
    layer_curves,
    layer_name,
    loss_curves,
    position_curve,
    worst_of,
)
from parity.check.measures import relative_l2


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("model.embed_tokens", "embed"),
        ("model.embed_tokens.weight", "embed"),
        ("model.layers.12.attention.q_proj", "12"),
        ("model.layers.3", "3"),
        ("model.layers.3.mlp.up_proj.weight", "3"),
        ("model.norm", "norm"),
        ("model", "norm"),
        ("model.norm.weight", "norm"),
        ("lm_head.weight", "head"),
        ("logits", "logits"),
    ],
)
def test_every_tensor_has_a_place(name: str, place: str) -> None:
    assert layer_name(name) == place


def test_layers_are_pooled_in_the_order_of_the_model_with_the_logits_last() -> None:
    ones, names = np.ones(4), ["model.embed_tokens", "model.layers.0", "model.layers.0.attention"]
    truth = dict.fromkeys(names, ones)
    found = {names[0]: ones, names[1]: ones * 1.3, names[2]: ones * 1.4}
    checks = [
        worst_tensor("logits", {"logits": ones}, {"logits": ones * 1.2}, 1, "float64", "cpu"),
        worst_tensor("blocks", truth, found, 1, "float64", "cpu"),
        worst_tensor("gradients", truth, found, 1, "float64", "cpu"),
        worst_tensor("optimizer", truth, found, 1, "float64", "cpu"),
    ]
    forward, backward = layer_curves(checks)
    assert (forward.figure, backward.figure) == ("forward by layer", "backward by layer")
    assert forward.x == ("embed", "0", "logits")
    assert backward.x == ("embed", "0")
    pooled = np.sqrt((0.3**2 + 0.4**2) / 2)
    assert forward.y == pytest.approx((0, pooled, 0.2))
    assert backward.y == pytest.approx((0, pooled))


def test_a_position_has_the_worst_of_its_rows() -> None:
    batch = Batch(np.zeros((2, 3), np.int32), np.array([3, 2], np.int32))
    truth = np.ones((5, 4))
    found = truth * np.array([1.1, 1.2, 1.3, 1.4, 1.1])[:, None]  # row 0: 3 tokens, row 1: 2
    curve = position_curve("decode by position", "float32", "torch", batch.valid, found, truth)
    assert curve.x == (0, 1, 2)
    assert curve.y == pytest.approx((0.4, 0.2, 0.3))
    assert curve.y[0] == relative_l2(found[3], truth[3])


def test_losses_come_with_their_errors_and_the_truth_without() -> None:
    truth, flax, moved = np.array([4.0, 2.0]), np.array([4.4, 2.0]), np.array([4.4, 2.1])
    curves = loss_curves("float64", truth, {"torch": truth, "flax": flax}, moved)
    errors = {c.side: c.y for c in curves if c.figure == "training loss error"}
    assert set(errors) == {"flax", "control"}
    assert errors["flax"] == pytest.approx((0.1, 0))
    assert errors["control"] == pytest.approx((0, 0.05))
    assert [c.side for c in curves if c.figure == "training loss"] == ["torch", "flax"]
    assert all(c.x == (1, 2) for c in curves)


def test_of_several_models_each_point_is_the_worst() -> None:
    one = Curve("f", "float64", "flax", ("embed", "0", "1"), (1.0, 5.0, 2.0))
    other = Curve("f", "float64", "flax", ("embed", "0"), (3.0, 4.0))
    apart = Curve("f", "float32", "flax", ("embed",), (9.0,))
    merged = worst_of([one, other, apart])
    assert merged == [dataclasses.replace(one, y=(3.0, 5.0, 2.0)), apart]
