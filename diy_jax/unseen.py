"""Rows that eager code on a CPU refuses, where nobody can see values to refuse: they become NaN.

`jit` and accelerators hide values. A number that would be wrong must not look right there, so
every logit of such a row is NaN, and its cache says from then on that it cannot be continued.

Shapes: B batch, S sequence of this call, D hidden.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from diy_core.config import DIYConfig
from diy_core.validate_cache import WRONG
from diy_jax.cache import Cached, PastKeyValues
from diy_jax.inputs import host_values

Presents = list[tuple[Cached, Array] | None]


def wrong_rows(
    ids: Int[Array, "B S"],
    lengths: Int[Array, " B"],
    past: PastKeyValues | None,
    has_cache: bool,
    config: DIYConfig,
) -> Bool[Array, " B"] | None:
    """The rows that would have been refused; None where all values were seen and checked.

    Args:
        ids: token ids.
        lengths: valid tokens of each row of this call.
        past: the cache that is continued, with a position per row in each layer.
        has_cache: whether the caller handed it in, so that a row may be empty.
        config: of the model.
    """
    positions = [position for _, position in past or ()]
    if all(host_values(values) is not None for values in (ids, lengths, *positions)):
        return None
    columns = ids.shape[1]
    strange = (ids < 0) | (ids >= config.vocab_size)
    fewest = 0 if has_cache else 1
    wrong = strange.any(axis=1) | (lengths < fewest) | (lengths > columns)
    if past is not None:
        room = min(past[0][0]["key"].shape[2], config.max_position_embeddings)
        wrong = wrong | (positions[0] < 0) | (positions[0] > room - lengths)
        for position in positions[1:]:
            wrong = wrong | (position != positions[0])
    return wrong


def spoil(
    wrong: Bool[Array, " B"] | None, hidden: Float[Array, "B S D"], presents: Presents
) -> tuple[Float[Array, "B S D"], Presents]:
    """NaN for hidden states and gradients of wrong rows, and a position that no later call can
    continue from."""
    if wrong is None:
        return hidden, presents
    # A product, so that gradients through it are NaN, too; in no wider dtype, which a TPU has not.
    hidden = hidden * jnp.where(wrong, math.nan, jnp.ones((), hidden.dtype))[:, None, None]
    return hidden, [layer and (layer[0], jnp.where(wrong, WRONG, layer[1])) for layer in presents]
