"""What is allowed for the libraries stays near what they are: a bound, not an excuse."""

from __future__ import annotations

import pytest

from parity.check.matmul_control import allowance
from parity.environment import Device, exact
from parity.random_models import small_configs


@pytest.mark.parametrize(("dtype", "most"), [("float32", 5.0), ("bfloat16", 1.1)])
def test_the_libraries_differ_by_little_and_only_one_of_them_is_allowed_more(
    dtype: str, most: float, device: Device
) -> None:
    with exact(device):
        one, other = allowance(small_configs()["gqa"], dtype, device)
    assert 1.0 <= one <= most
    assert 1.0 <= other <= most


def test_a_result_as_exact_as_rounding_allows_needs_no_allowance(
    monkeypatch: pytest.MonkeyPatch, device: Device
) -> None:
    errors = {"float32": (1e-12, 2e-8)}
    monkeypatch.setattr(
        "parity.check.matmul_control._matmul_errors", lambda terms, dtype, device: errors[dtype]
    )
    assert allowance(small_configs()["gqa"], "float32", device) == (1.0, 1.0)
    errors["float32"] = (1e-7, 3e-7)
    assert allowance(small_configs()["gqa"], "float32", device) == (1.0, pytest.approx(3.0))
