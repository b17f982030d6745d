"""AdamW and clipping, with the formulas of torch.

    g = gradient * min(1, max_norm / (|gradient| + 1e-6))        |.| over all parameters together
    m = beta1 m + (1 - beta1) g,  v = beta2 v + (1 - beta2) g^2
    p = p - rate * (m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps) + weight_decay * p)

Source: Loshchilov and Hutter, arXiv:1711.05101.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float

from diy_core.mapping import TIED_HEAD, Tensor, tensors
from diy_core.norms import scales_of
from diy_core.training.config import OptimizerConfig
from diy_torch.model import DIYForCausalLM


def decays(tensor: Tensor, options: OptimizerConfig) -> bool:
    """Matrices decay; norm scales and biases never; embedding and output matrix if asked to."""
    if tensor.kind == "embedding" or tensor.hf == TIED_HEAD:
        return options.decay_embeddings
    return tensor.kind == "projection"


def build_optimizer(model: DIYForCausalLM, options: OptimizerConfig) -> torch.optim.AdamW:
    """`torch.optim.AdamW` over the model's parameters in two groups: decayed and not.

    Moments have the dtype of the parameters: of a gradient below 1e-23 the second one is 0 in
    float32, as it is in every AdamW. Gradients are clipped before, see `clip_by_global_norm`, and
    the learning rate is set before each step.

    Args:
        model: its parameters are the ones that are updated.
        options: decay rates of the moments, eps, and what decays.
    """
    parameters = dict(model.named_parameters())
    groups: list[dict[str, Any]] = [
        {
            "params": [
                (t.torch, parameters[t.torch])
                for t in tensors(model.config)
                if decays(t, options) is flag
            ],
            "weight_decay": options.weight_decay if flag else 0.0,
        }
        for flag in (True, False)
    ]
    betas = options.beta1, options.beta2
    return torch.optim.AdamW(groups, lr=options.learning_rate, betas=betas, eps=options.eps)


def clip_by_global_norm(
    gradients: Sequence[torch.Tensor], max_norm: float
) -> Float[torch.Tensor, ""]:
    """Scale all gradients, in place, by min(1, max_norm / (norm + 1e-6)).

    As `torch.nn.utils.clip_grad_norm_`, whose norm in float32 on a CPU is 0.5% too small for a
    matrix of 32000 x 2048: it adds the squares one after the other, and the small ones are lost in
    the sum; and whose norm is infinite from 2e19 on, and 0 below 1e-23. Here, gradients whose
    squares would overflow or vanish are squared a second time, times a power of two. To know that,
    this waits for the device.

    Args:
        gradients: of all parameters.
        max_norm: what their common norm is brought down to; 0 leaves them as they are.

    Returns:
        Their norm before; infinite or not a number where one of them is, or where it is beyond the
        largest number of its dtype.
    """
    norm = _norm(gradients)
    scale = _scale(float(norm), norm.dtype)
    if scale != 1:
        norm = _norm(gradient * scale for gradient in gradients)
    if max_norm:
        factor = (max_norm / (norm + 1e-6 * scale)).clamp(max=1 / scale)
        for gradient in gradients:
            if scale != 1:  # one after the other: their product may be too small a number
                gradient.mul_(scale)
            gradient.mul_(factor)
    return norm / scale


def _norm(gradients: Iterable[torch.Tensor]) -> Float[torch.Tensor, ""]:
    rows = [torch.linalg.vector_norm(gradient, dim=-1) for gradient in gradients]
    return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(row) for row in rows]))


def _scale(norm: float, dtype: torch.dtype) -> float:
    """The power of two with which gradients of this norm are to be squared: 1 but for extremes."""
    scales = scales_of(torch.finfo(dtype).max)
    if norm < scales.least:
        return scales.up
    return scales.down if norm == math.inf else 1.0


def can_be_squared(norm: Float[torch.Tensor, ""], max_norm: float) -> Bool[torch.Tensor, ""]:
    """Whether the second moment can hold the squares of gradients of this norm, once clipped.

    AdamW squares them in their own dtype. An infinite square would stay in the moment, and its
    parameter would never move again.
    """
    return (norm.clamp(max=max_norm) if max_norm else norm).square().isfinite()
