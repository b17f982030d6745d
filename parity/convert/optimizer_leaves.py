"""Reading AdamW states: where torch keeps each parameter, and what is what in a tree of optax's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.tree_util import GetAttrKey, keystr, tree_leaves_with_path

from diy_core.config import DIYConfig
from diy_core.errors import CheckpointError
from diy_core.mapping import TIED_EMBEDDING, TIED_HEAD, flatten, match, tensors, unflatten
from diy_torch.tensors import to_numpy

Mask = Mapping[str, Any] | Callable[[Any], Any]
Places = dict[str, tuple[int, Mapping[str, Any]]]  # by torch name: index and group
MOMENTS = ("exp_avg", "exp_avg_sq")
# What the fields of optax's states are for; by name, because optax does not export every class.
# A field that is not here and has numbers in it (a momentum, a random key) is refused.
_FIELDS = {
    "ScaleByAdamState.mu": "exp_avg",
    "ScaleByAdamState.nu": "exp_avg_sq",
    "ScaleByAdamState.count": "step",
    "ScaleByScheduleState.count": "counter",
    "WrappedScheduleState.count": "counter",
    "InjectStatefulHyperparamsState.count": "counter",
    "InjectStatefulHyperparamsState.hyperparams": "kept",
    "InjectStatefulHyperparamsState.hyperparams_states": "states",
    "InjectStatefulHyperparamsState.inner_state": "states",
    "MultiStepsState.mini_step": "mini-step",
    "MultiStepsState.gradient_step": "counter",
    "MultiStepsState.inner_opt_state": "states",
    "MultiStepsState.acc_grads": "gradients",
    "MultiStepsState.skip_state": "kept",
    "MaskedState.inner_state": "states",
    "PartitionState.inner_states": "states",
}


class Leaf(NamedTuple):
    """An array in an optax state: its field and what that is for, which state has it, and where."""

    field: str
    use: str
    owner: str
    path: str
    value: Any


def _leaf(opt_state: Any, path: Any, value: Any) -> Leaf:
    """The first field on the path that is not for further states says what the array is."""
    node = opt_state
    for i, key in enumerate(path):
        if isinstance(key, GetAttrKey):
            field = f"{type(node).__name__}.{key.name}"
            use = _FIELDS.get(field, "")
            if use != "states":
                rest = keystr(path[i + 1 :], simple=True, separator="/")
                return Leaf(field, use, keystr(path[:i]), rest, value)
            node = getattr(node, key.name)
        else:
            node = node[key.key if hasattr(key, "key") else key.idx]
    return Leaf("an array outside of optax's states", "", "", "", value)


def refuse(faults: list[str] | str) -> None:
    """Raise a CheckpointError unless there are no faults."""
    if faults:
        raise CheckpointError("optimizer state", faults)


def decays(group: Mapping[str, Any]) -> bool:
    """Whether a torch parameter group has weight decay."""
    return bool(group.get("weight_decay", 0) != 0)


def not_finite(name: str, key: str, array: Any) -> list[str]:
    """The fault of a moment with values that are not finite, or none."""
    return [] if np.isfinite(array).all() else [f"{key} of {name} is not finite"]


def places_of(
    state_dict: Mapping[str, Any],
    config: DIYConfig,
    names: Iterable[str] | None,
    mask: Mask | None,
) -> tuple[Places, list[str]]:
    """Where every parameter is in a torch optimizer, and what is wrong with its groups."""
    if not isinstance(state_dict, Mapping) or not {"state", "param_groups"} <= state_dict.keys():
        refuse(
            "the torch side must be what the optimizer's state_dict() gives, with state and "
            f"param_groups, got {type(state_dict).__name__}"
        )
    groups, rows = state_dict["param_groups"], tensors(config)
    every = [(index, group) for group in groups for index in group["params"]]
    stored = [name for group in groups for name in group.get("param_names", [])]
    given = stored if names is None else list(names)
    if not given:
        refuse(
            "the torch groups have no param_names: build the optimizer from "
            "model.named_parameters(), or pass names=[...], its parameters' names in order"
        )
    if stored and given != stored:
        refuse("names differ from the param_names of the torch groups; leave one of the two out")
    if len(given) != len(every):
        refuse(f"{len(given)} names for {len(every)} parameters of the torch optimizer")
    if config.tie_word_embeddings:  # one parameter in torch, whichever of its names is given
        given = [TIED_EMBEDDING if name == TIED_HEAD else name for name in given]
    times, wanted, known = Counter(given), {tensor.torch for tensor in rows}, dict(every)
    places = {name: place for name, place in zip(given, every, strict=True) if name in wanted}
    faults = [f"the torch optimizer has no {name}" for name in sorted(wanted - times.keys())]
    faults += [f"the model has no parameter {name}" for name in sorted(times.keys() - wanted)]
    faults += [f"the torch optimizer has {name} twice" for name in times if times[name] > 1]
    faults += [f"torch's state {i} is in no group" for i in state_dict["state"] if i not in known]
    for i, group in enumerate(groups):
        if group.get("amsgrad"):
            faults.append(f"torch's group {i} has amsgrad, which optax.adamw has not")
        if decays(group) and not group.get("decoupled_weight_decay", True):
            faults.append(f"torch's group {i} adds weight_decay to the gradient: not AdamW")
    if mask is None:
        return places, faults
    shapes = {row.flax: jax.ShapeDtypeStruct(row.flax_shape, np.float32) for row in rows}
    said = flatten(mask(unflatten(shapes)) if callable(mask) else mask)
    if said.keys() != {row.flax for row in rows}:
        return places, [*faults, "decay_mask has other parameters than the model"]
    faults += [
        f"weight_decay of {row.torch} is {places[row.torch][1]['weight_decay']} in torch, but "
        f"decay_mask is {said[row.flax]}"
        for row in rows
        if row.torch in places and decays(places[row.torch][1]) != bool(said[row.flax])
    ]
    return places, faults


def read_torch(
    state: Mapping[int, Any], places: Places, config: DIYConfig, faults: list[str]
) -> tuple[dict[tuple[str, str], Any], dict[str, int]]:
    """Moments by torch name and key, in the torch layout, and steps by torch name."""
    arrays: dict[tuple[str, str], Any] = {}
    steps: dict[str, int] = {}
    for tensor in (tensor for tensor in tensors(config) if tensor.torch in places):
        name = tensor.torch
        entry = state.get(places[name][0])
        if not entry:  # torch makes it at the first step
            steps[name] = 0
            continue
        if entry.keys() != {"step", *MOMENTS}:
            faults.append(f"torch has {sorted(entry)} of {name}; AdamW: exp_avg, exp_avg_sq, step")
            continue
        step = float(entry["step"])
        if step >= 0 and step.is_integer():
            steps[name] = int(step)
        else:
            faults.append(f"step {step} of {name} is not a whole number")
        for key in MOMENTS:
            array = arrays[name, key] = to_numpy(entry[key].detach())
            found, wanted = {f"{key} of {name}": array.shape}, {f"{key} of {name}": tensor.shape}
            faults += [*match(found, wanted), *not_finite(name, key, array)]
    return arrays, steps


def read_optax(
    opt_state: Any, config: DIYConfig, faults: list[str]
) -> tuple[list[Leaf], dict[tuple[str, str], Leaf]]:
    """All leaves of an optax state, and the moments among them by torch name and torch's key."""
    leaves = [_leaf(opt_state, path, value) for path, value in tree_leaves_with_path(opt_state)]
    strange = sorted({leaf.field for leaf in leaves if not leaf.use})
    faults += [f"optax's state has {field}, which torch's AdamW has not" for field in strange]
    if not any(leaf.use == "step" for leaf in leaves):
        refuse(
            [
                *faults,
                "opt_state has no ScaleByAdamState in it: not made by optax.adamw, or read from "
                "a file as plain dicts",
            ]
        )
    rows = {"/".join(tensor.flax): tensor for tensor in tensors(config)}
    moments: dict[tuple[str, str], Leaf] = {}
    for key in MOMENTS:
        here = [leaf for leaf in leaves if leaf.use == key]
        found = {leaf.path: tuple(leaf.value.shape) for leaf in here}
        wanted = {path: tensor.flax_shape for path, tensor in rows.items()}
        faults += [f"optax's {key}: {fault}" for fault in match(found, wanted)]
        times = Counter(leaf.path for leaf in here)
        faults += [f"{key} of {p} is in {n} Adam states" for p, n in times.items() if n > 1]
        moments |= {(rows[leaf.path].torch, key): leaf for leaf in here if leaf.path in rows}
    return leaves, moments
