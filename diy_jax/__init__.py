"""The JAX/Flax twin of one Llama-style causal language model.

    model, params = DIYForCausalLM.from_pretrained(DIR)    # a Linen module, and its params
    logits = jax.jit(model.apply)({"params": params}, input_ids, attention_mask)  # (B, S, V)
    out = generate(model, params, [[1, 2], [3]], max_new_tokens=8)  # compiles its steps itself
    model.save_pretrained(DIR, params)                     # transformers loads it

Padding is on the right. A new model is `DIYForCausalLM(config)` with `init_params(config, seed=0)`,
and `DIYConfig.from_pretrained(DIR)` or `DIYConfig.from_dict(config.to_dict())` of one of
transformers. Text becomes ids in `diy_core.text.tokenizer.Tokenizer`; weights go to the PyTorch
twin and back with `parity.to_torch` and `parity.to_flax`.
"""

from diy_core import CheckpointError, DIYConfig, RopeScaling
from diy_core.generation import GenerateOutput
from diy_core.system.requirements import importing

with importing("diy_jax"):
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


def __dir__() -> list[str]:
    """The public names, and not the modules that happen to be imported."""
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])
