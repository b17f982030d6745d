"""Hypotheses about an attention mask, True where a query may look: (..., queries, keys)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity.diagnosis.evidence import Evidence
from parity.tracing.result import Suspect

Array = NDArray[Any]


def mask_suspects(evidence: Evidence) -> Iterator[Suspect]:
    """Which keys one side hides, or shows, that the other does not."""
    one, other = evidence.target.torch, evidence.target.flax
    if one.dtype != bool or one.ndim < 2 or not one.size:
        return
    odd = evidence.odd
    for name, words, mask in _ways(one):
        if suspect := evidence.suspect(name, f"the mask {words} in {odd}", mask, other):
            yield suspect
            return
    # The first query has to see something.
    hidden = f"the mask hides each query's own key in {odd}"
    behind = _behind(one)[..., 1:, :]
    if suspect := evidence.suspect("mask-one-behind", hidden, behind, other[..., 1:, :]):
        yield suspect
        return
    yield from _window(evidence, one, other)


def causal_suspects(evidence: Evidence) -> Iterator[Suspect]:
    """One side hides the future and nothing else."""
    one, other = evidence.target.torch, evidence.target.flax
    if one.dtype != bool or one.ndim < 2 or not one.size:
        return
    causal = np.broadcast_to(np.tril(np.ones(one.shape[-2:], bool)), one.shape)
    if not (one & ~causal).any():
        words = f"the mask of {evidence.odd} is only causal: padding, other documents or a window "
        words += f"are hidden in {evidence.usual} alone"
        if suspect := evidence.suspect("mask-causal-only", words, causal, other):
            yield suspect
        return
    shown = (one & ~causal).any(axis=tuple(range(one.ndim - 1)))
    words = f"the mask of {evidence.usual} shows keys of the future, up to key "
    words += f"{int(np.flatnonzero(shown)[-1])}, as for a prefix; that of {evidence.odd} does not"
    if suspect := evidence.suspect("mask-prefix", words, one & causal, other):
        yield suspect


def differing_mask(evidence: Evidence) -> Iterator[Suspect]:
    """In words, where two masks differ; for when nothing explains it."""
    one, other = evidence.target.torch, evidence.target.flax
    if one.dtype != bool or one.ndim < 2 or one.shape != other.shape or not evidence.target.error:
        return
    more, fewer = int((other & ~one).sum()), int((one & ~other).sum())
    where = np.argwhere(one != other)
    first = ", ".join(map(str, where[0])) if len(where) else ""
    words = (
        f"the mask of {evidence.odd} shows {more} pairs of query and key that {evidence.usual} "
        f"hides, and hides {fewer} that it shows; first at [{first}]"
    )
    yield Suspect("mask-differs", words, evidence.target.error, None)


def _ways(one: Array) -> Iterator[tuple[str, str, Array]]:
    queries, keys = one.shape[-2:]
    ahead = np.roll(one, 1, axis=-1)
    ahead[..., 0] = one[..., 0]
    top = np.broadcast_to(np.tril(np.ones((queries, keys), bool)), one.shape)
    bottom = np.broadcast_to(np.tril(np.ones((queries, keys), bool), keys - queries), one.shape)
    yield "mask-one-ahead", "lets each query see one key of the future", ahead
    yield "mask-left-out", "hides nothing", np.ones_like(one)
    yield "mask-inverted", "is the other way round", ~one
    own = np.arange(queries)[:, None] + (keys - queries) == np.arange(keys)
    yield "mask-inverted", "is the other way round, but for each query's own key", ~one | own
    yield "mask-transposed", "has queries and keys swapped", one.swapaxes(-1, -2)
    if queries != keys:
        yield "mask-top-left", "is aligned top-left", top
        yield "mask-bottom-right", "is aligned bottom-right, whatever each row has cached", bottom
    rows = one.reshape(-1, queries, keys)
    for name, row in (("first", rows[:1]), ("last", rows[-1:])):
        alike = np.broadcast_to(row, rows.shape).reshape(one.shape)
        yield "mask-of-another-row", f"is that of the {name} row in all rows", alike
    future = np.arange(queries)[:, None] + (keys - queries) < np.arange(keys)
    yield "mask-diagonal", "lets each query see its own key only", one & own
    yield "mask-not-causal", "shows the future too", one | np.broadcast_to(future, one.shape)


def _behind(one: Array) -> Array:
    behind = np.roll(one, -1, axis=-1)
    behind[..., -1] = False
    return behind


def _window(evidence: Evidence, one: Array, other: Array) -> Iterator[Suspect]:
    """Keys that are too far away are hidden, or some keys from all queries."""
    if (other & ~one).any() or not other.any():
        return
    keys = np.arange(one.shape[-1])
    last = np.where(one, keys, -1).max(-1, keepdims=True)  # what each query sees at most
    size = int(np.where(other, last - keys, -1).max()) + 1
    words = f"the mask has a window of {size} keys in {evidence.odd}"
    if suspect := evidence.suspect("mask-window", words, one & (last - keys < size), other):
        yield suspect
        return
    seen = one & (keys != last)  # a query's own key may stay
    hidden = seen.any(axis=-2) & ~(seen & other).any(axis=-2)
    without = one & ~(hidden[..., None, :] & (keys != last))
    which = sorted(set(np.argwhere(hidden)[:, -1].tolist()))
    words = f"the mask hides keys {', '.join(map(str, which[:8]))} from all queries after them"
    for name, mask in (("own kept", without), ("", one & ~hidden[..., None, :])):
        said = f"{words} in {evidence.odd}" + (f" ({name})" if name else "")
        if which and (suspect := evidence.suspect("mask-keys-hidden", said, mask, other)):
            yield suspect
            return
