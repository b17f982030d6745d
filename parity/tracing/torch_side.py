"""Every module call of a PyTorch model: inputs, outputs and their gradients, by hooks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch.utils import _pytree as pytree

from diy_torch.checkpoint import to_numpy
from parity.tracing.calls import Call, Kind, Numbering, Site
from parity.tracing.spool import Spool, Stored


@dataclasses.dataclass
class TorchRecord:
    """What a PyTorch model computed.

    Attributes:
        calls: in the order in which they began.
        loss: its value; None without gradients.
        gradients: of every parameter that the loss depends on, by name.
    """

    calls: dict[Site, Call[Stored]]
    spool: Spool
    loss: float | None = None
    gradients: dict[str, Stored] = dataclasses.field(default_factory=dict)


def record_torch(
    module: torch.nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    spool: Spool,
    loss: Callable[[Any], torch.Tensor] | None,
) -> TorchRecord:
    """Run a model forward, and backward where there is a loss.

    Args:
        module: any module; its parameters and their `.grad` stay as they are.
        args: and kwargs: its inputs, tensors on its device.
        spool: where the arrays go.
        loss: a scalar of the outputs; None: forward only.
    """
    recorder = _Recorder(spool)
    hooks = []
    for path, part in module.named_modules():
        hooks.append(
            part.register_forward_pre_hook(partial(recorder.enter, path), with_kwargs=True)
        )
        hooks.append(part.register_forward_hook(partial(recorder.leave, path)))
    record = TorchRecord(recorder.calls, spool)
    try:
        with torch.set_grad_enabled(loss is not None):
            outputs = module(*args, **kwargs)
            if loss is None:
                return record
            value = loss(outputs)
            names, parameters = _parameters(module)
            found = torch.autograd.grad(value, parameters, allow_unused=True)
    finally:
        for hook in hooks:
            hook.remove()
    record.loss = float(value.detach())
    record.gradients = {
        name: spool.put(to_numpy(gradient.detach()))
        for name, gradient in zip(names, found, strict=True)
        if gradient is not None
    }
    return record


def _parameters(module: torch.nn.Module) -> tuple[list[str], list[torch.nn.Parameter]]:
    """The parameters that have gradients, each once."""
    found = {name: p for name, p in module.named_parameters() if p.requires_grad}
    return list(found), list(found.values())


class _Recorder:
    def __init__(self, spool: Spool) -> None:
        self.calls: dict[Site, Call[Stored]] = {}
        self._spool = spool
        self._numbering = Numbering()
        self._open: list[Site] = []

    def enter(self, path: str, module: Any, args: Any, kwargs: Any) -> Any:
        site = self._numbering.next(path)
        parent = self._open[-1] if self._open else None
        self.calls[site] = Call(site, parent, type(module).__name__)
        self._open.append(site)
        return (
            self._tapped(args, site, "inputs", "input_gradients", "args"),
            self._tapped(kwargs, site, "inputs", "input_gradients", "kwargs"),
        )

    def leave(self, path: str, module: Any, args: Any, output: Any) -> Any:
        return self._tapped(output, self._open.pop(), "outputs", "output_gradients", "")

    def _tapped(self, tree: Any, site: Site, kind: Kind, gradients: Kind, prefix: str) -> Any:
        """The same tree; its tensors are recorded, and will be when their gradients arrive.

        A tensor is replaced by a view of itself, whose gradient is that of this one use.
        """
        call = self.calls[site]

        def tap(keys: Any, leaf: Any) -> Any:
            if not isinstance(leaf, torch.Tensor):
                return leaf
            name = leaf_name(prefix, keys)
            call.of(kind)[name] = self._spool.put(to_numpy(leaf.detach()))
            if not leaf.requires_grad:
                return leaf
            view = leaf.view_as(leaf)

            def keep(gradient: torch.Tensor) -> None:
                if gradient.any():  # none is as good as one of zeros
                    call.of(gradients)[name] = self._spool.put(to_numpy(gradient.detach()))

            view.register_hook(keep)
            return view

        return pytree.tree_map_with_path(tap, tree)


def leaf_name(prefix: str, keys: Any) -> str:
    """`args.1.0`, from the keys of a tree library (PyTorch's or JAX's)."""
    parts = [prefix] if prefix else []
    for key in keys:
        for attribute in ("key", "idx", "name"):
            if hasattr(key, attribute):
                parts.append(str(getattr(key, attribute)))
                break
    return ".".join(parts)
