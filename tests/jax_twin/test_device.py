"""Where the JAX twin computes."""

from __future__ import annotations

import jax
import pytest

from diy_jax.device import choose_device


def test_a_device_has_its_name() -> None:
    assert choose_device("cpu").platform == "cpu"


def test_without_a_name_it_is_what_jax_takes_first() -> None:
    assert choose_device(None) == jax.devices()[0]


@pytest.mark.parametrize("name", ["npu", "cuda:99", "nothing"])
def test_what_is_not_there_is_refused_with_what_is(name: str) -> None:
    with pytest.raises(ValueError, match=f"^--device {name}: JAX finds no .*, only cpu"):
        choose_device(name)
