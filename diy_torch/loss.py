"""Cross-entropy of the next token, in chunks of tokens: all logits at once never exist.

Shapes: B batch, S sequence, D hidden, V vocabulary, C tokens of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from diy_torch.inputs import host_values

IGNORED = -100


def check_labels(labels: Any, vocab_size: int) -> None:
    """Labels are token ids in 0 .. vocab_size - 1, or -100 where nothing is counted.

    Values that cannot be seen without waiting (under `torch.compile`, on an accelerator) pass.

    Raises:
        ValueError: any other label; unchecked, some devices answer nonsense in silence.
    """
    values = host_values(torch.as_tensor(labels))
    if values is None:
        return
    if not np.issubdtype(values.dtype, np.integer):
        raise ValueError(f"labels must be integers, got dtype {values.dtype}")
    bad = (values != IGNORED) & ((values < 0) | (values >= vocab_size))
    if bad.any():
        place = tuple(np.argwhere(bad)[0].tolist())
        raise ValueError(
            f"labels must lie in 0..{vocab_size - 1} (vocab_size {vocab_size}) or be {IGNORED} "
            f"(not counted), got {int(values[place])} at {place}"
        )


def cross_entropy(
    hidden: Float[Tensor, "B S D"],
    labels: Int[Tensor, "B S"],
    project: Callable[[Tensor], Tensor],
    *,
    z_loss: float = 0.0,
    chunk_tokens: int = 1024,
) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
    """The sum over counted tokens of logsumexp(z) - z[label] + z_loss * logsumexp(z)**2.

    The logits z of a chunk of tokens are computed, used and dropped, and computed again in the
    backward pass; the gradient of the head is summed over the chunks, in the dtype of its
    parameter. What is not counted has no influence, even where its hidden state is not finite.

    Args:
        hidden: the trunk's output.
        labels: the token that each position has to predict, or -100: not counted.
        project: logits (1, C, V) of hidden states (1, C, D), such as the model's `project`.
        z_loss: the weight of the second term, which keeps logits from drifting.
        chunk_tokens: C at most; the tokens are cut into chunks of nearly the same size.

    Returns:
        The sum, in float32 (float64 for float64 hidden states), and the number of tokens counted.

    Raises:
        ValueError: labels outside of the vocabulary, or no room for a token in a chunk.

    Source of the second term: Chowdhery et al., arXiv:2204.02311, section 5.
    """
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens must be at least 1, got {chunk_tokens}")
    tokens, wide = labels.numel(), torch.promote_types(hidden.dtype, torch.float32)
    chunks = -(-tokens // chunk_tokens)
    length = -(-tokens // chunks)

    def chunk_sum(states: Tensor, wanted: Tensor) -> Tensor:
        counted = wanted != IGNORED
        # Zeros in, and zeros out: a gradient of 0 times a NaN would be NaN.
        states = states.masked_fill(~counted[:, None], 0)
        logits = project(states[None])[0].to(wide)
        check_labels(labels, logits.shape[-1])
        losses = _losses(logits, wanted.long(), z_loss)
        return losses.masked_fill(~counted, 0).sum()

    total = torch.zeros((), dtype=wide, device=hidden.device)
    rows, targets = hidden.flatten(0, 1), labels.flatten()
    for states, wanted in zip(rows.split(length), targets.split(length), strict=True):
        # Without it each chunk's logits would be kept for the backward pass. Nothing in it is
        # drawn, so no state of a generator has to be kept.
        total = total + checkpoint(
            chunk_sum, states, wanted, use_reentrant=False, preserve_rng_state=False
        )
    return total, (labels != IGNORED).sum()


def _losses(
    logits: Float[Tensor, "C V"], labels: Int[Tensor, " C"], z_loss: float
) -> Float[Tensor, " C"]:
    losses = functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="none")
    if z_loss:
        losses = losses + z_loss * logits.logsumexp(dim=-1).square()
    return losses
