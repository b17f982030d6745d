"""The command line: `diy-torch generate`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial

import torch

from diy_core.command_line import Generate, build_parser, run
from diy_torch.generate import generate
from diy_torch.model import DIYForCausalLM


def _load(path: str, dtype: str, device: str | None) -> Generate:
    try:
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {device}: {error}") from error
    model = DIYForCausalLM.from_pretrained(path, getattr(torch, dtype), place)
    return partial(generate, model)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    return run(build_parser("diy-torch", "PyTorch", "cpu, cuda, cuda:1, ..."), argv, _load)


if __name__ == "__main__":
    sys.exit(main())
