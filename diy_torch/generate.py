"""Greedy generation: prefill, then one token a step, each row stopping alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from diy_core.generation import NOT_FINITE, GenerateOutput, OnTokens, Rows, require_model
from diy_torch.cache import PastKeyValues, empty_cache, grow_cache
from diy_torch.inputs import as_numpy

if TYPE_CHECKING:
    from diy_torch.model import DIYForCausalLM


@torch.inference_mode()
def generate(
    model: DIYForCausalLM,
    input_ids: Any,
    attention_mask: Any = None,
    *,
    max_new_tokens: int,
    eos_token_id: int | Sequence[int] | None = None,
    pad_token_id: int | None = None,
    on_tokens: OnTokens | None = None,
) -> GenerateOutput:
    """Continue each prompt with the most probable token, again and again.

    Args:
        model: the language model.
        input_ids: integers (B, S), prompts padded on either side, or a list of B prompts of any
            lengths, such as [[1, 2], [3]].
        attention_mask: the same shape, 1 = token, 0 = padding; None where nothing is padded.
        max_new_tokens: at most so many tokens are added to each row.
        eos_token_id: one id or several that finish a row; None: rows go on to the maximum.
        pad_token_id: fills the end of short rows; None: the first eos id, or 0.
        on_tokens: called after each step with the new tokens (B,) and which rows they count for.

    Returns:
        `sequences`, int64 (B, L) on the model's device: each row its prompt, then its new tokens,
        eos included, then padding; and `lengths`, int32 (B,).

    Raises:
        ValueError: prompts, mask or ids out of range, or too long for the model; or logits that
            are not finite.
        TypeError: another kind of model, such as diy_jax's.
    """
    require_model(model, "diy_torch")
    rows = Rows(
        model.config,
        _to_host(input_ids),
        _to_host(attention_mask),
        max_new_tokens=max_new_tokens,
        eos_token_id=eos_token_id,
        pad_token_id=pad_token_id,
    )
    weight = model.model.embed_tokens.weight
    limit = model.config.max_position_embeddings
    batch, longest = rows.prompts.shape
    past = empty_cache(model.config, batch, longest, weight.dtype, weight.device)
    ids, lengths = rows.prompts, rows.prompt_lengths
    while True:
        tokens, past = _step(model, ids, lengths, past)
        active = rows.active
        rows.accept(tokens)
        if on_tokens is not None:
            on_tokens(tokens, active)
        if not rows.going:
            break
        ids, lengths = rows.step
        past = grow_cache(past, int(rows.lengths.max()), limit)
    return GenerateOutput(
        sequences=torch.from_numpy(rows.sequences()).long().to(weight.device),
        lengths=torch.from_numpy(rows.lengths.astype(np.int32)).to(weight.device),
    )


def _step(
    model: DIYForCausalLM, ids: NDArray[Any], lengths: NDArray[Any], past: PastKeyValues
) -> tuple[NDArray[Any], PastKeyValues]:
    """Feed each row its new tokens; the most probable next token of each row, or `NOT_FINITE`."""
    device = model.model.embed_tokens.weight.device
    logits, past = model(
        torch.from_numpy(ids).to(device),
        seq_lengths=torch.from_numpy(lengths).to(device),
        past_key_values=past,
        use_cache=True,
        logits_to_keep=1,
    )
    largest, tokens = logits[:, 0].max(dim=-1)
    return torch.where(largest.isfinite(), tokens, NOT_FINITE).cpu().numpy(), past


def _to_host(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_to_host(row) for row in value]
    return as_numpy(value) if isinstance(value, torch.Tensor) else value
