"""JAX on the CPU, whose float32 is exact; in 64 bits, where a test asks for it."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import pytest


@pytest.fixture
def x64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


@pytest.fixture(autouse=True)
def _cpu() -> Iterator[None]:
    """On a GPU values are not looked at and float32 is not exact; the parity tests run there."""
    with jax.default_device(jax.devices("cpu")[0]):
        yield
