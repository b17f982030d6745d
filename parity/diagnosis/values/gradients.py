"""Hypotheses about a gradient that is not the same on both sides."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity.diagnosis.evidence import Value, value_evidence
from parity.diagnosis.layers.glue import formula, weighted_sum
from parity.diagnosis.values.outputs import channel_suspects, output_suspects
from parity.diagnosis.values.places import place_suspects
from parity.diagnosis.values.rounding import rounding_suspects
from parity.tracing.compare.errors import relative_error
from parity.tracing.result import Suspect

Array = NDArray[Any]


@np.errstate(all="ignore")  # what overflows explains nothing
def gradient_suspects(
    targets: Iterable[tuple[str, Value]], known: Mapping[str, Value], bound: float
) -> tuple[Suspect, ...]:
    """What each gradient that differs would have to be changed by.

    Args:
        targets: what it is the gradient of, and the gradient on both sides.
        known: other gradients in the same call, that it may be a sum of.
        bound: what error is none.
    """
    return tuple(_suspects(targets, known, bound))


def _suspects(
    targets: Iterable[tuple[str, Value]], known: Mapping[str, Value], bound: float
) -> Iterator[Suspect]:
    targets, unexplained = list(targets), []
    for what, value in targets:
        if value.error <= bound:
            continue
        found = False
        for suspect in _explained(what, value, known, bound):
            found = True
            yield suspect
        if not found:
            unexplained.append(what)
    if unexplained:
        alike = [what for what, value in targets if value.error <= bound]
        words = f"the derivative is another by {_listed(unexplained)}"
        words += f", and the same by {_listed(alike)}" if alike else ""
        worst = max(value.error for _, value in targets)
        yield Suspect("gradient-differs", words, worst, None)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")


def missing_gradient(what: str, side: str, error: float) -> Suspect:
    """A gradient that one side does not even make."""
    return Suspect("gradient-missing", f"{what} has no gradient in {side}: detached", error, 0.0)


def _explained(
    what: str, value: Value, known: Mapping[str, Value], bound: float
) -> Iterator[Suspect]:
    a, b, before = value.torch, value.flax, value.error
    if not np.any(b):
        yield missing_gradient(what, "Flax", before)
    elif not np.any(a):
        yield missing_gradient(what, "PyTorch", before)
    else:
        said = [*_related(what, a, b, before, bound)] or [*_sum(what, value, known, bound)]
        yield from said
        if said:
            return
        evidence = value_evidence(value, f"the gradient of {what}", bound)
        for hypothesis in _OF_VALUES:
            for view in (evidence, evidence.mirrored()):
                for suspect in hypothesis(view):
                    yield dataclasses.replace(suspect, name=f"gradient-{suspect.name}")
                    return


_OF_VALUES = (output_suspects, channel_suspects, rounding_suspects, place_suspects)


def _sum(what: str, value: Value, known: Mapping[str, Value], bound: float) -> Iterator[Suspect]:
    """A sum of gradients, as where a residual stream goes two ways, that lacks a part."""
    alike = {
        name: other
        for name, other in known.items()
        if other.torch.shape == value.torch.shape and other is not value
    }
    if not alike:
        return
    (mine, error), (theirs, after) = (
        weighted_sum({n: getattr(v, side) for n, v in alike.items()}, getattr(value, side), bound)
        for side in ("torch", "flax")
    )
    if max(error, after) <= bound and not np.allclose(mine, theirs, atol=1e-6):
        words = [formula(side, list(alike)) for side in (theirs, mine)]
        sentence = f"the gradient of {what} is that of {words[0]} in Flax, of {words[1]} in PyTorch"
        yield Suspect("gradient-sum", sentence, value.error, after)


def _related(what: str, a: Array, b: Array, before: float, bound: float) -> Iterator[Suspect]:
    factor = float(np.vdot(a, b) / np.vdot(a, a))
    if factor and np.isfinite(factor) and (after := relative_error(a * factor, b)) <= bound:
        words = f"the gradient of {what} is {factor:.6g} times PyTorch's in Flax"
        yield Suspect("gradient-scaled", words, before, after)
    if a.ndim == 2 and a.shape[0] == a.shape[1] and (after := relative_error(a.T, b)) <= bound:
        words = f"the gradient of {what} looks transposed"
        yield Suspect("gradient-transposed", words, before, after)
    limit = float(np.abs(b).max())
    if np.isfinite(limit) and (after := relative_error(np.clip(a, -limit, limit), b)) <= bound:
        words = f"the gradient of {what} is clipped to {limit:.4g} in Flax"
        yield Suspect("gradient-clipped", words, before, after)
