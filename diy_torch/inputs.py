"""From what users pass to what the model computes with: checks, conversion, lengths, cache room."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from diy_core import validate, validate_cache
from diy_core.arrays import as_host_array, renumbered, signed
from diy_core.config import DIYConfig
from diy_torch.cache import Cached, PastKeyValues, empty_cache, grow_cache

_INT32 = torch.iinfo(torch.int32)


def host_values(x: Tensor, wait: bool = False) -> NDArray[Any] | None:
    """The values as numpy, or None where they cannot be seen.

    They cannot under `torch.compile`, `vmap` or with fake tensors; and on an accelerator, where a
    look would wait for the device, only `wait=True` looks.
    """
    if _is_hidden(x) or (x.device.type != "cpu" and not wait):
        return None
    return as_numpy(x)


def as_numpy(x: Tensor) -> NDArray[Any]:
    """The values as numpy; floats that it does not have, such as bfloat16, as float32."""
    x = x.detach().cpu()
    known = not x.is_floating_point() or x.dtype in (torch.float16, torch.float32, torch.float64)
    return (x if known else x.float()).numpy()


def _is_hidden(x: Tensor) -> bool:
    """Whether nobody can see the values, however long they wait."""
    return (
        torch.compiler.is_compiling()
        or isinstance(x, FakeTensor)
        or torch._C._functorch.is_functorch_wrapped_tensor(x)
        or x.device.type == "meta"
    )


def dtype_name(dtype: torch.dtype) -> str:
    """`float32` for `torch.float32`: the name that numpy and JAX use."""
    return str(dtype).removeprefix("torch.")


def as_tensor(name: str, value: Any) -> Tensor:
    """Tensors as they are; lists and arrays on the host, where their values are checked."""
    if isinstance(value, Tensor):
        return value
    return torch.as_tensor(signed(as_host_array(name, value)))


def _narrow(x: Tensor) -> Tensor:
    """As int32; integers that do not fit stay out of range, and are not cut to others."""
    return _wide(x).clamp(_INT32.min, _INT32.max).to(torch.int32)


def _wide(x: Tensor) -> Tensor:
    """As int64; integers that do not fit become the largest."""
    wide = x.to(torch.int64)
    if x.dtype == torch.uint64:
        wide = torch.where(wide < 0, torch.iinfo(torch.int64).max, wide)
    return wide


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
        ValueError: any other mask, or a mask and lengths that disagree. Where values cannot be
            seen, the length of such a row is -1.
    """
    if attention_mask is None:
        return seq_lengths
    mask = as_tensor("attention_mask", attention_mask)
    values = host_values(mask)
    validate.check_attention_mask(mask.shape, values, ids.shape, has_cache)
    lengths = _lengths_of_rows(mask.to(ids.device))
    if seq_lengths is None:
        return lengths
    given = as_tensor("seq_lengths", seq_lengths)
    validate.check_seq_lengths(
        given.shape,
        dtype_name(given.dtype),
        host_values(given),
        ids.shape,
        has_cache,
        mask_lengths=None if values is None else values.astype(np.int64).sum(axis=1),
    )
    return torch.where(lengths == _narrow(given.to(ids.device)), lengths, -1)


def _lengths_of_rows(mask: Tensor) -> Tensor:
    ones = mask.bool()
    lengths = ones.sum(dim=1, dtype=torch.int32)
    column = torch.arange(mask.shape[1], dtype=torch.int32, device=mask.device)
    straight = (ones == (column[None, :] < lengths[:, None])) & (mask == ones.to(mask.dtype))
    return torch.where(straight.all(dim=1), lengths, -1)


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
    return _narrow(lengths.to(ids.device))


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
        return empty_cache(config, batch, columns, dtype, ids.device)
    validate_cache.check_layers(past_key_values, Tensor)
    layers = [
        (cached, as_tensor("past_key_values position", position).to(ids.device))
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
    layers = [
        (cached, _narrow(position).expand(batch))
        for cached, (_, position) in zip(_unshared(layers), layers, strict=True)
    ]
    # Growing needs the real counts, so this look waits for an accelerator: once for all layers.
    positions = host_values(torch.stack([position for _, position in layers]), wait=True)
    new, limit = host_values(lengths, wait=True), config.max_position_embeddings
    if positions is None or new is None:
        return layers
    capacity = layers[0][0]["key"].shape[2]
    return grow_cache(
        layers, validate_cache.check_room(list(positions), new, capacity, limit), limit
    )


def _unshared(layers: PastKeyValues) -> list[Cached]:
    """Keys and values, each slot with memory of its own, because slots are written in place.

    A row that was expanded to a batch shares its slots between rows, and a layer that was repeated
    shares them between layers: what one writes, the others would read.
    """
    seen: list[Tensor] = []

    def own(array: Tensor) -> Tensor:
        expanded = any(
            step == 0 and size > 1 for step, size in zip(array.stride(), array.shape, strict=True)
        )
        if expanded or any(_same_memory(array, other) for other in seen):
            return array.clone(memory_format=torch.contiguous_format)
        seen.append(array)
        return array

    return [{name: own(array) for name, array in cached.items()} for cached, _ in layers]


def _same_memory(one: Tensor, other: Tensor) -> bool:
    if one is other or _is_hidden(one) or _is_hidden(other):
        return one is other
    return one.data_ptr() == other.data_ptr()


def prepare_labels(labels: Any, hidden_shape: Sequence[int]) -> Tensor:
    """Labels of the right form, integers (B, S); `wide_labels` makes them ready to compare.

    Raises:
        ValueError: not integers, or not one for each token.
    """
    if not isinstance(labels, Tensor):
        advice = f"pad the rows on the right with {validate.IGNORED}"
        labels = torch.as_tensor(signed(as_host_array("labels", labels, advice)))
    validate.check_label_form(labels.shape, dtype_name(labels.dtype), hidden_shape)
    return labels


def wide_labels(labels: Tensor) -> Tensor:
    """As int64, where -100 is not one of the token ids, as it is among small unsigned integers."""
    return _wide(labels)


def prepare_segments(segment_ids: Any, ids: Tensor, cached: bool) -> Tensor | None:
    """Checked segments, (B, S), or None.

    Raises:
        ValueError: not integers, not the shape of the ids, or together with a cache.
    """
    if segment_ids is None:
        return None
    segments = segment_ids
    if not isinstance(segments, Tensor):
        segments = torch.as_tensor(signed(renumbered(as_host_array("segment_ids", segments))))
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
        key = torch.as_tensor(as_host_array("dropout_key", key))
    validate.check_dropout_key(key.shape, dtype_name(key.dtype), cached)
    return key
