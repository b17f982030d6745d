"""The PyTorch twin of one Llama-style causal language model."""

from diy_core import CheckpointError, DIYConfig, RopeScaling
from diy_core.generation import GenerateOutput
from diy_core.requirements import importing

with importing("diy_torch"):
    from diy_torch.cache import PastKeyValues, grow_cache, init_cache
    from diy_torch.generate import generate
    from diy_torch.model import DIYForCausalLM, DIYModel, ModelBlock
    from diy_torch.norm import RMSNorm

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
]


def __dir__() -> list[str]:
    """The public names, and not the modules that happen to be imported."""
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])
