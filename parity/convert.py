"""Between the two twins in memory, and between any two kinds of checkpoint on disk."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

import diy_jax.checkpoint
import diy_torch.checkpoint
from diy_core.checkpoints import hf_directory
from diy_core.checkpoints.atomic import recover
from diy_core.checkpoints.dtypes import dtype_of
from diy_core.checkpoints.gguf_reader import GGUFReader
from diy_core.checkpoints.gguf_writer import GGUFWriter
from diy_core.checkpoints.hf_directory import HFReader
from diy_core.checkpoints.hf_writer import MAX_SHARD_SIZE, HFWriter
from diy_core.checkpoints.interface import Reader, Writer
from diy_core.checkpoints.training_run import refuse_training_run
from diy_core.checkpoints.transfer import Progress, Summary, transfer
from diy_core.config import DIYConfig
from diy_core.errors import CheckpointError
from diy_core.mapping import TIED_HEAD, flatten, match, match_flax, tensors
from diy_jax import orbax_store
from parity.optimizer_state import (
    decay_mask,
    optimizer_state_to_optax,
    optimizer_state_to_torch,
)

__all__ = [
    "convert",
    "decay_mask",
    "default_kind",
    "kind_of",
    "open_checkpoint",
    "optimizer_state_to_optax",
    "optimizer_state_to_torch",
    "to_flax",
    "to_torch",
]
KINDS = {"hf": "Hugging Face directory", "orbax": "Orbax checkpoint", "gguf": "GGUF file"}
READERS: dict[str, Callable[..., Reader]] = {
    "hf": HFReader,
    "orbax": orbax_store.OrbaxReader,
    "gguf": GGUFReader,
}
WRITERS: dict[str, Callable[..., Writer]] = {
    "hf": HFWriter,
    "orbax": orbax_store.OrbaxWriter,
    "gguf": GGUFWriter,
}


def to_flax(state_dict: Mapping[str, torch.Tensor], config: DIYConfig) -> dict[str, Any]:
    """The PyTorch twin's `state_dict()` as params of the Flax twin, dtypes kept.

    Raises:
        CheckpointError: tensors missing, extra or misshapen, or a tied head that is not the
            embedding; all faults at once.
        ValueError: float64 tensors while JAX's 64-bit mode is off.
    """
    rows = tensors(config)
    wanted = {tensor.torch: tensor.shape for tensor in rows}
    found = {name: tuple(value.shape) for name, value in state_dict.items()}
    if config.tie_word_embeddings and TIED_HEAD in found:
        wanted[TIED_HEAD] = rows[0].shape
    faults = match(found, wanted)
    if not faults and config.tie_word_embeddings and TIED_HEAD in found:
        head, embedding = state_dict[TIED_HEAD], state_dict[rows[0].torch]
        if head.data_ptr() != embedding.data_ptr() and not torch.equal(head, embedding):
            faults.append(
                f"tie_word_embeddings is true, but {TIED_HEAD} differs from the embedding"
            )
    if faults:
        raise CheckpointError("state_dict", faults)
    return diy_jax.checkpoint.build_params(
        ((t, diy_torch.checkpoint.to_numpy(state_dict[t.torch].detach())) for t in rows), None
    )


def to_torch(params: Mapping[str, Any], config: DIYConfig) -> dict[str, torch.Tensor]:
    """The Flax twin's params as a `state_dict` for the PyTorch twin, dtypes kept.

    A tied head is in it twice, under both of its names, as in the twin's own `state_dict()`.

    Raises:
        CheckpointError: parameters missing, extra or misshapen; all faults at once.
    """
    rows, flat = tensors(config), flatten(params)
    faults = match_flax(flat, config)
    if faults:
        raise CheckpointError("params", faults)
    state_dict = {
        tensor.torch: diy_torch.checkpoint.to_tensor(
            tensor.to_flax.inverse(diy_jax.checkpoint.to_numpy(flat[tensor.flax])).copy()
        )
        for tensor in rows
    }
    if config.tie_word_embeddings:
        state_dict[TIED_HEAD] = state_dict[rows[0].torch]
    return state_dict


def kind_of(path: str | Path) -> str:
    """`hf` for a Hugging Face directory, `orbax` for an Orbax checkpoint, `gguf` for a GGUF file.

    Raises:
        CheckpointError: it is none of them; the message says what was looked for.
    """
    path = Path(path)
    if not path.exists():
        recover(path)
    refuse_training_run(path)
    if orbax_store.is_store(path):
        return "orbax"
    if (path / hf_directory.CONFIG).is_file():
        return "hf"
    if path.is_file() and path.suffix in (".safetensors", ".json"):
        raise CheckpointError(path, "is one file of a model directory: give the directory")
    if path.is_file():
        return "gguf"  # or the reader will say what is wrong with it
    if not path.exists():
        raise CheckpointError(path, "does not exist")
    if orbax_store.is_store(path.parent):
        raise CheckpointError(path, f"is a part of the Orbax checkpoint {path.parent}: give that")
    raise CheckpointError(
        path,
        f"is neither a Hugging Face directory ({hf_directory.CONFIG} and safetensors) nor an "
        f"Orbax checkpoint ({orbax_store.STATE}/ and {hf_directory.CONFIG}) nor a GGUF file",
    )


def open_checkpoint(path: str | Path, *, untie: bool = False) -> Reader:
    """A checkpoint of any kind, recognised, to read tensors from.

    Args:
        path: a Hugging Face directory, an Orbax checkpoint or a GGUF file.
        untie: give a model whose head is tied to the embedding a head of its own.

    Raises:
        CheckpointError: it is none of them, or it is damaged.
    """
    return READERS[kind_of(path)](path, untie=untie)


def convert(
    source: str | Path,
    destination: str | Path,
    *,
    to: str | None = None,
    dtype: str | None = None,
    max_shard_size: int = MAX_SHARD_SIZE,
    overwrite: bool = False,
    verify: bool = True,
    untie: bool = False,
    strict: bool = False,
    progress: Progress = lambda what, done, total: None,
) -> Summary:
    """From any kind of checkpoint to any other, a group of tensors at a time.

    Args:
        source: a Hugging Face directory, an Orbax checkpoint or a GGUF file; it is recognised.
        destination: written whole or not at all.
        to: `hf`, `orbax` or `gguf`. None: `gguf` where the destination ends in `.gguf`, `orbax`
            for a Hugging Face directory, else `hf`.
        dtype: of all tensors, `float32`, `bfloat16`, ...; None keeps each as it is.
        max_shard_size: bytes of one safetensors file.
        overwrite: replace an existing destination of that kind.
        verify: check the source against its manifest if it has one, and read everything back
            before it moves into place.
        untie: give a model whose head is tied to the embedding a head of its own.
        strict: refuse a source that is odd; else what was odd is in the summary's `notes`.
        progress: called often, with what is done, and bytes of how many.

    Raises:
        CheckpointError: a source that is damaged, a value that `dtype` cannot hold, or a
            destination that is in the way. Nothing is left behind then.
        ValueError: an unknown kind or dtype, or a destination that is named as another kind.
    """
    source, destination = Path(source), Path(destination)
    reader = open_checkpoint(source, untie=untie)
    kind = to or default_kind(reader.kind, destination)
    if kind not in WRITERS:
        raise ValueError(f"kind {kind!r} is not supported; choose one of {sorted(WRITERS)}")
    if kind != "gguf" and destination.suffix == ".gguf":
        raise ValueError(f"{destination} is the name of a GGUF file: leave --to out, or the .gguf")
    if source.resolve() == destination.resolve():
        raise CheckpointError(destination, "is the source itself")
    options: dict[str, Any] = {"overwrite": overwrite}
    if kind == "hf":
        # A former model's tokenizer does not stay: it would be taken for the new one's.
        options |= {"max_shard_size": max_shard_size, "drop": hf_directory.SIDE_FILES}
    return transfer(
        reader,
        functools.partial(WRITERS[kind], destination, **options),
        dtype=None if dtype is None else dtype_of(dtype),
        verify=verify,
        strict=strict,
        progress=progress,
    )


def default_kind(source: str, destination: Path) -> str:
    """What a destination becomes where nobody says it."""
    if destination.suffix == ".gguf":
        return "gguf"
    return "orbax" if source == "hf" else "hf"
