"""Training as anybody would write it with transformers: nothing of the twins is in here.

Shapes: A passes of a step, B rows of a pass, S tokens of a row.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def train(
    model: Any, batches: Iterable[Mapping[str, Any]], config: Mapping[str, Any]
) -> Iterator[tuple[float, float]]:
    """Take a step with each batch; yields its loss and the norm of its gradient before clipping.

    Args:
        model: a transformers LlamaForCausalLM.
        batches: int arrays (A, B, S) of `input_ids`, `labels` and `segment_ids`.
        config: what `config.yaml` of a run holds.
    """
    options, parameters = config["optimizer"], dict(model.named_parameters())
    matrices = [p for name, p in parameters.items() if decays(name, p)]
    others = [p for name, p in parameters.items() if not decays(name, p)]
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": options["weight_decay"]},
            {"params": others, "weight_decay": 0.0},
        ],
        betas=(options["beta1"], options["beta2"]),
        eps=options["eps"],
    )
    for step, batch in enumerate(batches):
        ids, labels, segments = (
            torch.tensor(batch[name], dtype=torch.long, device=model.device)
            for name in ("input_ids", "labels", "segment_ids")
        )
        loss = 0.0
        for index in range(len(ids)):
            mask, positions = apart(segments[index], model.dtype)
            logits = model(ids[index], attention_mask=mask, position_ids=positions).logits
            share = weight(labels, index) * mean_loss(
                logits, labels[index], config["loss"]["z_loss"]
            )
            share.backward()
            loss += float(share.detach())
        norm = torch.nn.utils.clip_grad_norm_(parameters.values(), options["clip_norm"])
        for group in optimizer.param_groups:
            group["lr"] = rate(step, config["steps"], options)
        optimizer.step()
        optimizer.zero_grad()
        yield loss, float(norm)


def decays(name: str, parameter: Tensor) -> bool:
    """Matrices do, but for the embedding and the output."""
    return parameter.ndim == 2 and "embed_tokens" not in name and "lm_head" not in name


def weight(labels: Tensor, index: int) -> float:
    """The share of a pass in its step: by its counted tokens."""
    return int((labels[index] != -100).sum()) / int((labels != -100).sum())


def mean_loss(logits: Tensor, labels: Tensor, z_loss: float) -> Tensor:
    """Cross-entropy over the counted tokens, plus z_loss times logsumexp squared."""
    logits, labels = logits[labels != -100], labels[labels != -100]
    plain = functional.cross_entropy(logits, labels)
    return plain + z_loss * logits.logsumexp(-1).square().mean() if z_loss else plain


def apart(segments: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """What keeps documents apart: the mask (B, 1, S, S) that is added, and positions (B, S)."""
    seen = (segments[:, :, None] == segments[:, None, :]).tril()
    mask = torch.full(seen.shape, torch.finfo(dtype).min, dtype=dtype, device=segments.device)
    return mask.masked_fill(seen, 0.0)[:, None], seen.sum(-1) - 1


def rate(step: int, steps: int, options: Mapping[str, Any]) -> float:
    """Linear warmup to the peak, then half a cosine down to a share of it."""
    peak, warmup = options["learning_rate"], options["warmup_steps"]
    if step < warmup:
        return peak * (step + 1) / warmup
    low = peak * options["final_learning_rate"]
    done = (step - warmup) / (steps - warmup)
    return low + (peak - low) * (1 + math.cos(math.pi * done)) / 2
