"""Where the PyTorch twin computes."""

from __future__ import annotations

import torch


def choose_device(name: str | None) -> torch.device:
    """The device of a name; None: a GPU where there is one, else the CPU.

    Args:
        name: as PyTorch has it (`cpu`, `cuda`, `cuda:1`), or `gpu`, as the other twin calls it.

    Raises:
        ValueError: there is no such device.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device("cuda" if name == "gpu" else name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        there = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        raise ValueError(
            f"--device {name}: PyTorch finds no such device here, only {', '.join(there)}"
        ) from error
    return device
