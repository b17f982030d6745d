"""Greedy generation: prefill, then one token a step, each row stopping alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpy.typing import NDArray

from diy_core.capacity import capacity_for
from diy_core.generation import NOT_FINITE, GenerateOutput, OnTokens, Rows, require_model
from diy_jax.cache import PastKeyValues, empty_cache, grow_cache
from diy_jax.given_weights import plain_weights
from diy_jax.inputs import as_numpy

if TYPE_CHECKING:
    from diy_jax.model import DIYForCausalLM


def generate(
    model: DIYForCausalLM,
    params: Any,
    input_ids: Any,
    attention_mask: Any = None,
    *,
    max_new_tokens: int,
    eos_token_id: int | Sequence[int] | None = None,
    pad_token_id: int | None = None,
    on_tokens: OnTokens | None = None,
) -> GenerateOutput:
    """Continue each prompt with the most probable token, again and again.

    One prefill and one decode step are compiled per cache capacity; prompts are padded to the
    capacity, so that prompts of other lengths find them compiled.

    Args:
        model: the language model.
        params: its parameters, also as `{"params": params}` or in boxes.
        input_ids: integers (B, S), prompts padded on either side, or a list of B prompts of any
            lengths, such as [[1, 2], [3]].
        attention_mask: the same shape, 1 = token, 0 = padding; None where nothing is padded.
        max_new_tokens: at most so many tokens are added to each row.
        eos_token_id: one id or several that finish a row; None: rows go on to the maximum.
        pad_token_id: fills the end of short rows; None: the first eos id, or 0.
        on_tokens: called after each step with the new tokens (B,) and which rows they count for.

    Returns:
        `sequences`, int32 (B, L): each row its prompt, then its new tokens, eos included, then
        padding; and `lengths`, int32 (B,).

    Raises:
        ValueError: prompts, mask or ids out of range, or too long for the model; or logits that
            are not finite.
        TypeError: another kind of model, such as diy_torch's.
    """
    require_model(model, "diy_jax")
    params = plain_weights(params)
    rows = Rows(
        model.config,
        _to_host(input_ids),
        _to_host(attention_mask),
        max_new_tokens=max_new_tokens,
        eos_token_id=eos_token_id,
        pad_token_id=pad_token_id,
    )
    limit = model.config.max_position_embeddings
    batch, longest = rows.prompts.shape
    past = empty_cache(model.config, batch, longest, model.dtype)
    capacity = capacity_for(longest, limit)
    ids, lengths = np.pad(rows.prompts, ((0, 0), (0, capacity - longest))), rows.prompt_lengths
    while True:
        tokens, past = _step(model, params, ids, lengths, past)
        tokens, active = np.asarray(tokens), rows.active
        rows.accept(tokens)
        if on_tokens is not None:
            on_tokens(tokens, active)
        if not rows.going:
            break
        ids, lengths = rows.step
        past = grow_cache(past, int(rows.lengths.max()), limit)
    return GenerateOutput(
        sequences=jnp.asarray(rows.sequences()),
        lengths=jnp.asarray(rows.lengths.astype(np.int32)),
    )


@partial(jax.jit, static_argnames="model", donate_argnames="past")
def _step(
    model: DIYForCausalLM,
    params: Mapping[str, Any],
    ids: NDArray[Any] | Array,
    lengths: NDArray[Any] | Array,
    past: PastKeyValues,
) -> tuple[Array, PastKeyValues]:
    """Feed each row its new tokens; the most probable next token of each row, or `NOT_FINITE`."""
    logits, past = model.apply(
        {"params": params},
        ids,
        seq_lengths=lengths,
        past_key_values=past,
        use_cache=True,
        logits_to_keep=1,
    )
    tokens, largest = jnp.argmax(logits[:, 0], axis=-1), jnp.max(logits[:, 0], axis=-1)
    return jnp.where(jnp.isfinite(largest), tokens, NOT_FINITE), past


def _to_host(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_to_host(row) for row in value]
    return as_numpy(value) if isinstance(value, jax.Array) else value
