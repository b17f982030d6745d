"""Weights as users hand them over: as variables, in boxes, in a state; here, plain params."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from diy_core.checkpoints.dtypes import fault_of_dtype
from diy_core.checkpoints.hf.dropped_buffers import note_on_biases
from diy_core.checkpoints.orbax.params import is_stacked, on_stacked
from diy_core.config import DIYConfig
from diy_core.errors import CheckpointError
from diy_core.mapping import flatten, match_flax, tensors, unflatten

_DEEPEST = 4  # levels above the params that are looked through


def plain_weights(weights: Any) -> dict[str, Any]:
    """Params as a nested dict of arrays.

    Args:
        weights: params; or `{"params": params}`, a FrozenDict, an `nnx.State`, a TrainState, what
            `flax.traverse_util.flatten_dict` gives of them (paths as tuples, or joined); the
            arrays may be in boxes (`Partitioned`, `LogicallyPartitioned`, `nnx.Param`).

    Raises:
        CheckpointError: something else; the message says what to pass.
    """
    for _ in range(_DEEPEST):
        held = weights.get("params") if isinstance(weights, Mapping) else _params_of(weights)
        if isinstance(held, Mapping):
            weights = held
    if not isinstance(weights, Mapping):
        raise CheckpointError(
            "params",
            f"are a {type(weights).__name__}: pass the nested dict, of an nnx module "
            "nnx.state(module, nnx.Param)",
        )
    joined = {"/".join(k) if _is_path(k) else k: value for k, value in weights.items()}
    flat = {
        tuple(re.split("[/.]", "/".join(path))): _unboxed(leaf)
        for path, leaf in flatten(joined).items()
        if not _is_random(leaf)
    }
    if any(isinstance(leaf, jax.core.Tracer) for leaf in flat.values()):
        raise CheckpointError(
            "params",
            "are traced, as inside of jax.jit, and have no values there: make this call outside of "
            "it (generate compiles its steps itself)",
        )
    faults = [f"parameter {'/'.join(p)} {f}" for p, leaf in flat.items() if (f := _fault(leaf))]
    if faults:
        raise CheckpointError("params", faults)
    return unflatten(flat)


def given_weights(
    weights: Any,
    config: DIYConfig,
    notes: list[str] | None = None,
    *,
    left_out: list[str] | None = None,
) -> dict[tuple[str, ...], Any]:
    """The params of a config by their paths, out of anything that `plain_weights` takes.

    Levels above `model` are looked through, and `model` may be missing, where all then match.

    Args:
        weights: anything that `plain_weights` takes.
        config: of the model.
        notes: is given a sentence for each thing that was not as usual.
        left_out: is given those about what is left out, which `notes` gets where this is None.

    Raises:
        CheckpointError: of `plain_weights`; or params missing, extra or misshapen, all at once; or
            params that are no floats.
    """
    found = flatten(plain_weights(weights))
    idle = _zero_biases(found, config)
    flat, said = _matching({p: leaf for p, leaf in found.items() if p not in idle}, config)
    if notes is not None:
        notes += said
    if (left_out := notes if left_out is None else left_out) is not None and idle:
        left_out.append(note_on_biases(["/".join(path) for path in idle]))
    if wrong := {path: f for path, leaf in flat.items() if (f := fault_of_dtype(leaf.dtype))}:
        faults = [f"parameter {'/'.join(path)} {fault}" for path, fault in wrong.items()]
        raise CheckpointError("params", faults)
    return flat


def _zero_biases(flat: Mapping[tuple[str, ...], Any], config: DIYConfig) -> list[tuple[str, ...]]:
    """The biases that the config does not have, and that add nothing."""
    ours = {tensor.flax[-2:] for tensor in tensors(config)}
    return [
        path
        for path, leaf in flat.items()
        if path[-1] == "bias" and path[-2:] not in ours and leaf.ndim == 1
        if not np.asarray(leaf).any()
    ]


def _matching(
    flat: dict[tuple[str, ...], Any], config: DIYConfig
) -> tuple[dict[tuple[str, ...], Any], list[str]]:
    """The params under the paths of the config, and a note where these are others."""
    faults = match_flax(flat, config)
    if not faults:
        return flat, []
    within = {("model", *path): leaf for path, leaf in flat.items()}
    if not match_flax(within, config):
        return within, ["the paths have no 'model' in front, as of a bare DIYModel"]
    below = _below(flat)
    if not match_flax(below, config):
        above = "/".join(next(iter(flat))[: -len(next(iter(below)))])
        return below, [f"the parameters lie below {above!r}, which was taken off their paths"]
    if stacked := next((path for path in below if is_stacked(path)), None):
        faults = [on_stacked(stacked, below[stacked])]
    raise CheckpointError("params", faults)


def _is_path(key: Any) -> bool:
    return isinstance(key, tuple) and all(isinstance(part, str) for part in key)


def _params_of(state: Any) -> Any:
    return getattr(state, "params", None)  # as a TrainState has them


def _below(flat: Mapping[tuple[str, ...], Any]) -> dict[tuple[str, ...], Any]:
    """Without the levels that all paths share, down to `model`."""
    below = dict(flat)
    for _ in range(_DEEPEST):
        tops = {path[0] for path in below}
        if len(tops) != 1 or tops == {"model"} or any(len(path) < 2 for path in below):
            break
        below = {path[1:]: leaf for path, leaf in below.items()}
    return below


def _unboxed(leaf: Any) -> Any:
    if isinstance(leaf, nn.Partitioned):
        leaf = leaf.unbox(apply_constraint=False)  # the mesh may be gone
    elif isinstance(leaf, nn.meta.AxisMetadata):
        leaf = leaf.unbox()
    elif hasattr(leaf, "get_value"):  # a Variable of nnx
        leaf = leaf.get_value()
    if isinstance(leaf, np.ndarray) and not leaf.dtype.isnative:
        return leaf.astype(leaf.dtype.newbyteorder("="))
    return leaf


def _is_random(leaf: Any) -> bool:
    """True for the keys and counts of nnx, which lie among the parameters of a module."""
    return hasattr(leaf, "get_value") and type(leaf).__name__ in ("RngKey", "RngCount")


def _fault(leaf: Any) -> str | None:
    """Why a leaf has no values, and what to do."""
    if not hasattr(leaf, "shape"):
        return f"is a {type(leaf).__name__} and no array: pass the params alone, as arrays"
    if not all(hasattr(leaf, name) for name in ("dtype", "__array__")):
        return "has a shape and no values: initialise or restore it"
    if isinstance(leaf, jax.Array) and leaf.is_deleted():
        return "was deleted, or donated to a step: pass what the step returned"
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return "lies on other hosts too: gather it (multihost_utils.process_allgather)"
    return None
