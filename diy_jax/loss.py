"""Cross-entropy of the next token, in chunks of tokens: all logits at once never exist.

Shapes: B batch, S sequence, D hidden, V vocabulary, C tokens of a chunk.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from diy_core import validate
from diy_core.validate import IGNORED
from diy_jax import inputs


def cross_entropy(
    hidden: Float[Array, "B S D"],
    labels: Any,
    project: Callable[[Array], Array],
    *,
    z_loss: float = 0.0,
    chunk_tokens: int = 1024,
) -> tuple[Float[Array, ""], Int[Array, ""]]:
    """The sum over counted tokens of logsumexp(z) - z[label] + z_loss * logsumexp(z)**2.

    The logits z of a chunk of tokens are computed, used and dropped, and computed again in the
    backward pass; the gradient of the head is summed over the chunks, in the dtype of its
    parameter. What is not counted has no influence, even where its hidden state is not finite.

    Args:
        hidden: the trunk's output.
        labels: integers (B, S), the token that each position has to predict, or -100: not counted.
        project: logits (1, C, V) of hidden states (1, C, D), such as the model's `project`.
        z_loss: the weight of the second term, which keeps logits from drifting.
        chunk_tokens: C at most; the tokens are cut into chunks of nearly the same size.

    Returns:
        The sum, in float32 (float64 for float64 hidden states), and the number of tokens counted.

    Raises:
        ValueError: labels outside of the vocabulary, which are NaN where they cannot be seen; of
            another shape or no integers; or no room for a token in a chunk.

    Source of the second term: Chowdhery et al., arXiv:2204.02311, section 5.
    """
    total, counted, _ = token_losses(
        hidden, labels, project, z_loss=z_loss, chunk_tokens=chunk_tokens
    )
    return total, counted


def token_losses(
    hidden: Float[Array, "B S D"],
    labels: Any,
    project: Callable[[Array], Array],
    *,
    z_loss: float = 0.0,
    chunk_tokens: int = 1024,
) -> tuple[Float[Array, ""], Int[Array, ""], Float[Array, "B S"]]:
    """What `cross_entropy` gives, and next to it the loss of each token, without gradients.

    A token that is not counted has a loss of 0. The rest is as it is there.
    """
    chunk_tokens = validate.check_chunk_tokens(chunk_tokens)
    labels = inputs.prepare_labels(labels, hidden.shape[:2])
    tokens, wide = labels.size, np.promote_types(hidden.dtype, np.float32)
    chunks = -(-tokens // chunk_tokens)
    length = -(-tokens // chunks)
    vocab_size = jax.eval_shape(project, hidden[:1, :1]).shape[-1]
    validate.check_labels(inputs.host_values(labels), vocab_size)

    padding = chunks * length - tokens
    rows = jnp.pad(hidden.reshape(tokens, -1), ((0, padding), (0, 0)))
    labels = inputs.wide_labels(labels)
    targets = jnp.pad(labels.reshape(tokens), (0, padding), constant_values=IGNORED)

    @jax.checkpoint  # or each chunk's logits would be kept for the backward pass
    def add_chunk(total: Array, chunk: tuple[Array, Array]) -> tuple[Array, Array]:
        states, wanted = chunk
        counted = wanted != IGNORED
        # Zeros in, and zeros out: a gradient of 0 times a NaN would be NaN.
        states = jnp.where(counted[:, None], states, 0)
        logits = project(states[None])[0].astype(wide)
        losses = _losses(logits, jnp.where(counted, wanted, 0), z_loss)
        losses = jnp.where(counted, losses, 0)
        return total + losses.sum(), jax.lax.stop_gradient(losses)

    parts = rows.reshape(chunks, length, -1), targets.reshape(chunks, length)
    total, each = jax.lax.scan(add_chunk, jnp.zeros((), wide), parts)
    counted = (labels != IGNORED).sum(dtype=jnp.int32)
    return total, counted, each.reshape(-1)[:tokens].reshape(labels.shape)


def _losses(
    logits: Float[Array, "C V"], labels: Int[Array, " C"], z_loss: float
) -> Float[Array, " C"]:
    """The maximum is taken off first: loss = log sum exp(z - max) - (z[label] - max) is exact
    where the model is sure, and logsumexp(z) - z[label] is not.
    """
    top = jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True))
    shifted = logits - top
    rest = jnp.log(jnp.exp(shifted).sum(axis=-1))
    wanted = labels.clip(0, logits.shape[-1] - 1)
    losses = rest - jnp.take_along_axis(shifted, wanted[:, None], axis=-1)[:, 0]
    # Where labels cannot be seen, those of no token must not pass for those of another. A product,
    # so that gradients are NaN, too.
    losses = losses * jnp.where(labels == wanted, jnp.ones((), losses.dtype), math.nan)
    if z_loss:
        losses = losses + z_loss * jnp.square(rest + top[:, 0])
    return losses
