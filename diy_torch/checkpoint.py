"""Loading a checkpoint of any kind, and saving a Hugging Face directory."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diy_core.checkpoints.dtypes import any_dtype, dtype_of, rounded
from diy_core.checkpoints.hf_writer import MAX_SHARD_SIZE, HFWriter
from diy_core.checkpoints.interface import Stored
from diy_core.checkpoints.memory_reader import MemoryReader
from diy_core.checkpoints.opening import READERS, open_with
from diy_core.checkpoints.transfer import transfer
from diy_core.mapping import tensors
from diy_core.notes import refuse, settle
from diy_torch.given_weights import given_weights

if TYPE_CHECKING:
    from diy_torch.model import DIYForCausalLM

    Model = TypeVar("Model", bound=DIYForCausalLM)


def load(
    cls: type[Model],
    path: str | Path,
    dtype: Any,
    device: torch.device | str | None,
    verify: bool = False,
    strict: bool = False,
    config: str | Path | None = None,
) -> Model:
    """A model with the config and the weights of a checkpoint."""
    checkpoint = open_with(path, READERS, config=config)
    refuse(path, checkpoint.notes, strict=strict)
    torch_names = {tensor.hf: tensor.torch for tensor in tensors(checkpoint.config)}
    model = cls.__new__(cls)
    torch.nn.Module.__init__(model)
    model._build(checkpoint.config)
    named = ((torch_names[name], array) for name, array in checkpoint.read_all(verify))
    assign_weights(model, named, dtype, device)
    settle(path, checkpoint.notes, strict=strict, stacklevel=4)
    return model


def save(model: DIYForCausalLM, path: str | Path, max_shard_size: int = MAX_SHARD_SIZE) -> None:
    """Write config and weights as a Hugging Face directory, a tensor at a time.

    What the model holds besides its weights is left out, with a note.

    Raises:
        CheckpointError: weights that are not those of the config.
    """
    notes: list[str] = []
    weights = given_weights(model, model.config, left_out=notes)
    named = {tensor.hf: weights[tensor.torch] for tensor in tensors(model.config)}
    stored = {
        name: Stored(tuple(tensor.shape), to_numpy(tensor.new_empty(0)).dtype)
        for name, tensor in named.items()
    }
    refuse("state_dict", notes)  # before anything is written, where notes are refused
    source = MemoryReader(str(path), model.config, stored, lambda name: to_numpy(named[name]))
    transfer(source, functools.partial(HFWriter, path, max_shard_size=max_shard_size), verify=False)
    settle("state_dict", notes, stacklevel=4)


def assign_weights(
    model: DIYForCausalLM,
    named: Iterable[tuple[str, NDArray[Any]]],
    dtype: Any,
    device: torch.device | str | None,
) -> None:
    """Give a model that was built without storage its weights, one by one, and tie them."""
    dtype = None if dtype is None else float_dtype(dtype)
    for name, array in named:
        module, _, leaf = name.rpartition(".")
        if dtype is not None and array.dtype == np.float64:  # torch would round twice
            array = rounded(array, dtype_of(str(dtype).removeprefix("torch.")))
        tensor = to_tensor(array).to(device="cpu" if device is None else device, dtype=dtype)
        setattr(model.get_submodule(module), leaf, torch.nn.Parameter(tensor))
    if model.config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight


def float_dtype(dtype: Any) -> torch.dtype:
    """A dtype that weights may have, of whichever library, or its name: `float32`, `bfloat16`, ...

    Raises:
        ValueError: it is none, or weights cannot have it.
    """
    found: torch.dtype = getattr(torch, str(any_dtype(dtype)))
    return found


def to_numpy(tensor: Tensor) -> NDArray[Any]:
    """A tensor's values as numpy, bfloat16 included; no copy where it lives on the CPU."""
    tensor = tensor.cpu().resolve_neg()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def to_tensor(array: NDArray[Any]) -> Tensor:
    """A numpy array as a tensor on the CPU, bfloat16 included; it may share the array's memory."""
    array = np.require(array, requirements=["C", "W"])
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)
