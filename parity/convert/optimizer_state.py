"""AdamW's state between `torch.optim.AdamW.state_dict()` and the state of `optax.adamw`.

    torch  state[i]           "exp_avg"  "exp_avg_sq"  "step"   one for each parameter
    optax  ScaleByAdamState   .mu        .nu           .count   one for each transformation

Hyperparameters (learning rate, betas, eps, weight decay and its mask, clipping, nesterov) are not
carried: optax has them in its transformations and torch in its groups, and who builds both makes
them equal (`optax.adamw` decays 1e-4 by default, torch 1e-2). Those that `inject_hyperparams` puts
into the state stay as the template has them. The counters of optax's schedules become torch's step;
a torch LR scheduler has its position in a state of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

import diy_jax.checkpoint
from diy_core.config import DIYConfig
from diy_core.mapping import tensors, unflatten
from diy_torch.tensors import to_tensor
from parity.convert.optimizer_leaves import (
    MOMENTS,
    Leaf,
    Mask,
    decays,
    not_finite,
    places_of,
    read_optax,
    read_torch,
    refuse,
)


def optimizer_state_to_optax(
    state_dict: Mapping[str, Any],
    opt_state: Any,
    config: DIYConfig,
    *,
    names: Iterable[str] | None = None,
    decay_mask: Mask | None = None,
) -> Any:
    """The state of a `torch.optim.AdamW` as that of an optax chain around adamw, bit for bit.

    Args:
        state_dict: what the torch optimizer's `state_dict()` gave.
        opt_state: a template, what `tx.init(params)` gave; moments and counters are replaced.
        config: the model's.
        names: torch's parameter names in the order in which the optimizer was given the
            parameters; not needed where it was built from `named_parameters()`.
        decay_mask: the `mask` of `optax.adamw`, a bool for each parameter or a function of
            params that gives them, to be held against torch's groups.

    Raises:
        CheckpointError: the two do not fit, or optax has no place for what torch's state says; all
            faults at once.
    """
    places, faults = places_of(state_dict, config, names, decay_mask)
    leaves, moments = read_optax(opt_state, config, faults)
    arrays, steps = read_torch(state_dict["state"], places, config, faults)
    faults += [
        f"{key} of {name} is {array.dtype} in torch and {moments[name, key].value.dtype} in optax"
        for (name, key), array in arrays.items()
        if (name, key) in moments and array.dtype != moments[name, key].value.dtype
    ]
    step_of: dict[str, int] = {}
    for (name, key), leaf in moments.items():
        if key == "exp_avg_sq" or name not in steps:
            continue
        if step_of.setdefault(leaf.owner, steps[name]) != steps[name]:
            faults.append(
                f"torch's step of {name} is {steps[name]}, of others {step_of[leaf.owner]}; "
                "optax counts once for all of them"
            )
    last = max(steps.values(), default=0)
    counters = [leaf for leaf in leaves if leaf.use == "counter"]
    if counters and len(set(steps.values())) > 1:
        faults.append(f"torch's steps are {set(steps.values())}; optax's schedules have one")
    if last and any(leaf.use == "mini-step" for leaf in leaves):
        faults += [
            f"{leaf.field} outside of MultiSteps counts mini-steps, which torch does not tell"
            for leaf in counters
            if not leaf.field.startswith("MultiSteps") and ".inner_opt_state" not in leaf.owner
        ]
    refuse(faults)
    rows = {"/".join(tensor.flax): tensor for tensor in tensors(config)}

    def fill(leaf: Leaf) -> Any:
        shape, dtype = leaf.value.shape, leaf.value.dtype
        if leaf.use == "kept":
            return leaf.value
        if leaf.use in ("step", "counter"):
            return jnp.full(shape, step_of.get(leaf.owner, last), dtype)
        if leaf.use in MOMENTS and (rows[leaf.path].torch, leaf.use) in arrays:
            tensor = rows[leaf.path]
            return diy_jax.tensors.to_array(tensor.to_flax(arrays[tensor.torch, leaf.use]))
        return diy_jax.tensors.to_array(np.zeros(shape, dtype))

    return jax.tree.unflatten(jax.tree.structure(opt_state), map(fill, leaves))


def optimizer_state_to_torch(
    opt_state: Any,
    state_dict: Mapping[str, Any],
    config: DIYConfig,
    *,
    names: Iterable[str] | None = None,
    decay_mask: Mask | None = None,
) -> dict[str, Any]:
    """The state of an optax chain around adamw as that of a `torch.optim.AdamW`, bit for bit.

    The dtype of the torch parameters must be that of the moments: `load_state_dict` casts moments
    to it without a word, and a fresh optimizer's `state_dict()` does not tell it.

    Args:
        opt_state: what optax's last `update` gave.
        state_dict: a template, a fresh torch optimizer's `state_dict()`; its groups are kept.
        config: the model's.
        names: as in `optimizer_state_to_optax`.
        decay_mask: as in `optimizer_state_to_optax`.

    Raises:
        CheckpointError: the two do not fit, or torch has no place for what optax's state says; all
            faults at once.
    """
    places, faults = places_of(state_dict, config, names, decay_mask)
    leaves, moments = read_optax(opt_state, config, faults)
    step_of = {leaf.owner: int(leaf.value) for leaf in leaves if leaf.use == "step"}
    arrays = {key: diy_jax.tensors.to_numpy(leaf.value) for key, leaf in moments.items()}
    for (name, key), array in arrays.items():
        faults += not_finite(name, key, array)
        other = arrays.get((name, "exp_avg_sq"), array)
        if array.dtype != other.dtype:
            faults.append(
                f"mu of {name} is {array.dtype} and nu {other.dtype}; torch has both in the "
                "dtype of the parameter"
            )
    for leaf in leaves:
        if leaf.use == "counter" and {int(leaf.value)} != set(step_of.values()):
            counts = set(step_of.values())
            faults.append(f"{leaf.field} is {leaf.value}, Adam's {counts}; torch has one step")
        if leaf.use == "mini-step" and int(leaf.value) != 0:
            faults.append(
                f"{leaf.field} is {leaf.value}: torch's state has no place for accumulated "
                "gradients; carry it right after an update"
            )
        if leaf.use == "step" and int(np.float32(leaf.value)) != int(leaf.value):
            faults.append(f"{leaf.field} is {leaf.value}, which is not a float32 like torch's step")
    refuse(faults)
    state = {}
    for tensor in tensors(config):
        step = step_of[moments[tensor.torch, "exp_avg"].owner]
        back = {key: tensor.to_flax.inverse(arrays[tensor.torch, key]).copy() for key in MOMENTS}
        if step or any(array.any() for array in back.values()):
            state[places[tensor.torch][0]] = {
                "step": torch.tensor(float(step), dtype=torch.float32),
                **{key: to_tensor(array) for key, array in back.items()},
            }
    return {**state_dict, "state": state}


def decay_mask(
    state_dict: Mapping[str, Any], config: DIYConfig, *, names: Iterable[str] | None = None
) -> dict[str, Any]:
    """Which parameters a torch optimizer decays, as `optax.adamw(mask=...)` takes it.

    Args:
        state_dict: of the torch optimizer, with its `param_groups`.
        config: of the model.
        names: of the model's parameters in the order in which the optimizer was given them; None:
            that of the model.

    Returns:
        Bools in the shape of the Flax params, True where the group's `weight_decay` is not zero.

    Raises:
        CheckpointError: the optimizer's parameters are not those of this config.
    """
    places, faults = places_of(state_dict, config, names, None)
    refuse(faults)
    return unflatten({t.flax: decays(places[t.torch][1]) for t in tensors(config)})
