"""Between the two twins in memory: a `state_dict()` and Flax params."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

import diy_jax.checkpoint
import diy_jax.given_weights
import diy_torch.checkpoint
import diy_torch.given_weights
from diy_core.config import DIYConfig, require_config
from diy_core.mapping import TIED_HEAD, tensors
from diy_core.notes import settle


def to_flax(
    state_dict: Mapping[str, torch.Tensor] | torch.nn.Module, config: DIYConfig
) -> dict[str, Any]:
    """The PyTorch twin's `state_dict()` as params of the Flax twin, dtypes kept.

    What was taken another way than it stands there, such as a prefix, is a `CheckpointNote`.

    Args:
        state_dict: it, or the module; also compiled, wrapped, under a prefix, or with the names of
            Hugging Face, where all tensors then match.
        config: of the model.

    Returns:
        params, a nested dict of JAX arrays in Flax's layout: kernels are (in, out).

    Raises:
        CheckpointError: tensors missing, extra or misshapen, or a tied head that is not the
            embedding; all faults at once.
        ValueError: float64 tensors while JAX's 64-bit mode is off.
    """
    require_config(config)
    notes: list[str] = []
    found = diy_torch.given_weights.given_weights(state_dict, config, notes)
    settle("state_dict", notes)
    return diy_jax.tensors.build_params(
        ((t, diy_torch.tensors.to_numpy(found[t.torch])) for t in tensors(config)), None
    )


def to_torch(params: Any, config: DIYConfig) -> dict[str, torch.Tensor]:
    """The Flax twin's params as a `state_dict` for the PyTorch twin, dtypes kept.

    A tied head is in it twice, under both of its names, as in the twin's own `state_dict()`. What
    was taken another way than it stands there, such as levels above, is a `CheckpointNote`.

    Args:
        params: they, or `{"params": params}`, an `nnx.State`, a TrainState; arrays may be in boxes.
        config: of the model.

    Returns:
        The tensors by their names, on the CPU, in torch's layout: weights are (out, in).

    Raises:
        CheckpointError: parameters missing, extra or misshapen; all faults at once.
    """
    require_config(config)
    notes: list[str] = []
    rows, flat = tensors(config), diy_jax.given_weights.given_weights(params, config, notes)
    settle("params", notes)
    state_dict = {
        tensor.torch: diy_torch.tensors.to_tensor(
            tensor.to_flax.inverse(diy_jax.tensors.to_numpy(flat[tensor.flax])).copy()
        )
        for tensor in rows
    }
    if config.tie_word_embeddings:
        state_dict[TIED_HEAD] = state_dict[rows[0].torch]
    return state_dict
