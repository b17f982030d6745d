"""All tensors of a model by name, on either side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import torch
from numpy.typing import NDArray

from diy_torch.tensors import to_numpy

Arrays = dict[str, NDArray[Any]]


def torch_tensors(module: torch.nn.Module) -> Arrays:
    """Parameters and floating-point buffers by name, a tied one once."""
    found = dict(module.named_parameters()) | {
        name: buffer for name, buffer in module.named_buffers() if buffer.is_floating_point()
    }
    return {name: to_numpy(tensor.detach()) for name, tensor in found.items()}


def flax_tensors(variables: Mapping[str, Any]) -> Arrays:
    """Arrays by path, those of another collection than `params` as `batch_stats:norm/mean`."""
    found = {}
    for collection, tree in variables.items():
        prefix = "" if collection == "params" else f"{collection}:"
        for keys, leaf in jax.tree_util.tree_leaves_with_path(tree):
            found[prefix + "/".join(str(key.key) for key in keys)] = np.asarray(leaf)
    return found


def tied_names(module: torch.nn.Module) -> dict[str, str]:
    """Further names of tied parameters, and their first name."""
    first: dict[int, str] = {}
    tied = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if id(parameter) in first:
            tied[name] = first[id(parameter)]
        first.setdefault(id(parameter), name)
    return tied
