"""The contract that both twins sign: config, names, validation, files. Never torch, never jax."""

from diy_core.config import DIYConfig
from diy_core.errors import CheckpointError
from diy_core.notes import CheckpointNote
from diy_core.rope_scaling import RopeScaling

__all__ = ["CheckpointError", "CheckpointNote", "DIYConfig", "RopeScaling"]
