"""What a checkpoint holds besides its weights and the model does without.

Some of it goes by its name (tables of rotary embedding, positions, room for a cache), some by its
name and values: the mask of causal attention, a bias of zeros, the scale of a quantisation where
nothing is quantised. A mask or a bias of other values changes the function and is kept: then it is
a tensor too many.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping, Set
from typing import Any

import numpy as np
from numpy.typing import NDArray

Shapes = Mapping[str, tuple[int, ...]]
Pieces = Callable[[str], Iterable[NDArray[Any]]]  # the values of a tensor, flat, a piece at a time
# Tables by names that no weight has, wherever they are; by any name in what rotates; and masks,
# positions and room for a cache.
_ROTARY = re.compile(
    r"(.*\.)?_?(original_|long_|short_)?(inv_freqs?|(cos|sin)_cached?|cos_sin_cached?"
    r"|freqs_(cis|cos|sin)|(rope|rotary)_(cos|sin|freqs|cache)|cos|sin)"
    r"|(.*\.)?_?(rotary|rope)(_pos|_position)?(_embs?|_embed|_embedding|_fn)?\."
    r"(original_|long_|short_)?(freqs|theta|cache|scale|attention_scaling)"
)
_PLACES = re.compile(
    r"(.*\.)?((self_attn|attn|attention)\.masked_bias|position_ids|cache_position"
    r"|kv_cache\.(k_cache|v_cache|cache_pos))"
)
_MASK = re.compile(
    r"(.*\.)?((self_attn|attn|attention|self_attention)\."
    r"(bias|mask|tril|causal_bias|attention_mask)"
    r"|causal_mask|mask_cache|attn_mask|attn_bias)|(model|transformer|decoder)\.mask"
)
_SCALE = re.compile(r"(.*\.)?((k|v|q|kv|prob|input|output)_scale)")
_BIAS = re.compile(r"(.*\.)?(\w+\.bias)")
_BLOCKED = -1e4  # a score of a masked position, or less


@dataclasses.dataclass(frozen=True)
class Buffers:
    """Names of what is left out.

    Attributes:
        rotary: tables of rotary embedding.
        masks: causal masks, and positions.
        scales: of a quantisation that is not there.
        biases: of zeros, where the model adds none.
        other: masks that are not causal, which are not left out.
    """

    rotary: list[str]
    masks: list[str]
    scales: list[str]
    biases: list[str]
    other: list[str]

    @property
    def names(self) -> Set[str]:
        """All that is left out."""
        return {*self.rotary, *self.masks, *self.scales, *self.biases}


def is_buffer(name: str) -> bool:
    """True for a name that no weight has and a buffer that follows from the config may have."""
    return any(pattern.fullmatch(name) for pattern in (_ROTARY, _PLACES, _MASK))


def find_buffers(found: Shapes, wanted: Iterable[str], values: Pieces) -> Buffers:
    """What of a checkpoint is left out.

    Args:
        found: all names, with shapes.
        wanted: the names of the tensors of the config.
        values: of a tensor; only those of masks and of biases are looked at.
    """
    rotary = [name for name in found if _ROTARY.fullmatch(name)]
    rest = {name: shape for name, shape in found.items() if name not in {*rotary}}
    # A mask has at least two dimensions; a `bias` of one is added to something.
    masks = {n: s for n, s in rest.items() if _MASK.fullmatch(n) and (len(s) > 1 or 0 in s)}
    causal = {name for name, shape in masks.items() if _is_causal(shape, values(name))}
    ours = {bias[2] for name in wanted if (bias := _BIAS.fullmatch(name))}
    return Buffers(
        rotary,
        [name for name in rest if name in causal or _PLACES.fullmatch(name)],
        [n for n, shape in rest.items() if _SCALE.fullmatch(n) and math.prod(shape) == 1],
        [
            name
            for name, shape in rest.items()
            if (bias := _BIAS.fullmatch(name))
            and len(shape) == 1
            and bias[2] not in ours
            and not any(_real(piece).any() for piece in values(name))
        ],
        [name for name in masks if name not in causal],
    )


def _is_causal(shape: tuple[int, ...], pieces: Iterable[NDArray[Any]]) -> bool:
    """Whether a mask lets each position see itself and all before it, and nothing else.

    It says so with true and false (or 1 and 0), either way round, or with 0 and minus infinity, or
    a large number in its place, to be added to scores.
    """
    if 0 in shape:
        return True
    rows, columns = shape[-2:]
    if rows != columns:
        return False
    seen, hidden = (math.inf, -math.inf), (math.inf, -math.inf)
    at = 0
    for piece in map(_real, pieces):
        places = np.arange(at, at + piece.size)
        below = places % columns <= places // columns % rows
        with np.errstate(invalid="ignore"):
            seen, hidden = _reach(seen, piece[below]), _reach(hidden, piece[~below])
        at += piece.size
    if hidden == (math.inf, -math.inf):
        hidden = (1.0 - seen[0],) * 2  # of one position, nothing is hidden
    if seen == (0.0, 0.0):
        return hidden == (1.0, 1.0) or hidden[1] <= _BLOCKED
    return seen == (1.0, 1.0) and hidden == (0.0, 0.0)


def _reach(so_far: tuple[float, float], piece: NDArray[Any]) -> tuple[float, float]:
    """The least and the greatest value so far; NaN, which equals nothing, if one is."""
    if not piece.size:
        return so_far
    return (
        float(np.minimum(so_far[0], piece.min())),
        float(np.maximum(so_far[1], piece.max())),
    )


def _real(piece: NDArray[Any]) -> NDArray[np.float64]:
    """The values as float64; NaN for complex ones, which neither a mask nor a bias has."""
    if np.iscomplexobj(piece):
        return np.full(piece.shape, np.nan)
    return piece.astype(np.float64)
