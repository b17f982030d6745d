"""Loading a checkpoint of any kind, and saving a Hugging Face directory."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from diy_core.checkpoints.hf.writer import MAX_SHARD_SIZE, HFWriter
from diy_core.checkpoints.interface import Stored
from diy_core.checkpoints.memory_reader import MemoryReader
from diy_core.checkpoints.opening import READERS, open_with
from diy_core.checkpoints.transfer import transfer
from diy_core.config import DIYConfig
from diy_core.mapping import tensors
from diy_core.notes import refuse, settle
from diy_torch.given_weights import given_weights
from diy_torch.tensors import assign_weights, to_numpy

Model = TypeVar("Model", bound=torch.nn.Module)


def load(
    build: Callable[[DIYConfig], Model],
    path: str | Path,
    dtype: Any,
    device: torch.device | str | None,
    verify: bool = False,
    strict: bool = False,
    config: str | Path | None = None,
) -> Model:
    """A model with the config and the weights of a checkpoint.

    Args:
        build: the model of a config, its weights without storage.
        path: and the others, of `DIYForCausalLM.from_pretrained`.
    """
    checkpoint = open_with(path, READERS, config=config)
    refuse(path, checkpoint.notes, strict=strict)
    torch_names = {tensor.hf: tensor.torch for tensor in tensors(checkpoint.config)}
    model = build(checkpoint.config)
    named = ((torch_names[name], array) for name, array in checkpoint.read_all(verify))
    tied = checkpoint.config.tie_word_embeddings
    assign_weights(model, named, dtype, device, tied=tied)
    settle(path, checkpoint.notes, strict=strict, stacklevel=4)
    return model


def save(
    weights: torch.nn.Module,
    config: DIYConfig,
    path: str | Path,
    max_shard_size: int = MAX_SHARD_SIZE,
) -> None:
    """Write config and weights as a Hugging Face directory, a tensor at a time.

    What the model holds besides its weights is left out, with a note.

    Raises:
        CheckpointError: weights that are not those of the config.
    """
    notes: list[str] = []
    found = given_weights(weights, config, left_out=notes)
    named = {tensor.hf: found[tensor.torch] for tensor in tensors(config)}
    stored = {
        name: Stored(tuple(tensor.shape), to_numpy(tensor.new_empty(0)).dtype)
        for name, tensor in named.items()
    }
    refuse("state_dict", notes)  # before anything is written, where notes are refused
    source = MemoryReader(str(path), config, stored, lambda name: to_numpy(named[name]))
    transfer(source, functools.partial(HFWriter, path, max_shard_size=max_shard_size), verify=False)
    settle("state_dict", notes, stacklevel=4)
