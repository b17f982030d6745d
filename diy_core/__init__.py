"""The contract that both twins sign: config, names, validation, files. Never torch, never jax."""

import diy_core.commands.beginning  # noqa: F401  before all else, which takes time

# isort: split
from diy_core.config import DIYConfig
from diy_core.errors import CheckpointError
from diy_core.notes import CheckpointNote
from diy_core.rope_scaling import RopeScaling

__all__ = ["CheckpointError", "CheckpointNote", "DIYConfig", "RopeScaling"]


def __dir__() -> list[str]:
    """The public names, and not the modules that happen to be imported."""
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])
