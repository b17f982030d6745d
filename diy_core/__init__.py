"""The contract that both twins sign: config, names, validation, files. Never torch, never jax."""

from diy_core.config import DIYConfig, RopeScaling
from diy_core.errors import CheckpointError

__all__ = ["CheckpointError", "DIYConfig", "RopeScaling"]
