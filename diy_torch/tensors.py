"""Between arrays of numpy and tensors of PyTorch; the dtypes that weights may have."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diy_core.checkpoints.dtypes import any_dtype, dtype_of, rounded


def assign_weights(
    model: torch.nn.Module,
    named: Iterable[tuple[str, NDArray[Any]]],
    dtype: Any,
    device: torch.device | str | None,
    *,
    tied: bool,
) -> None:
    """Give a model that was built without storage its weights, one by one.

    Args:
        model: that model.
        named: each weight under its name in the model, in the layout of PyTorch.
        dtype: of the weights, or its name; None keeps that of each array.
        device: where they go; None is the CPU.
        tied: the head is the embedding again.

    Raises:
        ValueError: weights cannot have that dtype.
    """
    dtype = None if dtype is None else float_dtype(dtype)
    for name, array in named:
        module, _, leaf = name.rpartition(".")
        if dtype is not None and array.dtype == np.float64:  # torch would round twice
            array = rounded(array, dtype_of(str(dtype).removeprefix("torch.")))
        tensor = to_tensor(array).to(device="cpu" if device is None else device, dtype=dtype)
        setattr(model.get_submodule(module), leaf, torch.nn.Parameter(tensor))
    if tied:
        embedding = model.get_submodule("model.embed_tokens")
        model.get_submodule("lm_head").weight = embedding.weight


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
