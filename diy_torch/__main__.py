"""The command line: `diy-torch generate`, `data`, `train`, `export`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch

from diy_core.command_line import Commands, build_parser, run
from diy_core.generate_command import Generate
from diy_torch.device import choose_device
from diy_torch.generate import generate
from diy_torch.model import DIYForCausalLM

if TYPE_CHECKING:
    from diy_core.training.command import Assemble, Verify


def _load(path: str, dtype: str, device: str | None) -> Generate:
    place = choose_device(device)
    model = DIYForCausalLM.from_pretrained(path, getattr(torch, dtype), place)
    return partial(generate, model)


def _trainer() -> tuple[Assemble, Verify]:
    from diy_torch.train import assemble
    from diy_torch.training_store import TrainingStore

    return assemble, TrainingStore.verify


def _export(run_directory: str, step: int | None, out: str, overwrite: bool) -> str:
    from diy_core.training.export import export
    from diy_torch.training_store import TrainingStore

    return export(TrainingStore, run_directory, step, out, overwrite=overwrite)


COMMANDS = Commands(_load, _trainer, _export)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    return run(build_parser("diy-torch"), argv, lambda: COMMANDS)


if __name__ == "__main__":
    sys.exit(main())
