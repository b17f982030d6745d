"""A synthetic Llama checkpoint of any size: random weights, made a tensor at a time.

    python benchmarks/make_llama.py DIR [--layers 16] [--dtype float32]

The sizes are those of a 1.1B Llama with a vocabulary of 32,000; 16 layers in float32 are 3.1 GB.
"""

from __future__ import annotations

import argparse
import functools
import zlib

import numpy as np
from rich.filesize import decimal

from diy_core.checkpoints.dtypes import dtype_of
from diy_core.checkpoints.hf.writer import HFWriter
from diy_core.checkpoints.interface import Stored
from diy_core.checkpoints.memory_reader import MemoryReader
from diy_core.checkpoints.transfer import Summary, transfer
from diy_core.config import DIYConfig
from diy_core.mapping import tensors


def synthetic_config(layers: int, hidden: int = 2048, vocab: int = 32000) -> DIYConfig:
    """A Llama config whose size grows with the number of layers alone."""
    return DIYConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=hidden * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=4096,
    )


def make_llama(path: str, config: DIYConfig, dtype: str = "float32") -> Summary:
    """Write random weights for a config as a Hugging Face directory."""
    kind = dtype_of(dtype)
    stored = {tensor.hf: Stored(tensor.shape, kind) for tensor in tensors(config)}

    def draw(name: str) -> np.ndarray:
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        array = rng.standard_normal(stored[name].shape, dtype=np.float32)
        array *= 0.02
        return array.astype(kind, copy=False)

    source = MemoryReader("synthetic", config, stored, draw)
    return transfer(source, functools.partial(HFWriter, path), verify=False)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", metavar="DIR")
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    options = parser.parse_args()
    done = make_llama(options.path, synthetic_config(options.layers), options.dtype)
    print(f"{options.path}: {decimal(done.nbytes)} in {done.tensors} tensors")
