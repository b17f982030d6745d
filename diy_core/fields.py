"""Checks of a dataclass's own numbers, in `__post_init__`."""

from __future__ import annotations

import sys


def require_int(owner: object, name: str) -> None:
    """Raise a ValueError unless the field is an integer of at least 1."""
    value = getattr(owner, name)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a positive integer, got {value!r}")


def require_float(
    owner: object, name: str, minimum: float | None = None, positive: bool = False
) -> None:
    """Raise a ValueError unless the field is a finite number in range; store it as a float."""
    value = getattr(owner, name)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    # An int that no float can hold is neither inf nor nan, and math.isfinite would overflow.
    if not number or not abs(value) <= sys.float_info.max:
        raise ValueError(f"{name} must be a finite number, got {value!r}")
    if positive and value <= 0:
        raise ValueError(f"{name} must be greater than 0, got {value!r}")
    if minimum is not None and value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value!r}")
    object.__setattr__(owner, name, float(value))
