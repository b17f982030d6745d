"""What a trace did not compare, or could not: said, so that silence means something."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from parity.tracing.compare.comparison import Comparison
from parity.tracing.compare.errors import FORWARD, worst
from parity.tracing.match.align import Alignment, Pair
from parity.tracing.match.operations import candidates
from parity.tracing.match.rules import Link
from parity.tracing.record.calls import Call, Kind, Site
from parity.tracing.record.flax_side import FlaxCalls
from parity.tracing.record.torch_side import TorchRecord
from parity.tracing.result import Note

_CLEARLY = 10
_MOMENTUM = 1e-9
Calls = Mapping[Site, Call[Any]]


def require_something_to_compare(torch_calls: Calls, flax_calls: Calls) -> None:
    """Whether some output of the one model can be some output of the other.

    Raises:
        ValueError: none can; with the shapes of both.
    """
    root = Site("")
    ones, others = torch_calls[root].outputs, flax_calls[root].outputs
    for side, outputs in (("PyTorch", ones), ("Flax", others)):
        if not outputs:
            raise ValueError(
                f"the {side} model returns no arrays: let it return arrays, or tuples, lists or "
                "dicts of them"
            )
    if not any(any(candidates(a.shape, b.shape)) for a in ones.values() for b in others.values()):
        raise ValueError(
            f"the PyTorch model returns {_shapes(ones)}, the Flax model {_shapes(others)}: nothing "
            "to compare; give both the same inputs, with the same batch size and length"
        )


def notes_of(
    record: TorchRecord,
    flax: FlaxCalls,
    links: Sequence[Link],
    names: tuple[Iterable[str], Iterable[str]],
    alignment: Alignment,
    natural: Comparison,
) -> list[Note]:
    """All that there is to say, by kind.

    Args:
        record: the calls of the PyTorch model.
        flax: those of the Flax model.
        links: which tensors are the same.
        names: of all tensors, PyTorch's and Flax's.
        alignment: which calls are the same.
        natural: the comparison of both models as they ran.
    """
    ones, others = {link.torch for link in links}, {link.flax for link in links}
    return [
        *_alike(
            "{} of the PyTorch model has no partner",
            [n for n in names[0] if n not in ones]
            + [f"call {site}" for site in alignment.torch_alone],
        ),
        *_alike(
            "{} of the Flax model has no partner",
            [n for n in names[1] if n not in others]
            + [f"call {s}" for s in alignment.flax_alone if s.method == "__call__"],
        ),
        *_alike("{} is held by a module that never ran", _idle(record, links)),
        *_alike(
            "{} runs in a compiled loop: to have the calls in it compared, pass jit=False",
            flax.looped,
        ),
        *_alike(
            "{} is mapped over an axis by JAX: the calls in it are compared as a part of what is "
            "around them",
            flax.mapped,
        ),
        *_kept_otherwise(record.calls, flax.calls, alignment),
        *_not_compared(record.calls, flax.calls, alignment, natural),
    ]


def unnoticed(alignment: Alignment, natural: Comparison) -> list[Note]:
    """Of two models that are the same function: where they first do something else inside.

    Such as rotary positions that count from 1 on one side: attention sees their differences only.

    Args:
        alignment: which calls are the same.
        natural: the comparison of both models as they ran.
    """
    for pair, kind in _in_time(alignment, None):
        if kind == "inputs" and alignment.parent[pair] is None:
            continue  # these were given
        error = worst(natural.errors.get((pair, kind), []))
        # Rounding that comes from far away is more than that of one call.
        bound = _CLEARLY * FORWARD[natural.dtype.get(pair, "float64")]
        if error > bound:
            which = "what goes into" if kind == "inputs" else "the output of"
            words = f"{which} {pair.torch[0]} differs by {error:.1e}, and nothing after it notices"
            return [Note(f"{words}: another way to compute the same")]
    return []


def _in_time(alignment: Alignment, parent: Pair | None) -> Iterator[tuple[Pair, Kind]]:
    """What goes into each call and comes out of it, in order."""
    for pair in alignment.children(parent):
        yield pair, "inputs"
        yield from _in_time(alignment, pair)
        yield pair, "outputs"


def _alike(sentence: str, things: Sequence[str]) -> list[Note]:
    """One note of all that this is true of, if there is any."""
    return [Note(sentence, tuple(things))] if things else []


def _idle(record: TorchRecord, links: Sequence[Link]) -> list[str]:
    """Tensors whose module was not called, and that got no gradient from elsewhere."""
    ran = {site.path for site in record.calls}
    return [
        name
        for name in dict.fromkeys(link.torch for link in links)
        if name.rpartition(".")[0] not in ran and name not in record.gradients
    ]


def _kept_otherwise(torch_calls: Calls, flax_calls: Calls, alignment: Alignment) -> list[Note]:
    """Norms that training would give other running statistics: PyTorch's momentum is 1 - Flax's."""
    found = []
    for pair in alignment.pairs:
        one, other = torch_calls[pair.torch[0]].kept, flax_calls[pair.flax[0]].kept
        if one is not None and other is not None and abs(one - other) > _MOMENTUM:
            shares = f"{one:.6g} of its statistics in PyTorch (momentum {1 - one:.6g}), {other:.6g}"
            found.append(f"{pair.torch[0]} keeps {shares} in Flax (momentum {other:.6g})")
    return _alike("{} at each training step, which no evaluation shows", found)


def _not_compared(
    torch_calls: Calls, flax_calls: Calls, alignment: Alignment, natural: Comparison
) -> list[Note]:
    shapes, dtypes, nans = [], [], []
    for pair in alignment.pairs:
        one, other = torch_calls[pair.torch[0]], flax_calls[pair.flax[0]]
        for kind in ("inputs", "outputs"):
            a, b = one.of(kind), other.of(kind)
            errors = natural.errors.get((pair, kind), [])
            if a and b and not errors:
                which = "what goes into" if kind == "inputs" else "the output of"
                shapes.append(f"{which} {pair.torch[0]} ({_shapes(a)}, in Flax {_shapes(b)})")
            if any(error.not_finite == "both sides" for error in errors):
                nans.append(str(pair.torch[0]))
        mine, theirs = _dtypes(one), _dtypes(other)
        if mine and theirs and mine != theirs:
            dtypes.append(f"{pair.torch[0]} gives {mine} in PyTorch and {theirs} in Flax")
    notes = _alike("{} was not compared: the shapes do not fit", shapes)
    if dtypes:
        notes.append(Note(f"{dtypes[0]}: judged by the less precise ({len(dtypes)} calls)"))
    if nans:
        notes.append(Note(f"NaN on both sides, first in {nans[0]}: what is NaN is not compared"))
    return notes


def _dtypes(call: Call[Any]) -> str:
    return ", ".join(sorted({str(leaf.dtype) for leaf in call.outputs.values()} & _FLOATS))


_FLOATS = {"float64", "float32", "float16", "bfloat16"}


def _shapes(arrays: Mapping[str, Any]) -> str:
    return ", ".join(str(tuple(leaf.shape)) for leaf in arrays.values())
