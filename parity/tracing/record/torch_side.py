"""Every module call of a PyTorch model: inputs, outputs and their gradients, by hooks."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree as pytree

from diy_torch.tensors import to_numpy
from parity.tracing.record.calls import Call, Kind, Numbering, Site
from parity.tracing.record.inputs import answering
from parity.tracing.record.spool import Spool, Stored


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
    record = TorchRecord(recorder.calls, spool)
    with (
        torch.inference_mode(False),
        torch.set_grad_enabled(loss is not None),
        _all_learning(module, loss is not None) as parameters,
        recorder.listening(module),
    ):
        with answering("PyTorch"):
            outputs = module(*args, **kwargs)
        if loss is None:
            return record
        recorder.settle()
        value = loss(outputs)
        found = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
    record.loss = float(value.detach())
    record.gradients = {
        name: spool.put(to_numpy(gradient.detach()))
        for name, gradient in zip(parameters, found, strict=True)
        if gradient is not None
    }
    return record


@contextlib.contextmanager
def _all_learning(
    module: torch.nn.Module, gradients: bool
) -> Iterator[dict[str, torch.nn.Parameter]]:
    """The parameters that gradients are taken of: also frozen ones, since Flax knows none."""
    parameters = {name: p for name, p in module.named_parameters() if p.is_floating_point()}
    frozen = [p for p in parameters.values() if gradients and not p.requires_grad]
    try:
        for parameter in frozen:
            parameter.requires_grad_()
        yield parameters
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


class _Recorder:
    def __init__(self, spool: Spool) -> None:
        self.calls: dict[Site, Call[Stored]] = {}
        self._spool = spool
        self._numbering = Numbering()
        self._open: list[Site] = []
        self._tapped_tensors: list[tuple[torch.Tensor, int, Call[Stored], Kind, str]] = []
        self._changed: set[tuple[Site, Kind, str]] = set()

    @contextlib.contextmanager
    def listening(self, module: torch.nn.Module) -> Iterator[None]:
        """While the model runs in this context, every call is recorded."""
        hooks: list[Any] = []
        for path, part in module.named_modules():
            enter, leave = partial(self.enter, path), partial(self.leave, path)
            hooks.append(part.register_forward_pre_hook(enter, with_kwargs=True))
            hooks.append(part.register_forward_hook(leave))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def settle(self) -> None:
        """After the forward pass: find what was changed in place after it was seen.

        Such a change takes a view out of the graph, and with it the hook on its gradient. Of an
        output the gradient of all its uses is taken instead; of an input it stays unknown.
        """
        for tensor, version, call, kind, name in self._tapped_tensors:
            if tensor._version != version:
                self._changed.add((call.site, kind, name))
                if kind == "input_gradients":
                    call.unknown.add((kind, name))
        self._tapped_tensors.clear()

    def enter(self, path: str, module: Any, args: Any, kwargs: Any) -> Any:
        site = self._numbering.next(path)
        parent = self._open[-1] if self._open else None
        call = self.calls[site] = Call(site, parent, type(module).__name__)
        if isinstance(module, _BatchNorm) and module.momentum is not None:
            call.kept = 1 - module.momentum  # Flax's momentum is the other share
        self._open.append(site)
        new_args = self._tapped(args, site, "inputs", "input_gradients", "args")
        new_kwargs = self._tapped(kwargs, site, "inputs", "input_gradients", "kwargs")
        return None if new_args is None else (new_args, new_kwargs)

    def leave(self, path: str, module: Any, args: Any, output: Any) -> Any:
        return self._tapped(output, self._open.pop(), "outputs", "output_gradients", "")

    def _tapped(self, tree: Any, site: Site, kind: Kind, gradients: Kind, prefix: str) -> Any:
        """The same tree; its tensors are recorded, and will be when their gradients arrive.

        A tensor is replaced by a view of itself, whose gradient is that of this one use. Without
        gradients nothing is replaced: None.
        """
        call = self.calls[site]

        def tap(keys: Any, leaf: Any) -> Any:
            if not isinstance(leaf, torch.Tensor):
                return leaf
            name = leaf_name(prefix, keys)
            call.of(kind)[name] = self._spool.put(to_numpy(leaf.detach()))
            if not leaf.requires_grad or not torch.is_grad_enabled():
                call.unknown.add((gradients, name))
                return leaf
            view = leaf.view_as(leaf)
            self._tapped_tensors.append((view.detach(), view._version, call, gradients, name))

            def keep(changed: bool, gradient: torch.Tensor) -> None:
                wanted = changed == ((site, gradients, name) in self._changed)
                if wanted and gradient.any():  # none is as good as one of zeros
                    call.of(gradients)[name] = self._spool.put(to_numpy(gradient.detach()))

            view.register_hook(partial(keep, False))
            if kind == "outputs":
                leaf.register_hook(partial(keep, True))
            return view

        tapped = pytree.tree_map_with_path(tap, tree, is_leaf=_is_opaque)
        return tapped if torch.is_grad_enabled() else None


def _is_opaque(node: Any) -> bool:
    """Whether it is a tensor or an object of its own, such as a cache, that must stay the same."""
    return not isinstance(node, tuple | list | dict)


def leaf_name(prefix: str, keys: Any) -> str:
    """`args.1.0`, from the keys of a tree library (PyTorch's or JAX's)."""
    parts = [prefix] if prefix else []
    for key in keys:
        for attribute in ("key", "idx", "name"):
            if hasattr(key, attribute):
                parts.append(str(getattr(key, attribute)))
                break
    return ".".join(parts)
