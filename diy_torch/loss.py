"""Cross-entropy of the next token, in chunks of tokens: all logits at once never exist.

Shapes: B batch, S sequence, D hidden, V vocabulary, C tokens of a chunk.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from diy_core import validate
from diy_core.validate import IGNORED
from diy_torch import inputs


def cross_entropy(
    hidden: Float[Tensor, "B S D"],
    labels: Any,
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
    hidden: Float[Tensor, "B S D"],
    labels: Any,
    project: Callable[[Tensor], Tensor],
    *,
    z_loss: float = 0.0,
    chunk_tokens: int = 1024,
) -> tuple[Float[Tensor, ""], Int[Tensor, ""], Float[Tensor, "B S"]]:
    """What `cross_entropy` gives, and next to it the loss of each token, without gradients.

    A token that is not counted has a loss of 0. The rest is as it is there.
    """
    chunk_tokens = validate.check_chunk_tokens(chunk_tokens)
    labels = inputs.prepare_labels(labels, hidden.shape[:2])
    tokens, wide = labels.numel(), torch.promote_types(hidden.dtype, torch.float32)
    chunks = -(-tokens // chunk_tokens)
    length = -(-tokens // chunks)

    def chunk_losses(states: Tensor, wanted: Tensor) -> Tensor:
        counted = wanted != IGNORED
        # Zeros in, and zeros out: a gradient of 0 times a NaN would be NaN.
        states = states.masked_fill(~counted[:, None], 0)
        logits = project(states[None])[0].to(wide)
        validate.check_labels(inputs.host_values(labels), logits.shape[-1])
        losses = _losses(logits, wanted, z_loss)
        return losses.masked_fill(~counted, 0)

    total, each = torch.zeros((), dtype=wide, device=hidden.device), []
    rows, targets = hidden.flatten(0, 1), inputs.wide_labels(labels).flatten()
    for states, wanted in zip(rows.split(length), targets.split(length), strict=True):
        # Without it each chunk's logits would be kept for the backward pass. Nothing in it is
        # drawn, so no state of a generator has to be kept.
        losses = checkpoint(
            chunk_losses, states, wanted, use_reentrant=False, preserve_rng_state=False
        )
        total = total + losses.sum()
        each.append(losses.detach())
    return total, (targets != IGNORED).sum(), torch.cat(each).view(labels.shape)


def _losses(
    logits: Float[Tensor, "C V"], labels: Int[Tensor, " C"], z_loss: float
) -> Float[Tensor, " C"]:
    """The maximum is taken off first: loss = log sum exp(z - max) - (z[label] - max) is exact
    where the model is sure, and logsumexp(z) - z[label] is not.

    `functional.cross_entropy` sums the exponentials of a large vocabulary less precisely on a CPU:
    in float32 it is 1e-5 off, always to the same side, and its gradient twenty times as far as
    this one's.
    """
    top = logits.detach().amax(dim=-1, keepdim=True)
    shifted = logits - top
    rest = shifted.logsumexp(dim=-1)
    wanted = labels.clamp(0, logits.shape[-1] - 1)  # of what is not counted any number will do
    losses = rest - shifted.gather(-1, wanted[:, None])[:, 0]
    # Where labels cannot be seen, those of no token must not pass for those of another. A product,
    # so that gradients are NaN, too.
    wrong = (labels != wanted) & (labels != IGNORED)
    losses = losses * torch.where(wrong, math.nan, 1.0).to(losses.dtype)
    if z_loss:
        losses = losses + z_loss * (rest + top[:, 0]).square()
    return losses
