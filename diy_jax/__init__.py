"""The JAX/Flax twin of one Llama-style causal language model."""

from diy_core import CheckpointError, DIYConfig, RopeScaling
from diy_core.generation import GenerateOutput
from diy_jax.cache import PastKeyValues, grow_cache, init_cache
from diy_jax.generate import generate
from diy_jax.model import DIYForCausalLM, DIYModel, ModelBlock, init_params
from diy_jax.norm import RMSNorm

__all__ = [
    "CheckpointError",
    "DIYConfig",
    "DIYForCausalLM",
    "DIYModel",
    "GenerateOutput",
    "ModelBlock",
    "PastKeyValues",
    "RMSNorm",
    "RopeScaling",
    "generate",
    "grow_cache",
    "init_cache",
    "init_params",
]
