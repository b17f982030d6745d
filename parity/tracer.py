"""`parity.trace`: run two models side by side and name the first module that differs by itself."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import torch
from flax import linen as nn

from diy_torch.tensors import to_tensor
from parity.diagnosis.explain import diagnose
from parity.tracing.compare.comparison import Comparison
from parity.tracing.compare.errors import relative_error, worst
from parity.tracing.compare.flax_model import FlaxModel, projection
from parity.tracing.match.align import Alignment, Pair, align
from parity.tracing.match.infer import Inferred, infer
from parity.tracing.match.leftovers import by_values
from parity.tracing.match.rules import Link, Rule, links_of
from parity.tracing.notes import notes_of, require_something_to_compare, unnoticed
from parity.tracing.record.calls import Call, Kind, Site
from parity.tracing.record.flax_side import calls_of
from parity.tracing.record.inputs import (
    answering,
    as_jax,
    as_torch,
    as_variables,
    both,
    check_models,
)
from parity.tracing.record.spool import Spool
from parity.tracing.record.tensors import Arrays, flax_tensors, tied_names, torch_tensors
from parity.tracing.record.torch_side import TorchRecord, leaf_name, record_torch
from parity.tracing.result import Divergence, Note, Row, TraceResult
from parity.tracing.walk import Walk


def trace(
    torch_module: torch.nn.Module,
    flax_module: nn.Module,
    params: Any,
    inputs: Any,
    *,
    rules: Iterable[Rule] | None = None,
    loss: tuple[Callable[[Any], Any], Callable[[Any], Any]] | None = None,
    backward: bool = True,
    jit: bool = False,
) -> TraceResult:
    """Compare every module call of two models, and find the first that differs by itself.

    Args:
        torch_module: any module, in evaluation mode, on any device.
        flax_module: any Linen module.
        params: of the Flax module; or its variables, `{"params": ..., "batch_stats": ...}`, or a
            TrainState; arrays may be in boxes, such as `Partitioned`.
        inputs: for both: one array, a tuple of positional arguments, or a dict of keyword
            arguments; or `{"torch": ..., "flax": ...}`, each of these or `(args, kwargs)`, where
            the two take other ones. Arrays of any library.
        rules: which tensor is which; None: inferred from names, shapes and values.
        loss: of the outputs, for PyTorch and for Flax, each a scalar; None: a fixed random
            projection of them.
        backward: whether gradients are compared too.
        jit: run the Flax side compiled.

    Returns:
        What was found: `equal`, `first_divergence`, `rows` of all calls; `print()` shows it.

    Raises:
        RuleError: rules that match nothing, or something twice, or shapes that do not fit.
        ValueError: what a model cannot be called with, a model that differs from itself, or two
            whose outputs cannot be compared.
        TypeError: no PyTorch module, or no Linen module.
    """
    check_models(torch_module, flax_module)
    variables = as_jax(as_variables(params))
    one, other = both(inputs)
    device = next((p.device for p in torch_module.parameters()), torch.device("cpu"))
    spool = Spool()
    try:
        args, kwargs = as_jax(other)
        with answering("Flax"):
            flax = calls_of(flax_module, variables, args, kwargs, jit)
        if jit and flax.compiled:
            raise ValueError("nn.jit hides calls when it is compiled itself: pass jit=False")
        mine_args, mine_kwargs = as_torch(one, device)
        measure = (loss[0] if loss else _projected) if backward else None
        record = record_torch(torch_module, mine_args, mine_kwargs, spool, measure)
        require_something_to_compare(record.calls, flax.calls)
        mine, theirs = torch_tensors(torch_module), flax_tensors(variables)
        links, inferred = _links(rules, torch_module, mine, theirs, record, flax.calls)
        alignment = align(links, record.calls, flax.calls, tied_names(torch_module))
        model = FlaxModel(flax_module, variables, args, kwargs, jit, loss[1] if loss else None)

        def again(other: Spool) -> TorchRecord:
            its_args, its_kwargs = as_torch(one, device)
            return record_torch(torch_module, its_args, its_kwargs, other, None)

        walk = Walk(record, alignment, flax.calls, model, links, torch_module, again)
        with jax.disable_jit() if flax.eager else contextlib.nullcontext():
            culprit = walk.run(backward)
            found = None if culprit is None else diagnose(walk, culprit)
        return TraceResult(
            first_divergence=_with_nan(found, alignment, walk.natural),
            rows=_rows(alignment, walk.natural),
            parameters=_parameter_errors(links, mine, theirs),
            gradients=walk.gradient_errors,
            loss=None if record.loss is None or walk.loss is None else (record.loss, walk.loss),
            rules=inferred,
            kinds_of_notes=[
                *notes_of(record, flax, links, (mine, theirs), alignment, walk.natural),
                *(unnoticed(alignment, walk.natural) if found is None else []),
                *([Note(f"{walk.rounding}: the search went on")] if walk.rounding else []),
            ],
        )
    finally:
        spool.close()


def infer_rules(torch_module: torch.nn.Module, params: Any) -> Inferred:
    """Guess which tensor of one model is which of the other; `.print()` shows the table.

    Names, numbers in names, shapes, values (surest, where the weights have been carried over), and
    the place in the model.

    Args:
        torch_module: any module.
        params: of the Flax module, or its variables: arrays of any shape and dtype.

    Returns:
        The rules as `links`, with the evidence for each, and the tensors of either side that have
        no partner. None of it is tried: `trace` does that.

    Raises:
        TypeError: `params` is not a dict of arrays, nor what holds one.
    """
    variables = as_variables(params)
    theirs = flax_tensors(variables)
    ordered = {name: theirs[name] for name in sorted(theirs, key=_by_numbers)}
    return infer(torch_tensors(torch_module), ordered, _usual(torch_module))


def _by_numbers(name: str) -> list[Any]:
    """`Dense_2` before `Dense_10`: JAX sorts names as texts."""
    parts = re.split(r"(\d+)", name)
    return [int(part) if part.isdigit() else part for part in parts]


def _usual(module: torch.nn.Module) -> set[str]:
    """Tensors of layers whose layout in Flax is known."""
    kinds = (torch.nn.Linear, torch.nn.Embedding, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)
    inside = (torch.nn.MultiheadAttention, torch.nn.RNNBase)  # with names of their own
    return {
        f"{path}.{name}" if path else name
        for path, part in module.named_modules()
        for name, _ in part.named_parameters(recurse=False)
        if (isinstance(part, kinds) and name == "weight") or isinstance(part, inside)
    }


def _links(
    rules: Iterable[Rule] | None,
    module: torch.nn.Module,
    mine: Arrays,
    theirs: Arrays,
    record: TorchRecord,
    shapes: Mapping[Site, Call[Any]],
) -> tuple[list[Link], Inferred | None]:
    if rules is not None:
        wanted = [{name: a.shape for name, a in side.items()} for side in (mine, theirs)]
        usual = _usual(module)
        return [
            link if link.fixed or link.torch in usual else _by_values(link, mine, theirs)
            for link in links_of(rules, *wanted)
        ], None
    mine = _in_order(mine, record.calls, ".")
    theirs = _in_order(theirs, shapes, "/")
    found = infer(mine, theirs, _usual(module))
    return found.links, found


def _by_values(link: Link, mine: Arrays, theirs: Arrays) -> Link:
    """The link with the operation that makes both tensors equal, if there is one."""
    one, other = link.cut_torch(mine[link.torch]), link.from_flax(theirs[link.flax])
    return dataclasses.replace(link, operation=by_values(one, other) or link.operation)


def _in_order(arrays: Arrays, calls: Mapping[Site, Call[Any]], separator: str) -> Arrays:
    """Tensors in the order in which their modules are called."""
    order = {path: i for i, path in enumerate(dict.fromkeys(site.path for site in calls))}

    def rank(name: str) -> int:
        return order.get(
            name.partition(":")[2].rpartition(separator)[0]
            if ":" in name
            else name.rpartition(separator)[0],
            len(order),
        )

    return dict(sorted(arrays.items(), key=lambda item: rank(item[0])))


def _projected(outputs: Any) -> torch.Tensor:
    """The PyTorch side of the default loss."""
    parts = []
    for keys, leaf in torch.utils._pytree.tree_leaves_with_path(outputs):
        if isinstance(leaf, torch.Tensor) and leaf.requires_grad:
            weights = to_tensor(projection(tuple(leaf.shape), leaf_name("", keys)))
            parts.append((leaf * weights.to(leaf)).sum().double())
    if not parts:
        raise ValueError("no output depends on a parameter: pass backward=False, or a loss")
    return torch.stack(parts).sum()


def _parameter_errors(links: Sequence[Link], mine: Arrays, theirs: Arrays) -> dict[str, float]:
    found: dict[str, float] = {}
    for link in links:
        error = relative_error(link.from_torch(mine[link.torch]), link.from_flax(theirs[link.flax]))
        found[link.torch] = max(error, found.get(link.torch, 0.0))
    return found


def _rows(alignment: Alignment, natural: Comparison) -> list[Row]:
    def of(pair: Pair, kind: Any) -> float | None:
        return worst(natural.errors[pair, kind]) if (pair, kind) in natural.errors else None

    return [
        Row(
            " + ".join(map(str, pair.torch)),
            " + ".join(map(str, pair.flax)),
            of(pair, "inputs") or 0.0,
            of(pair, "outputs") or 0.0,
            of(pair, "input_gradients"),
            of(pair, "output_gradients"),
        )
        for pair in alignment.pairs
    ]


def _with_nan(
    found: Divergence | None, alignment: Alignment, natural: Comparison
) -> Divergence | None:
    """Where only one side is finite, that is what is to be said."""
    if found is None or found.error != math.inf:
        return found
    kind: Kind = "outputs" if found.direction == "forward" else "input_gradients"
    for pair in alignment.pairs:
        if found.torch in [site.path for site in pair.torch]:
            for error in natural.errors.get((pair, kind), []):
                if error.not_finite:
                    where = f"{found.where} (NaN/inf on {error.not_finite})"
                    return dataclasses.replace(found, where=where)
    return found
