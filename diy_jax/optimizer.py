"""AdamW and clipping, with the formulas of torch.

    g = gradient * min(1, max_norm / (|gradient| + 1e-6))        |.| over all parameters together
    m = beta1 m + (1 - beta1) g,  v = beta2 v + (1 - beta2) g^2
    p = p - rate * (m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps) + weight_decay * p)

Source: Loshchilov and Hutter, arXiv:1711.05101.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from diy_core.mapping import TIED_HEAD, Tensor, tensors, unflatten
from diy_core.training.config import OptimizerConfig
from diy_jax.model import DIYForCausalLM


def decays(tensor: Tensor, options: OptimizerConfig) -> bool:
    """Matrices decay; norm scales and biases never; embedding and output matrix if asked to."""
    if tensor.kind == "embedding" or tensor.hf == TIED_HEAD:
        return options.decay_embeddings
    return tensor.kind == "projection"


def build_optimizer(
    model: DIYForCausalLM, options: OptimizerConfig
) -> optax.GradientTransformationExtraArgs:
    """AdamW, whose `update` takes the `learning_rate` of its step, a scalar.

    Moments have the dtype of the parameters. Gradients are clipped before, see
    `clip_by_global_norm`.

    Args:
        model: it names the parameters.
        options: decay rates of the moments, eps, and what decays.
    """
    mask = unflatten({t.flax: decays(t, options) for t in tensors(model.config)})
    return optax.chain(
        optax.scale_by_adam(options.beta1, options.beta2, options.eps),
        optax.add_decayed_weights(options.weight_decay, mask),
        _scale_by_learning_rate(),
    )


def _scale_by_learning_rate() -> optax.GradientTransformationExtraArgs:
    """Times -learning_rate, which is an argument: optax's own schedules count in float32."""

    def update(updates: Any, state: Any, params: Any = None, *, learning_rate: Any) -> Any:
        return jax.tree.map(lambda u: -learning_rate.astype(u.dtype) * u, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def clip_by_global_norm(gradients: Any, max_norm: float) -> tuple[Any, Float[Array, ""]]:
    """Scale all gradients by min(1, max_norm / (norm + 1e-6)), as torch does; optax has no 1e-6.

    Args:
        gradients: of all parameters.
        max_norm: what their common norm is brought down to; 0 leaves them as they are.

    Returns:
        The gradients, and their norm before.
    """
    norm = optax.tree.norm(gradients)
    if not max_norm:
        return gradients, norm
    factor = jnp.minimum(1.0, max_norm / (norm + 1e-6))
    return jax.tree.map(lambda gradient: gradient * factor, gradients), norm
