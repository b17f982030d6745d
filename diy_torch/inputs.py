"""From what users pass to what the model computes with: checks, conversion, lengths, cache room."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from diy_core import validate, validate_cache
from diy_core.config import DIYConfig
from diy_torch.cache import PastKeyValues, grow_cache, init_cache


def host_values(x: Tensor, wait: bool = False) -> NDArray[Any] | None:
    """The values as numpy, or None where they cannot be seen.

    They cannot under `torch.compile`, `vmap` or with fake tensors; and on an accelerator, where a
    look would wait for the device, only `wait=True` looks.
    """
    hidden = (
        torch.compiler.is_compiling()
        or isinstance(x, FakeTensor)
        or torch._C._functorch.is_functorch_wrapped_tensor(x)
        or x.device.type == "meta"
    )
    if hidden or (x.device.type != "cpu" and not wait):
        return None
    return x.detach().cpu().numpy()


def dtype_name(dtype: torch.dtype) -> str:
    """`float32` for `torch.float32`: the name that numpy and JAX use."""
    return str(dtype).removeprefix("torch.")


def as_tensor(name: str, value: Any) -> Tensor:
    """Tensors as they are; lists and arrays on the host, where their values are checked."""
    if isinstance(value, Tensor):
        return value
    array = validate.as_host_array(name, value)
    if array.dtype in (np.uint16, np.uint32, np.uint64) and (array <= np.iinfo(np.int64).max).all():
        array = array.astype(np.int64)  # torch computes little with these
    return torch.as_tensor(array)


def prepare_input_ids(input_ids: Any, config: DIYConfig, device: torch.device) -> Tensor:
    """Checked token ids, int64 (B, S).

    Raises:
        ValueError: not integers, not (B, S), out of the vocabulary, or too many columns.
    """
    ids = as_tensor("input_ids", input_ids)
    values = host_values(ids)
    validate.check_input_ids(ids.shape, dtype_name(ids.dtype), values, config)
    return ids.to(device, torch.int64)


def lengths_from_mask(attention_mask: Any, seq_lengths: Any, ids: Tensor, has_cache: bool) -> Any:
    """`seq_lengths` (B,) out of a mask of ones followed by zeros; the given lengths without one.

    Raises:
        ValueError: any other mask, or a mask and lengths that disagree.
    """
    if attention_mask is None:
        return seq_lengths
    mask = as_tensor("attention_mask", attention_mask)
    values = host_values(mask)
    validate.check_attention_mask(mask.shape, values, ids.shape, has_cache)
    lengths = mask.to(ids.device).sum(dim=1, dtype=torch.int32)
    if seq_lengths is not None:
        given = as_tensor("seq_lengths", seq_lengths)
        validate.check_seq_lengths(
            given.shape,
            dtype_name(given.dtype),
            host_values(given),
            ids.shape,
            has_cache,
            mask_lengths=None if values is None else values.astype(np.int64).sum(axis=1),
        )
    return lengths


def prepare_lengths(seq_lengths: Any, ids: Tensor, has_cache: bool) -> Tensor:
    """Checked lengths, int32 (B,); the whole row where none are given.

    Raises:
        ValueError: not integers, not (B,), out of range, or 0 without a cache.
    """
    if seq_lengths is None:
        return torch.full((ids.shape[0],), ids.shape[1], dtype=torch.int32, device=ids.device)
    lengths = as_tensor("seq_lengths", seq_lengths)
    validate.check_seq_lengths(
        lengths.shape, dtype_name(lengths.dtype), host_values(lengths), ids.shape, has_cache
    )
    return lengths.to(ids.device, torch.int32)


def prepare_cache(
    past_key_values: Any,
    config: DIYConfig,
    ids: Tensor,
    lengths: Tensor,
    dtype: torch.dtype,
) -> PastKeyValues:
    """The cache of this call: checked, with positions per row, and with room for the new tokens.

    Raises:
        ValueError: a cache that does not fit the model or the batch, or a row that would end
            beyond `max_position_embeddings`.
    """
    batch, columns = ids.shape
    if past_key_values is None:
        return init_cache(config, batch, columns, dtype, ids.device)
    layers = [
        (cached, torch.as_tensor(position, device=ids.device))
        for cached, position in past_key_values
    ]
    described = [
        validate_cache.CacheLayer(
            tuple(cached["key"].shape),
            tuple(cached["value"].shape),
            dtype_name(cached["key"].dtype),
            dtype_name(cached["value"].dtype),
            tuple(position.shape),
            dtype_name(position.dtype),
        )
        for cached, position in layers
    ]
    validate_cache.check_cache(described, config, ids.shape, dtype_name(dtype))
    layers = [(cached, position.to(torch.int32).expand(batch)) for cached, position in layers]
    # Growing needs the real counts, so this look waits for an accelerator.
    positions, new = host_values(layers[0][1], wait=True), host_values(lengths, wait=True)
    if positions is None or new is None:
        return layers
    needed = validate_cache.check_room(positions, new, config.max_position_embeddings)
    return grow_cache(layers, needed, config.max_position_embeddings)


def prepare_segments(segment_ids: Any, ids: Tensor, cached: bool) -> Tensor | None:
    """Checked segments, (B, S), or None.

    Raises:
        ValueError: not integers, not the shape of the ids, or together with a cache.
    """
    if segment_ids is None:
        return None
    segments = as_tensor("segment_ids", segment_ids)
    validate.check_segment_ids(segments.shape, dtype_name(segments.dtype), ids.shape, cached)
    return segments.to(ids.device)


def prepare_dropout_key(dropout_key: Any, cached: bool) -> Tensor | None:
    """Checked key, uint32 (2,), or None.

    Raises:
        ValueError: no key, or together with a cache.
    """
    if dropout_key is None:
        return None
    key = dropout_key
    if not isinstance(key, Tensor):
        key = torch.as_tensor(validate.as_host_array("dropout_key", key))
    validate.check_dropout_key(key.shape, dtype_name(key.dtype), cached)
    return key
