"""What the hooks record, against PyTorch asked in another way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from parity.tracing.record.calls import Site
from parity.tracing.record.spool import Spool
from parity.tracing.record.torch_side import TorchRecord, record_torch
from tests.parity.foreign_pairs import PAIRS, repeated
from tests.parity.small_pair import TorchChain, small_pair


@pytest.fixture
def spool() -> Iterator[Spool]:
    spool = Spool()
    yield spool
    spool.close()


def loss_of(outputs: Any) -> Tensor:
    leaves = [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]
    return sum((leaf.sin().sum() for leaf in leaves), torch.zeros((), dtype=torch.float64))


def arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    inputs = inputs["torch"] if isinstance(inputs, dict) and "torch" in inputs else inputs
    if isinstance(inputs, dict):
        wrap = torch.from_numpy
        return (), {k: wrap(v) if isinstance(v, np.ndarray) else v for k, v in inputs.items()}
    return (torch.from_numpy(inputs),), {}


class Nudges:
    """Zeros that are added to whatever a module takes or gives: the loss's gradients by them are
    those of this one use.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        self.zeros: dict[tuple[str, int, str, int], Tensor] = {}
        self._count: dict[str, int] = {}
        self._open: dict[str, list[int]] = {}
        for path, part in module.named_modules():
            part.register_forward_pre_hook(self._enter(path), with_kwargs=True)
            part.register_forward_hook(self._leave(path))

    def _enter(self, path: str) -> Any:
        def hook(module: Any, args: Any, kwargs: Any) -> Any:
            nth = self._count[path] = self._count.get(path, -1) + 1
            self._open.setdefault(path, []).append(nth)
            return self._nudged((args, kwargs), path, nth, "input")

        return hook

    def _leave(self, path: str) -> Any:
        def hook(module: Any, args: Any, output: Any) -> Any:
            return self._nudged(output, path, self._open[path].pop(), "output")

        return hook

    def _nudged(self, tree: Any, path: str, nth: int, kind: str) -> Any:
        leaves, spec = pytree.tree_flatten(tree)
        for i, leaf in enumerate(leaves):
            if isinstance(leaf, Tensor) and leaf.is_floating_point():
                zero = torch.zeros_like(leaf, requires_grad=True)
                self.zeros[path, nth, kind, i] = zero
                leaves[i] = leaf + zero
        return pytree.tree_unflatten(leaves, spec)


def gradients_of(record: TorchRecord, site: Site, kind: Any) -> list[Any]:
    return [record.spool.get(place) for place in record.calls[site].of(kind).values()]


@pytest.mark.parametrize("name", ["gpt", "mixer", "repeated"])
def test_gradients_are_those_of_the_loss(name: str, spool: Spool) -> None:
    pair = PAIRS[name][0]()
    args, kwargs = arguments(pair.inputs)
    record = record_torch(pair.torch, args, kwargs, spool, loss_of)
    assert all(parameter.grad is None for parameter in pair.torch.parameters())
    value = loss_of(pair.torch(*args, **kwargs))
    assert record.loss == pytest.approx(float(value.detach()), rel=1e-15)
    parameters = dict(pair.torch.named_parameters())
    expected = torch.autograd.grad(value, list(parameters.values()))
    assert list(record.gradients) == list(parameters)
    for gradient, place in zip(expected, record.gradients.values(), strict=True):
        np.testing.assert_allclose(spool.get(place), gradient.numpy(), rtol=1e-12)
    nudges = Nudges(pair.torch)
    value = loss_of(pair.torch(*args, **kwargs))
    found = torch.autograd.grad(value, list(nudges.zeros.values()), allow_unused=True)
    wanted: dict[tuple[str, int, str], list[Any]] = {}
    for (path, nth, kind, _), gradient in zip(nudges.zeros, found, strict=True):
        known = wanted.setdefault((path, nth, kind), [])
        if gradient is not None and gradient.any():
            known.append(gradient.numpy())
    compared = 0
    for (path, nth, kind), arrays in wanted.items():
        gradients: Any = f"{kind}_gradients"
        call = record.calls[Site(path, nth=nth)]
        if any(where == gradients for where, _ in call.unknown):
            continue  # changed in place, or no gradient at all
        mine = gradients_of(record, call.site, gradients)
        assert len(mine) == len(arrays), (path, kind)
        mine, arrays = sorted(mine, key=np.sum), sorted(arrays, key=np.sum)
        for one, other in zip(mine, arrays, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-15, err_msg=f"{path} {kind}")
            compared += 1
    assert compared >= 15


