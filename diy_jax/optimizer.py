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
from jaxtyping import Array, Bool, Float

from diy_core.mapping import TIED_HEAD, Tensor, tensors, unflatten
from diy_core.norms import scales_of
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

    Moments have the dtype of the parameters: of a gradient below 1e-23 the second one is 0 in
    float32, as it is in every AdamW. Gradients are clipped before, see `clip_by_global_norm`.

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

    optax's norm in float32 is infinite from 2e19 on, and 0 below 1e-23. Here, gradients whose
    squares would overflow or vanish are squared a second time, times a power of two.

    Args:
        gradients: of all parameters.
        max_norm: what their common norm is brought down to; 0 leaves them as they are.

    Returns:
        The gradients, and their norm before; infinite or not a number where one of them is, or
        where it is beyond the largest number of its dtype.
    """
    norm = optax.tree.norm(gradients)
    scale = _scale(norm)
    norm = jax.lax.cond(
        scale == 1,
        lambda: norm,
        lambda: optax.tree.norm(jax.tree.map(lambda gradient: gradient * scale, gradients)),
    )
    if max_norm:
        factor = jnp.minimum(1 / scale, max_norm / (norm + 1e-6 * scale))
        # One after the other: their product may be too small a number.
        gradients = jax.tree.map(lambda gradient: gradient * scale * factor, gradients)
    return gradients, norm / scale


def _scale(norm: Float[Array, ""]) -> Float[Array, ""]:
    """The power of two with which gradients of this norm are to be squared: 1 but for extremes."""
    scales = scales_of(float(jnp.finfo(norm.dtype).max))
    least, up, down, one = (jnp.asarray(value, norm.dtype) for value in (*scales, 1.0))
    return jnp.where(norm < least, up, jnp.where(jnp.isposinf(norm), down, one))


def can_be_squared(norm: Float[Array, ""], max_norm: float) -> Bool[Array, ""]:
    """Whether the second moment can hold the squares of gradients of this norm, once clipped.

    AdamW squares them in their own dtype. An infinite square would stay in the moment, and its
    parameter would never move again.
    """
    return jnp.isfinite(jnp.square(jnp.minimum(norm, max_norm) if max_norm else norm))
