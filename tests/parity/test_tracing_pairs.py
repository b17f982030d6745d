"""The tracer on pairs of models that are not ours: healthy, and with planted faults."""

from __future__ import annotations

import pytest

import parity
from parity.environment import Device, exact
from tests.parity.foreign_pairs import PAIRS

FAULTS = [(pair, fault) for pair, (_, faults) in PAIRS.items() for fault in faults]


@pytest.mark.parametrize(
    ("dtype", "jit"),
    [("float64", False), ("float32", True), ("bfloat16", False)],
)
@pytest.mark.parametrize("name", PAIRS)
def test_a_healthy_pair_is_clean(name: str, dtype: str, jit: bool, device: Device) -> None:
    with exact(device):
        pair = PAIRS[name][0](dtype)
        rules = pair.rules if jit else None  # else they are inferred
        result = parity.trace(
            pair.torch, pair.flax, pair.variables, pair.inputs, rules=rules, jit=jit
        )
    assert result.equal, str(result.first_divergence)
    assert max(result.parameters.values()) == 0
    assert result.gradients


@pytest.mark.parametrize(("name", "fault"), FAULTS)
def test_the_culprit_is_named_on_both_sides(name: str, fault: str, device: Device) -> None:
    build, faults = PAIRS[name]
    with exact(device):
        pair = build("float64", fault)
        result = parity.trace(pair.torch, pair.flax, pair.variables, pair.inputs, rules=pair.rules)
    found = result.first_divergence
    assert found is not None
    assert (found.direction, found.torch, found.flax) == faults[fault], str(found)
