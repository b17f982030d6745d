"""The check without a model: in processes of its own it finds what it finds in one."""

from __future__ import annotations

from typing import Any

from parity.check.identity import Proven
from parity.check.model import Plan
from parity.check.sweep import check_small_models
from parity.environment import Device


def test_several_processes_find_the_same_in_the_same_order(device: Device) -> None:
    plan, names = Plan(kinds=("logits",)), ("mqa", "gqa")
    one, other = (
        list(check_small_models(device.name, ("float64",), plan, names=names, processes=processes))
        for processes in (1, 2)
    )
    assert [found.name for found in one] == [
        *("mqa/small", "mqa/fan-in", "gqa/small", "gqa/fan-in"),
    ]
    assert [_fixed(found) for found in one] == [_fixed(found) for found in other]
    assert all(check.passed for found in one for check in found.result.checks)


def _fixed(found: Proven) -> tuple[Any, ...]:
    """All but the figures: rounding errors vary with the place of an array in memory."""
    checks = [(c.name, c.dtype, c.device, c.compared, c.passed) for c in found.result.checks]
    assert checks
    return found.name, found.identity, found.plan, checks