def test_calls_in_order_with_their_callers_and_arrays_by_name(spool: Spool) -> None:
    pair = repeated()
    args, kwargs = arguments(pair.inputs)
    record = record_torch(pair.torch, args, kwargs, spool, None)
    assert [str(site) for site in record.calls] == [
        "(root)",
        "norm",
        "cell",
        "cell.gate",
        "cell.mix",
        "norm (call 2)",
        "cell (call 2)",
        "cell.gate (call 2)",
        "cell.mix (call 2)",
        "out",
    ]
    call = record.calls[Site("cell", nth=1)]
    assert (call.parent, call.kind) == (Site(""), "TorchCell")
    assert record.calls[Site("cell.mix", nth=1)].parent == Site("cell", nth=1)
    assert list(call.inputs) == ["args.0", "kwargs.state"]
    assert list(call.outputs) == ["0", "1.gate"]
    assert list(record.calls[Site("")].outputs) == ["0.0", "0.1.0", "0.1.1", "1.last"]
    assert (record.loss, record.gradients) == (None, {})
    gate = spool.get(record.calls[Site("cell")].outputs["1.gate"])
    np.testing.assert_array_equal(spool.get(call.inputs["kwargs.state"]), gate)


def test_what_is_changed_in_place_is_recorded_as_it_was(spool: Spool) -> None:
    pair = repeated()
    args, kwargs = arguments(pair.inputs)
    record = record_torch(pair.torch, args, kwargs, spool, loss_of)
    mix = record.calls[Site("cell.mix")]
    x = torch.from_numpy(spool.get(mix.inputs["args.0"]))
    with torch.no_grad():
        np.testing.assert_allclose(spool.get(mix.outputs[""]), pair.torch.cell.mix(x), rtol=1e-14)
    # Its gradient is seen although `tanh_` took the place of the output.
    gradient = spool.get(mix.output_gradients[""])
    (parameter,) = [g for n, g in record.gradients.items() if n == "cell.mix.bias"]
    again = record.calls[Site("cell.mix", nth=1)]
    both = gradient.sum(0) + spool.get(again.output_gradients[""]).sum(0)
    np.testing.assert_allclose(both, spool.get(parameter), rtol=1e-12)


class Mutating(torch.nn.Module):
    """Doubles what it is given, in place; its caller relies on that."""

    def forward(self, x: Tensor) -> None:
        x.mul_(2)


class Caller(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(3, 3).double()
        self.mutating = Mutating()

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(x)
        self.mutating(x)
        return x


def test_a_model_computes_the_same_with_hooks(spool: Spool) -> None:
    model, x = Caller(), torch.ones(2, 3, dtype=torch.float64)
    record = record_torch(model, (x,), {}, spool, loss_of)
    expected = model(x).detach()
    assert torch.equal(torch.from_numpy(spool.get(record.calls[Site("")].outputs[""])), expected)
    call = record.calls[Site("mutating")]
    assert call.unknown == {("input_gradients", "args.0")}
    assert call.outputs == {}


def test_the_model_stays_as_it_was(spool: Spool) -> None:
    model = small_pair().torch
    model.layers[0].requires_grad_(False)
    model.out.weight.grad = torch.ones_like(model.out.weight)
    record = record_torch(model, (torch.ones(2, 6).double(),), {}, spool, loss_of)
    assert len(record.gradients) == 8  # frozen ones too: Flax knows none
    assert [p.requires_grad for p in model.parameters()] == [False] * 2 + [True] * 6
    assert torch.equal(model.out.weight.grad, torch.ones_like(model.out.weight))
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


class Failing(TorchChain):
    def forward(self, x: Tensor) -> Tensor:
        super().forward(x)
        raise KeyError("position_ids")


def test_a_model_that_fails_leaves_no_hooks(spool: Spool) -> None:
    model = Failing().double()
    with pytest.raises(ValueError, match=r"the PyTorch model cannot be called .* KeyError: 'pos"):
        record_torch(model, (torch.ones(2, 6).double(),), {}, spool, loss_of)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())
