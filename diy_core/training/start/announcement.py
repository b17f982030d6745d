"""What a run says first, before a framework is imported: how large it is, and where it runs."""

from __future__ import annotations

import math
from pathlib import Path

from diy_core.config import DIYConfig
from diy_core.data.files import counted
from diy_core.errors import CheckpointError
from diy_core.mapping import tensors
from diy_core.training.checkpoints.files import whole_checkpoints
from diy_core.training.config import TrainConfig
from diy_core.training.run.model import model_config

_FRAMEWORKS = {"diy-torch": "PyTorch", "diy-jax": "JAX"}


def first_line(program: str, config: TrainConfig, device: str | None) -> str | None:
    """Such as `0.5 million parameters, 102,400 tokens (100 steps of 8 x 128), device auto: ...`.

    Args:
        program: such as `diy-jax train`.
        config: of the run.
        device: as it was asked for; None: the framework chooses.

    Returns:
        The line; None where the model's config cannot be read, which has an error of its own.
    """
    run = Path(config.run_dir)
    try:
        going_on = whole_checkpoints(run / "checkpoints")  # what a failed start left does not count
        model = DIYConfig.from_pretrained(run / "model") if going_on else model_config(config)
    except (CheckpointError, ValueError, OSError):
        return None
    parameters = sum(math.prod(tensor.shape) for tensor in tensors(model))
    tokens = config.steps * config.batch_size * config.sequence_length
    framework = _FRAMEWORKS.get(program.split()[0], "the framework")
    steps = f"{config.steps:,} steps of {config.batch_size} x {config.sequence_length}"
    return (
        f"{counted(parameters, 'parameter')}, {counted(tokens, 'token')} ({steps}), device "
        f"{device or 'auto'}: loading {framework}"
    )
