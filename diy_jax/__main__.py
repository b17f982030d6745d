"""The command line: `diy-jax generate`, `data`, `train`, `export`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from diy_core.command_line import Commands, build_parser, run
from diy_core.generate_command import Generate
from diy_jax.device import choose_device
from diy_jax.generate import generate
from diy_jax.model import DIYForCausalLM

if TYPE_CHECKING:
    from diy_core.training.command import Assemble, Verify
    from diy_core.training.config import TrainConfig
    from diy_core.training.interfaces import Pieces


def _load(path: str, dtype: str, device: str | None) -> Generate:
    if dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_default_device", choose_device(device))
    model, params = DIYForCausalLM.from_pretrained(path, jnp.dtype(dtype))
    return partial(generate, model, params)


def _trainer() -> tuple[Assemble, Verify]:
    from diy_jax.train import assemble
    from diy_jax.training_store import TrainingStore

    def assemble_in_dtype(config: TrainConfig, *others: Any) -> Pieces:
        if config.dtype == "float64":
            jax.config.update("jax_enable_x64", True)
        if config.dtype != "bfloat16":  # on a GPU JAX would cut float32 to 10 bits, torch does not
            jax.config.update("jax_default_matmul_precision", "highest")
        return assemble(config, *others)

    return assemble_in_dtype, TrainingStore.verify


def _export(run_directory: str, step: int | None, out: str, overwrite: bool) -> str:
    from diy_core.training.export import export
    from diy_jax.training_store import TrainingStore

    return export(TrainingStore, run_directory, step, out, overwrite=overwrite)


COMMANDS = Commands(_load, _trainer, _export)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    return run(build_parser("diy-jax"), argv, lambda: COMMANDS)


if __name__ == "__main__":
    sys.exit(main())
