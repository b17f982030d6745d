"""Where the PyTorch twin computes."""

from __future__ import annotations

import pytest
import torch

from diy_torch.device import choose_device


def test_a_device_has_its_name() -> None:
    assert choose_device("cpu") == torch.device("cpu")


def test_without_a_name_it_is_a_gpu_where_there_is_one() -> None:
    gpu = torch.cuda.is_available()
    assert choose_device(None).type == ("cuda" if gpu else "cpu")
    if gpu:
        assert choose_device("gpu") == torch.device("cuda")


@pytest.mark.parametrize("name", ["npu", "cuda:99", "", "tpu"])
def test_what_is_not_there_is_refused_with_what_is(name: str) -> None:
    with pytest.raises(ValueError, match=f"^--device {name}: PyTorch finds no .*, only cpu"):
        choose_device(name)
