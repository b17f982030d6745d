"""What the PyTorch twin puts behind `diy-torch generate`, `train` and `export`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch

from diy_core.commands.command_line import Commands
from diy_core.commands.generate import Generate
from diy_torch.device import choose_device
from diy_torch.generate import generate
from diy_torch.model import DIYForCausalLM

if TYPE_CHECKING:
    from diy_core.training.start.begin import Assemble
    from diy_core.training.start.restore import Verify


def load(path: str, dtype: str, device: str | None) -> Generate:
    """A model as the function that continues prompts; dtype and device as options name them."""
    place = choose_device(device)
    model = DIYForCausalLM.from_pretrained(path, getattr(torch, dtype), place)
    return partial(generate, model)


def trainer() -> tuple[Assemble, Verify]:
    """What `diy_core.training` drives, and what reads a checkpoint of this twin."""
    from diy_torch.train import assemble
    from diy_torch.training_store import TrainingStore

    return assemble, TrainingStore.verify


def export(run_directory: str, step: int | None, out: str, overwrite: bool) -> str:
    """Write a checkpoint of a run as a Hugging Face directory; returns a line about it."""
    from diy_core.training import export as exporting
    from diy_torch.training_store import TrainingStore

    return exporting.export(TrainingStore, run_directory, step, out, overwrite=overwrite)


COMMANDS = Commands(load, trainer, export)
