"""What the JAX/Flax twin puts behind `diy-jax generate`, `train` and `export`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from diy_core.commands.command_line import Commands
from diy_core.commands.generate import Generate
from diy_jax.device import choose_device
from diy_jax.generate import generate
from diy_jax.model import DIYForCausalLM

if TYPE_CHECKING:
    from diy_core.training.config import TrainConfig
    from diy_core.training.protocols import Pieces
    from diy_core.training.start.begin import Assemble
    from diy_core.training.start.restore import Verify


def load(path: str, dtype: str, device: str | None) -> Generate:
    """A model as the function that continues prompts; dtype and device as options name them."""
    if dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_default_device", choose_device(device))
    model, params = DIYForCausalLM.from_pretrained(path, jnp.dtype(dtype))
    return partial(generate, model, params)


def trainer() -> tuple[Assemble, Verify]:
    """What `diy_core.training` drives, and what reads a checkpoint of this twin."""
    from diy_jax.train import assemble
    from diy_jax.training_store import TrainingStore

    def assemble_in_dtype(config: TrainConfig, *others: Any) -> Pieces:
        if config.dtype == "float64":
            jax.config.update("jax_enable_x64", True)
        if config.dtype != "bfloat16":  # on a GPU JAX would cut float32 to 10 bits, torch does not
            jax.config.update("jax_default_matmul_precision", "highest")
        return assemble(config, *others)

    return assemble_in_dtype, TrainingStore.verify


def export(run_directory: str, step: int | None, out: str, overwrite: bool) -> str:
    """Write a checkpoint of a run as a Hugging Face directory; returns a line about it."""
    from diy_core.training import export as exporting
    from diy_jax.training_store import TrainingStore

    return exporting.export(TrainingStore, run_directory, step, out, overwrite=overwrite)


COMMANDS = Commands(load, trainer, export)
