"""One line of a proof: the worst tensor, the first past a bound, two errors over each other."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from parity.check.compare import Check, passed, ratio, rounding, worst_tensor

OPTIONS: dict[str, Any] = {"dtype": "float32", "device": "cpu"}


def test_the_worst_is_measured_and_the_first_past_the_bound_is_named() -> None:
    truth = {name: np.ones(4) for name in "abc"}
    found = {"a": truth["a"], "b": truth["b"] * (1 + 1e-9), "c": truth["c"] * (1 + 1e-6)}
    check = worst_tensor("x", truth, found, 1e-12, "float64", "cpu")
    assert (check.passed, check.where, check.compared) == (False, "b", 12)
    assert check.value == pytest.approx(1e-6)
    assert [error.name for error in check.tensors] == ["a", "b", "c"]
    check = worst_tensor("x", truth, found, 1e-3, "float64", "cpu")
    assert (check.passed, check.where) == (True, "c")


def test_a_norm_in_bfloat16_is_caught_by_the_rounding_check() -> None:
    truth = {"model.norm": np.linspace(0.5, 2.0, 4096)}
    good = {"model.norm": truth["model.norm"].astype(np.float32)}
    bad = {"model.norm": truth["model.norm"] * (1 + 1e-3)}
    for one, other in ((good, bad), (bad, good)):
        assert not rounding("blocks", truth, one, other, control=(1.0, 1.0), **OPTIONS).passed
        assert rounding("blocks", truth, good, good, control=(1.0, 1.0), **OPTIONS).passed


def test_the_control_widens_the_bound_only_for_the_side_whose_library_is_less_exact() -> None:
    truth = {"logits": np.ones(1000)}
    one, other = {"logits": np.full(1000, 1 + 1e-6)}, {"logits": np.full(1000, 1 + 3e-6)}
    assert not rounding("x", truth, one, other, control=(1.0, 1.0), **OPTIONS).passed
    assert rounding("x", truth, one, other, control=(1.0, 2.0), **OPTIONS).passed
    assert not rounding("x", truth, one, other, control=(2.0, 1.0), **OPTIONS).passed
    sides = [
        error.side for error in rounding("x", truth, one, other, control=(1, 1), **OPTIONS).tensors
    ]
    assert sides == ["torch", "flax"]


def test_a_ratio_is_read_in_the_direction_that_is_closer_to_its_bound() -> None:
    assert ratio(3.0, 1.0, (1.0, 1.0)) == (3.0, 2.0)
    assert ratio(1.0, 3.0, (1.0, 2.0)) == (3.0, 4.0)
    assert ratio(1.0, 1.0, (5.0, 1.0)) == (1.0, 2.0)
    for one, other in ((math.inf, 1.0), (1.0, math.inf), (math.inf, math.inf)):
        value, bound = ratio(one, other, (1.0, 1.0))
        assert value == math.inf > bound == 2.0


def test_what_is_no_number_fails_on_either_side() -> None:
    truth, nan = {"logits": np.ones(3)}, {"logits": np.array([1.0, np.nan, 1.0])}
    for one, other in ((truth, nan), (nan, truth), (nan, nan)):
        check = rounding("x", truth, one, other, control=(1.0, 1.0), **OPTIONS)
        assert (check.passed, check.value) == (False, math.inf)
    assert not worst_tensor("m", truth, nan, 1e-12, "float64", "cpu").passed


def test_other_tensors_or_none_prove_nothing() -> None:
    some = np.ones(3)
    for truth, found in (({}, {}), ({"a": some}, {"b": some})):
        with pytest.raises(ValueError, match="do not hold the same tensors"):
            worst_tensor("blocks", truth, found, 1e-12, "float64", "cpu")
        with pytest.raises(ValueError, match="do not hold the same tensors"):
            rounding("blocks", truth, found, found, control=(1.0, 1.0), **OPTIONS)
    assert not passed([])
    good = Check("x", "float64", "cpu", 1, 0.0, 1e-12, True)
    assert passed([good])
    assert not passed([good, dataclasses.replace(good, passed=False)])


def test_a_record_has_every_field_as_plain_values() -> None:
    truth = {"a": np.ones((2, 3))}
    record = worst_tensor("x", truth, {"a": truth["a"] * 1.5}, 1.0, "float64", "cpu").record()
    assert set(record) == {field.name for field in dataclasses.fields(Check)}
    assert record["tensors"] == [
        {"name": "a", "side": "flax", "relative_l2": 0.5, "largest": 0.5, "index": [0, 0]}
    ]
