"""The key/value cache: one `(cached, position)` per layer, each row with a position of its own.

`cached` is `{"key": (B, K, T, H), "value": (B, K, T, H)}` with T slots; `position` is int32 (B,):
how many tokens each row has cached. Slot t of a row holds its token t, so slots from `position` on
are free.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from diy_core.capacity import SMALLEST, capacity_for
from diy_core.config import DIYConfig, require_config
from diy_core.validate_cache import check_size
from diy_torch.tensors import float_dtype

Cached = dict[str, Tensor]
PastKeyValues = list[tuple[Cached, Tensor]]


def init_cache(
    config: DIYConfig,
    batch_size: int,
    max_length: int = SMALLEST,
    dtype: Any = torch.float32,
    device: torch.device | str | None = None,
) -> PastKeyValues:
    """An empty cache with room for `max_length` tokens a row, rounded up to a capacity.

    An eager call gives it more room where it needs some. Compiled code cannot: there, a row that
    has no room left gets logits that are NaN, so compile for the longest sequence.

    Args:
        config: of the model.
        batch_size: B, the rows.
        max_length: tokens of a row.
        dtype: of the keys and values, that of the model: one of any library, or its name.
        device: where the cache lives; None is the CPU.

    Returns:
        For each layer a pair: a dict of `key` and `value`, zeros (B, K, T, H) with the capacity T;
        and how many tokens each row holds, zeros of int32 (B,).

    Raises:
        ValueError: `max_length` is beyond `max_position_embeddings`; sizes that are none; or a
            dtype that weights cannot have.
        TypeError: something else than a config.
    """
    require_config(config)
    batch_size, max_length = check_size(batch_size, max_length)
    return empty_cache(config, batch_size, max_length, float_dtype(dtype), device)


def empty_cache(
    config: DIYConfig,
    batch_size: int,
    max_length: int,
    dtype: torch.dtype,
    device: torch.device | str | None,
) -> PastKeyValues:
    """What `init_cache` returns, for what a model has checked; compiled code may call it, too."""
    capacity = capacity_for(max_length, config.max_position_embeddings)
    shape = (batch_size, config.kv_heads, capacity, config.head_size)
    return [
        (
            {name: torch.zeros(shape, dtype=dtype, device=device) for name in ("key", "value")},
            torch.zeros(batch_size, dtype=torch.int32, device=device),
        )
        for _ in range(config.num_hidden_layers)
    ]


def grow_cache(
    past_key_values: PastKeyValues, max_length: int, max_position_embeddings: int
) -> PastKeyValues:
    """The same cache with room for `max_length` tokens a row; unchanged where it has the room.

    Args:
        past_key_values: the cache; it is not changed.
        max_length: tokens of a row, rounded up to a capacity.
        max_position_embeddings: of the model.

    Returns:
        The cache, as `init_cache` describes it.

    Raises:
        ValueError: `max_length` is beyond `max_position_embeddings`.
    """
    capacity = capacity_for(max_length, max_position_embeddings)
    missing = capacity - past_key_values[0][0]["key"].shape[2]
    if missing <= 0:
        return past_key_values
    return [
        ({name: functional.pad(old, (0, 0, 0, missing)) for name, old in cached.items()}, position)
        for cached, position in past_key_values
    ]


def update_cache(
    cached: Cached,
    position: Int[Tensor, " B"],
    key: Float[Tensor, "B K S H"],
    value: Float[Tensor, "B K S H"],
    seq_lengths: Int[Tensor, " B"],
) -> tuple[Cached, Int[Tensor, " B"]]:
    """Write the first `seq_lengths` columns of each row behind its `position`.

    The slots are written in place (as transformers' caches do) unless gradients are being recorded;
    positions are always new, so an older cache of the same row still reads what it wrote, until
    another call writes over it.

    Returns:
        The cache and its new positions, `position + seq_lengths`.
    """
    capacity, columns = cached["key"].shape[2], key.shape[2]
    rows = torch.arange(key.shape[0], device=key.device)[:, None]
    # Padded columns must leave no trace. They repeat their row's last valid column (and write the
    # same numbers to the same slot again); where a row has none, they write back what was there.
    place = torch.arange(columns, device=key.device)[None, :]
    column = torch.minimum(place, seq_lengths[:, None] - 1).clamp(min=0)
    slot = (position[:, None] + column).clamp(0, capacity - 1)
    empty = (seq_lengths == 0)[:, None, None, None]
    repeated = (place != column)[:, :, None, None]
    updated = {}
    for name, new in (("key", key), ("value", value)):
        old = cached[name]
        written = torch.where(empty, old[rows, :, slot], new[rows, :, column])
        if torch.is_grad_enabled() and (new.requires_grad or old.requires_grad):
            old = old.clone()
            # Each write to a slot would get the whole gradient of that slot.
            written = torch.where(repeated, written.detach(), written)
        old[rows, :, slot] = written
        updated[name] = old
    return updated, position + seq_lengths
