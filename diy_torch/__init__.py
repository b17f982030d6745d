"""The PyTorch twin of one Llama-style causal language model.

    model = DIYForCausalLM.from_pretrained(DIR)            # a torch.nn.Module, on the CPU
    logits = model(input_ids, attention_mask)              # (B, S, V); padding on the right
    out = generate(model, [[1, 2], [3]], max_new_tokens=8) # out.sequences, out.lengths
    model.save_pretrained(DIR)                             # transformers loads it

A new model is `DIYForCausalLM(config, seed=0)`, with `DIYConfig.from_pretrained(DIR)` or
`DIYConfig.from_dict(config.to_dict())` of one of transformers. Text becomes ids in
`diy_core.text.tokenizer.Tokenizer`; weights go to the Flax twin and back with `parity.to_flax` and
`parity.to_torch`.
"""

from diy_core import CheckpointError, DIYConfig, RopeScaling
from diy_core.generation import GenerateOutput
from diy_core.system.requirements import importing

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
