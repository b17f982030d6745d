"""Faults that a forward pass does not show: gradients cut off or changed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

import diy_jax.block
import diy_jax.model
from parity.faults.fault import Fault, Patch


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _through(change: Callable[[Any], Any], x: Any) -> Any:
    """x, whose gradient is changed."""
    return x


def _through_forward(change: Callable[[Any], Any], x: Any) -> Any:
    return x, None


def _through_backward(change: Callable[[Any], Any], _: None, gradient: Any) -> Any:
    return (change(gradient),)


_through.defvjp(_through_forward, _through_backward)


def _attended(change: Callable[[Any], Any]) -> tuple[Patch, ...]:
    """Attention that lets a changed gradient through to what its heads have mixed."""

    def make(original: Any) -> Any:
        class Attention(original):
            def _attend(self, *arguments: Any) -> Any:
                return _through(change, super()._attend(*arguments))

        return Attention

    return (Patch(diy_jax.block, "Attention", make),)


def _gated(change: Callable[[Any], Any]) -> tuple[Patch, ...]:
    """A feed-forward layer that lets a changed gradient through to up."""

    def make(original: Any) -> Any:
        class FeedForward(original):
            def __call__(self, x: Any) -> Any:
                up = _through(change, self.up_proj(x))
                return self.down_proj(nn.silu(self.gate_proj(x)) * up)

        return FeedForward

    return (Patch(diy_jax.block, "FeedForward", make),)


def _cut_residual(original: Any) -> Any:
    class ModelBlock(original):
        def __call__(
            self, x: Any, rope: Any, mask: Any, seq_lengths: Any, past: Any, _: Any
        ) -> Any:
            attended, present = self.attention(
                self.attention_norm(x), rope, mask, seq_lengths, past
            )
            hidden = jax.lax.stop_gradient(x) + attended
            return hidden + self.feedforward(self.feedforward_norm(hidden)), present

    return ModelBlock


def _norm(scale: Callable[[Any], Any], wide: Callable[[Any], Any]) -> tuple[Patch, ...]:
    """A norm that passes its scale and its root mean square through functions."""

    def make(original: Any) -> Any:
        class RMSNorm(original):
            @nn.compact
            def __call__(self, x: Any) -> Any:
                shape = (self.hidden_size,)
                weight = self.param("scale", nn.initializers.ones, shape, self.param_dtype)
                root = jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + self.eps)
                return x * wide(root) * scale(weight)

        return RMSNorm

    return tuple(Patch(owner, "RMSNorm", make) for owner in (diy_jax.block, diy_jax.model))


def _silu(original: Any) -> Any:
    class FeedForward(original):
        def __call__(self, x: Any) -> Any:
            gate = self.gate_proj(x)
            wrong = jax.lax.stop_gradient(nn.sigmoid(gate)) * gate
            return self.down_proj(wrong * self.up_proj(x))

    return FeedForward


def _same(x: Any) -> Any:
    return x


BACKWARD_FAULTS = [
    Fault(
        "gradient-residual-cut",
        ("gradient-missing", "gradient-sum"),
        "backward",
        patches=(Patch(diy_jax.model, "ModelBlock", _cut_residual),),
    ),
    Fault(
        "gradient-norm-scale-cut",
        ("gradient-missing",),
        "backward",
        patches=_norm(jax.lax.stop_gradient, _same),
    ),
    Fault(
        "gradient-norm-root-cut",
        ("gradient-norm-root",),
        "backward",
        patches=_norm(_same, jax.lax.stop_gradient),
    ),
    Fault(
        "gradient-silu",
        ("gradient-activation",),
        "backward",
        patches=(Patch(diy_jax.block, "FeedForward", _silu),),
    ),
    Fault(
        "gradient-doubled",
        ("gradient-scaled",),
        "backward",
        patches=_attended(lambda g: 2 * g),
    ),
    Fault(
        "gradient-clipped",
        ("gradient-clipped",),
        "backward",
        patches=_gated(lambda g: jnp.clip(g, -1e-3, 1e-3)),
    ),
]
