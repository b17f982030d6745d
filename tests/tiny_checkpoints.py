"""Tiny checkpoints made, read and damaged without the code that is under test."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import safetensors.numpy
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors

from diy_core.config import DIYConfig
from tests.oracles import random_weights, tiny

Arrays = dict[str, np.ndarray]
CONFIG = tiny()
UNTIED = tiny(tie_word_embeddings=False)
EMBEDDING, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
QUERY, UP = "model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.up_proj.weight"
MANIFEST = "diy_manifest.json"
DTYPES = {
    "float64": np.dtype(np.float64),
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
SPECIAL = ["<|end|>", "<|begin|>", "<|turn|>"]
PIECES = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), "he", "Ġt", "Ġthe", "20"]
MERGES = [("h", "e"), ("Ġ", "t"), ("Ġt", "he"), ("2", "0")]
TEMPLATE = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}\n{% endfor %}"


def weights(config: DIYConfig = CONFIG, dtype: str = "float32", seed: int = 0) -> Arrays:
    return {n: a.astype(DTYPES[dtype]) for n, a in random_weights(config, seed).items()}


def put(path: Path, arrays: Arrays, config: DIYConfig = CONFIG, **extra: Any) -> Path:
    """A Hugging Face directory without a manifest."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config.to_dict() | extra))
    safetensors.numpy.save_file(arrays, path / "model.safetensors")
    return path


def read(path: Path) -> Arrays:
    """All tensors of a Hugging Face directory, by the safetensors library."""
    found: Arrays = {}
    for file in sorted(path.glob("*.safetensors")):
        found |= safetensors.numpy.load_file(file)
    return found


def read_config(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((path / "config.json").read_text())
    return values


def same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """The same names, dtypes, shapes and bytes."""
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype
        and one[name].shape == other[name].shape
        and one[name].tobytes() == other[name].tobytes()
        for name in one
    )


def sums(arrays: Arrays) -> dict[str, str]:
    return {n: hashlib.sha256(a.tobytes()).hexdigest() for n, a in arrays.items()}


def sums_of(path: Path) -> dict[str, str]:
    """The sums in the manifest of a directory or of a GGUF file."""
    if path.is_dir():
        text = (path / MANIFEST).read_text()
    else:
        text = gguf.GGUFReader(path).fields["diy_lm.manifest"].contents()
    return {name: entry["sha256"] for name, entry in json.loads(text)["tensors"].items()}


def snapshot(path: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too."""
    return {str(f.relative_to(path)): f.read_bytes() for f in path.rglob("*") if f.is_file()}


def change_one_value(path: Path, name: str) -> None:
    """Another last mantissa bit of a tensor's first value, in a safetensors file."""
    for file in path.glob("*.safetensors"):
        content = bytearray(file.read_bytes())
        (length,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + length])
        if name in header:
            content[8 + length + header[name]["data_offsets"][0]] ^= 1
            file.write_bytes(content)
            return
    raise AssertionError(name)


def build_tokenizer(pre: Any = None, before: str = "", after: str = "") -> Any:
    """Byte-level BPE with four merges, which puts special tokens around a text."""
    backend = tokenizers.Tokenizer(models.BPE({t: i for i, t in enumerate(PIECES)}, MERGES))
    backend.pre_tokenizer = pre or pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    backend.add_tokens([AddedToken("<tool>", special=False, normalized=False)])
    if before or after:
        backend.post_processor = processors.TemplateProcessing(
            single=[piece for piece in (before, "$A", after) if piece],
            special_tokens=[(token, i) for i, token in enumerate(SPECIAL)],
        )
    return backend


def put_tokenizer(path: Path, backend: Any = None, **settings: Any) -> None:
    """Tokenizer files in an unusual form, so that only a copy has the same bytes."""
    backend = backend or build_tokenizer()
    state = json.loads(backend.to_str())
    (path / "tokenizer.json").write_bytes(json.dumps(state, indent=3).encode() + b"\r\n")
    values = {"bos_token": "<|begin|>", "eos_token": "<|end|>", "pad_token": "<|turn|>"}
    (path / "tokenizer_config.json").write_text(json.dumps(values | settings))
