"""Between the two twins in memory: a `state_dict()` and Flax params."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

import diy_jax.checkpoint
import diy_torch.checkpoint
from diy_core.config import DIYConfig
from diy_core.errors import CheckpointError
from diy_core.mapping import TIED_HEAD, flatten, match, match_flax, tensors


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
