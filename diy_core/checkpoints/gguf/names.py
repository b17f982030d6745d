"""Names and row order of llama.cpp's files, against those of Hugging Face.

    blk.0.attn_q.weight     model.layers.0.self_attn.q_proj.weight      rows of q and k reordered
    token_embd.weight       model.embed_tokens.weight

llama.cpp rotates neighbouring channels (0 with 1, 2 with 3), Hugging Face channel j with j + H/2.
Its files therefore hold the rows of q and k in another order.

Letters: H head_dim.
"""

from __future__ import annotations

import re
from typing import Any

from numpy.typing import NDArray

from diy_core.config import DIYConfig

_MODULES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}


def gguf_name(hf: str) -> str:
    """`model.layers.3.mlp.up_proj.weight` is `blk.3.ffn_up.weight`."""
    module, _, leaf = hf.rpartition(".")
    layer = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", module)
    return f"blk.{layer[1]}.{_MODULES[layer[2]]}.{leaf}" if layer else f"{_MODULES[module]}.{leaf}"


def reorder(hf: str, array: NDArray[Any], config: DIYConfig, *, to_gguf: bool) -> NDArray[Any]:
    """Rows of q or k, weight or bias, in the order of the other format; any other tensor as it is.

    Hugging Face pairs channels half a head apart, (2, H/2) in each head; GGUF neighbours, (H/2, 2).
    """
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.kv_heads}
    role = hf.split(".")[-2]
    if role not in heads:
        return array
    rows, *rest = array.shape
    half = rows // heads[role] // 2
    pairs = array.reshape(heads[role], *((2, half) if to_gguf else (half, 2)), *rest)
    return pairs.swapaxes(1, 2).reshape(array.shape)
