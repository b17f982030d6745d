"""What a trace is given: models that it can watch, and inputs as each of the two takes them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import errors, linen

from diy_torch.tensors import to_numpy, to_tensor

Arguments = tuple[tuple[Any, ...], dict[str, Any]]

_ITS_PARAMS = "params must be those of this Flax module, as its init gives them"
_HINTS: dict[type[Exception], str] = {
    errors.ScopeParamNotFoundError: _ITS_PARAMS,
    errors.ScopeParamShapeError: f"{_ITS_PARAMS}, and inputs of the size that it was made for",
    errors.ScopeCollectionNotFound: _ITS_PARAMS,
    errors.ApplyScopeInvalidVariablesStructureError: _ITS_PARAMS,
    errors.InvalidRngError: "a trace needs a model without random numbers: make it deterministic",
    errors.ModifyScopeVariableError: "a trace changes no state: switch it to evaluation "
    "(use_running_average=True for BatchNorm)",
}
_OWN_INPUTS = 'if the two take different ones, pass {"torch": (args, kwargs), "flax": ...}'


def check_models(torch_module: Any, flax_module: Any) -> None:
    """Refuse what hooks and interceptors cannot watch, or what would differ by chance.

    Raises:
        TypeError: no module of PyTorch, or none of Linen.
        ValueError: a compiled or scripted module, parameters without data, or dropout or batch
            norm in training mode.
    """
    if not isinstance(torch_module, torch.nn.Module):
        raise TypeError(f"the first model must be a torch.nn.Module, not {_kind(torch_module)}")
    if not isinstance(flax_module, linen.Module):
        raise TypeError(f"the second model must be a flax.linen.Module, not {_kind(flax_module)}")
    for path, part in torch_module.named_modules():
        name = path or "the PyTorch model"
        if hasattr(part, "_orig_mod"):
            raise ValueError(f"{name} is compiled, and its calls are hidden: pass the original")
        if isinstance(part, torch.jit.ScriptModule):
            raise ValueError(f"{name} is scripted, and its calls are hidden: pass the original")
        if part.training and _is_random(part):
            raise ValueError(
                f"{name} ({_kind(part)}) is in training mode, where it differs from itself: "
                "call .eval() on the PyTorch model"
            )
    for name, tensor in torch_module.state_dict(keep_vars=True).items():
        if isinstance(tensor, torch.Tensor) and tensor.is_meta:
            raise ValueError(f"{name} is on the meta device and has no data: load the weights")


def _is_random(part: torch.nn.Module) -> bool:
    if isinstance(part, torch.nn.modules.dropout._DropoutNd):
        return part.p > 0
    if isinstance(part, torch.nn.RNNBase):
        return part.dropout > 0
    return isinstance(part, torch.nn.modules.batchnorm._BatchNorm)


@contextlib.contextmanager
def answering(side: str) -> Iterator[None]:
    """What goes wrong in a model becomes a `ValueError` that says in which, and what to do."""
    try:
        yield
    except Exception as error:
        hint = next((h for kind, h in _HINTS.items() if isinstance(error, kind)), _OWN_INPUTS)
        said = str(error).partition(" (https://")[0]
        raise ValueError(
            f"the {side} model cannot be called with what it was given: {_kind(error)}: {said}; "
            f"{hint}"
        ) from error


def both(inputs: Any) -> tuple[Arguments, Arguments]:
    """The arguments of the PyTorch model and of the Flax model."""
    if isinstance(inputs, Mapping) and set(inputs) == {"torch", "flax"}:
        return _arguments(inputs["torch"]), _arguments(inputs["flax"])
    return _arguments(inputs), _arguments(inputs)


def _arguments(given: Any) -> Arguments:
    if isinstance(given, Mapping):
        return (), dict(given)
    if not isinstance(given, tuple):
        return (given,), {}
    if len(given) == 2 and isinstance(given[0], tuple) and isinstance(given[1], Mapping):
        return given[0], dict(given[1])
    return given, {}


def as_torch(arguments: Any, device: torch.device) -> Any:
    """Arrays of any library as tensors, copies where they are none yet."""

    def convert(leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor):
            leaf = leaf.clone() if leaf.is_inference() else leaf
            return leaf.to(device)
        if isinstance(leaf, np.ndarray | jax.Array):
            return to_tensor(np.array(leaf)).to(device)
        return leaf

    with torch.inference_mode(False):  # or they could have no gradients
        return jax.tree.map(convert, arguments)


def as_variables(params: Any) -> dict[str, Any]:
    """Variables of a Linen module, out of params, variables or a TrainState; boxes are opened.

    Raises:
        TypeError: something else.
    """
    if not isinstance(params, Mapping):
        params = getattr(params, "params", params)
    if not isinstance(params, Mapping):
        raise TypeError(f"params must be a dict of them, got a {type(params).__name__}")
    return dict(linen.meta.unbox(params if "params" in params else {"params": params}))


def as_jax(arguments: Any) -> Any:
    """Arrays of any library as JAX arrays."""

    def convert(leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor):
            leaf = to_numpy(leaf.detach())
        return jnp.asarray(leaf) if isinstance(leaf, np.ndarray) else leaf

    return jax.tree.map(convert, arguments)


def _kind(thing: Any) -> str:
    return type(thing).__name__
