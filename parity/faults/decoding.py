"""Faults that only a cache shows: where keys are kept, where a row stands, what it may see."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

import diy_jax.attention
import diy_jax.model
from parity.faults.fault import Fault, Patch
from parity.faults.patches import instead


def _update(change: Callable[..., Any]) -> tuple[Patch, ...]:
    """`change(original, cached, position, key, value, seq_lengths)` in place of the update."""
    return instead(diy_jax.attention, "update_cache", change)


def _positions(change: Callable[[Any, Any], tuple[Any, Any]]) -> tuple[Patch, ...]:
    """`change(positions, mask)` of what the model hands to its layers."""

    def make(original: Any) -> Any:
        return lambda ids, segments, past: change(*original(ids, segments, past))

    return (Patch(diy_jax.model, "_positions_and_mask", make),)


def _one_position(update: Any, cached: Any, position: Any, *new: Any) -> Any:
    present, _ = update(cached, jnp.broadcast_to(position[:1], position.shape), *new)
    return present, position + new[-1]


def _whole_rows(update: Any, cached: Any, position: Any, key: Any, value: Any, lengths: Any) -> Any:
    every = jnp.full_like(lengths, key.shape[2])
    present, _ = update(cached, position, key, value, every)
    return present, position + lengths


def _columns_counted(
    update: Any, cached: Any, position: Any, key: Any, value: Any, lengths: Any
) -> Any:
    present, _ = update(cached, position, key, value, lengths)
    return present, position + key.shape[2]


def _one_slot_late(update: Any, cached: Any, position: Any, *new: Any) -> Any:
    present, after = update(cached, position + 1, *new)
    return present, after - 1


def _exchanged(update: Any, cached: Any, position: Any, key: Any, value: Any, lengths: Any) -> Any:
    return update(cached, position, value, key, lengths)


def _rounded(update: Any, cached: Any, position: Any, key: Any, value: Any, lengths: Any) -> Any:
    key, value = (side.astype(jnp.bfloat16).astype(side.dtype) for side in (key, value))
    return update(cached, position, key, value, lengths)


def _top_left(positions: Any, mask: Any) -> tuple[Any, Any]:
    queries, keys = (jnp.arange(n) for n in mask.shape[1:])
    return positions, jnp.broadcast_to(keys[None, :] <= queries[:, None], mask.shape)


DECODING_FAULTS = [
    Fault(
        "cache-one-position",
        ("cache-position",),
        "decode",
        patches=_update(_one_position),
    ),
    Fault(
        "cache-padding-written",
        ("cache-padding-written",),
        "decode",
        patches=_update(_whole_rows),
    ),
    Fault(
        "cache-columns-counted",
        ("cache-positions",),
        "decode",
        patches=_update(_columns_counted),
    ),
    Fault(
        "cache-one-slot-late",
        ("cache-position",),
        "decode",
        patches=_update(_one_slot_late),
    ),
    Fault(
        "cache-exchanged",
        ("cache-swapped", "key-value-swapped"),
        "decode",
        model="mha",
        patches=_update(_exchanged),
    ),
    Fault(
        "cache-rounded",
        ("cache-rounded", "precision-bfloat16"),
        "decode",
        patches=_update(_rounded),
    ),
    Fault(
        "decode-positions",
        ("positions",),
        "decode",
        patches=_positions(lambda p, m: (p - p[:, :1], m)),
    ),
    Fault(
        "decode-one-position",
        ("positions",),
        "decode",
        patches=_positions(lambda p, m: (jnp.broadcast_to(p[:1], p.shape), m)),
    ),
    Fault(
        "decode-mask-top-left",
        ("mask-top-left",),
        "decode",
        patches=_positions(_top_left),
    ),
]
