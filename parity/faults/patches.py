"""Layers, masks and tables of the Flax twin that compute something else, to be patched in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

import diy_jax.attention
import diy_jax.block
import diy_jax.model
from parity.faults.fault import Patch


def norm(normalise: Callable[[Any, Any, float], Any]) -> tuple[Patch, ...]:
    """A norm that computes `normalise(x, scale, eps)`."""

    def make(original: Any) -> Any:
        class RMSNorm(original):
            @nn.compact
            def __call__(self, x: Any) -> Any:
                shape = (self.hidden_size,)
                scale = self.param("scale", nn.initializers.ones, shape, self.param_dtype)
                return normalise(x, scale, self.eps)

        return RMSNorm

    return tuple(Patch(owner, "RMSNorm", make) for owner in (diy_jax.block, diy_jax.model))


def rms(x: Any, eps: float) -> Any:
    """x over its root mean square."""
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps)


def narrow_norm(dtype: Any) -> Callable[[Any, Any, float], Any]:
    """A norm whose statistics are computed in another dtype, for `norm`."""
    return lambda x, scale, eps: rms(x.astype(dtype), dtype(eps)).astype(x.dtype) * scale


def attend(
    *,
    scale: Callable[[int], float] = lambda head_dim: head_dim**-0.5,
    mask: Callable[[Any], Any] = lambda mask: mask,
    modulo: bool = False,
    softmax: Any = None,
    swap: bool = False,
    merge_inner: bool = False,
) -> tuple[Patch, ...]:
    """Attention between its projections, with something otherwise."""

    def make(original: Any) -> Any:
        class Attention(original):
            def _attend(self, query: Any, key: Any, value: Any, given: Any, _: Any) -> Any:
                if swap:
                    key, value = value, key
                batch, heads, queries, head_dim = query.shape
                group = jnp.arange(heads)
                each = heads // self.kv_heads
                group = group % self.kv_heads if modulo else group // each
                scores = jnp.einsum("bnsh,bnth->bnst", query, key[:, group]) * scale(head_dim)
                scores = jnp.where(mask(given)[:, None], scores, -jnp.inf)
                wide = scores if softmax is None else scores.astype(softmax)
                weights = jax.nn.softmax(wide, axis=-1).astype(value.dtype)
                mixed = jnp.einsum("bnst,bnth->bsnh", weights, value[:, group])
                mixed = mixed.swapaxes(2, 3) if merge_inner else mixed
                return mixed.reshape(batch, queries, -1)

        return Attention

    return (Patch(diy_jax.block, "Attention", make),)


def rope(rotate: Callable[[Any, Any, Any], Any]) -> tuple[Patch, ...]:
    """`rotate(x, cos, sin)` in place of the rotation."""
    return (Patch(diy_jax.attention, "apply_rope", lambda original: rotate),)


def halves(x: Any, cos: Any, sin: Any) -> Any:
    """The usual rotation: the first half of the channels with the second."""
    a, b = jnp.split(x, 2, axis=-1)
    cos, sin = cos[:, None], sin[:, None]
    return jnp.concatenate((a * cos - b * sin, b * cos + a * sin), axis=-1)


def neighbours(x: Any, cos: Any, sin: Any) -> Any:
    """Neighbouring channels are rotated with one another."""
    a, b = x[..., 0::2], x[..., 1::2]
    cos, sin = cos[:, None], sin[:, None]
    return jnp.stack((a * cos - b * sin, b * cos + a * sin), axis=-1).reshape(x.shape)


def queries_ahead(x: Any, cos: Any, sin: Any) -> Any:
    """Queries, which have more heads than keys here, turned by the next position."""
    if x.shape[1] > 2:
        one, other = cos[:, 1:2], sin[:, 1:2]  # the angles from one position to the next
        cos, sin = cos * one - sin * other, sin * one + cos * other
    return halves(x, cos, sin)


def instead(owner: Any, name: str, change: Callable[..., Any]) -> tuple[Patch, ...]:
    """`change(original, *arguments)` in place of a function `name` of a module."""
    return (Patch(owner, name, lambda original: lambda *arguments: change(original, *arguments)),)


def tables(change: Callable[..., Any]) -> tuple[Patch, ...]:
    """`change(original, config, positions, dtype)` in place of the rotary tables."""
    return instead(diy_jax.model, "rope_tables", change)


def mask(change: Callable[..., Any]) -> tuple[Patch, ...]:
    """`change(original, query_positions, key_positions, ...)` in place of the mask."""
    return instead(diy_jax.model, "attention_mask_from_positions", change)


def gated(combine: Callable[[Any, Any], Any]) -> tuple[Patch, ...]:
    """A feed-forward layer with `combine(gate, up)` between its projections."""

    def make(original: Any) -> Any:
        class FeedForward(original):
            def __call__(self, x: Any) -> Any:
                return self.down_proj(combine(self.gate_proj(x), self.up_proj(x)))

        return FeedForward

    return (Patch(diy_jax.block, "FeedForward", make),)


def block(join: Callable[[Any, Any, Any], Any], last: Any = None) -> tuple[Patch, ...]:
    """A layer with `join(x, normed, attended)` for its first sum, `last(h, out)` for its second."""

    def make(original: Any) -> Any:
        class ModelBlock(original):
            def __call__(
                self, x: Any, rope: Any, mask: Any, seq_lengths: Any, past: Any, _: Any
            ) -> Any:
                normed = self.attention_norm(x)
                attended, present = self.attention(normed, rope, mask, seq_lengths, past)
                hidden = join(x, normed, attended)
                out = self.feedforward(self.feedforward_norm(hidden))
                return (hidden + out if last is None else last(hidden, out)), present

        return ModelBlock

    return (Patch(diy_jax.model, "ModelBlock", make),)


def linear(owner: Any, multiply: Callable[[Any, Any], Any], bias: bool = True) -> tuple[Patch, ...]:
    """Linear layers that compute `multiply(x, kernel)`, and may forget their bias."""

    def make(original: Any) -> Any:
        class Linear(original):
            @nn.compact
            def __call__(self, x: Any) -> Any:
                shape = (x.shape[-1], self.features)
                kernel = self.param("kernel", nn.initializers.zeros, shape, self.param_dtype)
                y = multiply(x, kernel)
                if self.use_bias:
                    size = (self.features,)
                    offset = self.param("bias", nn.initializers.zeros, size, self.param_dtype)
                    y = y + offset if bias else y
                return y

        return Linear

    return (Patch(owner, "Linear", make),)


def narrow(dtype: Any) -> Callable[[Any, Any], Any]:
    """A product whose operands are rounded, for `linear`."""

    def multiply(x: Any, kernel: Any) -> Any:
        rounded = [side.astype(dtype).astype(x.dtype) for side in (x, kernel)]
        return jnp.matmul(*rounded)

    return multiply


def tf32(x: Any, kernel: Any) -> Any:
    """A product whose operands are rounded to TF32, for `linear`."""

    def cut(side: Any) -> Any:
        bits = jax.lax.bitcast_convert_type(side.astype(jnp.float32), jnp.uint32)
        kept = (bits + jnp.uint32(0x1000)) & jnp.uint32(0xFFFFE000)
        return jax.lax.bitcast_convert_type(kept, jnp.float32).astype(side.dtype)

    return jnp.matmul(cut(x), cut(kernel))


def scaled_embedding(original: Any) -> Any:
    """An embedding multiplied by the root of its width."""

    class Embed(original):
        def __call__(self, ids: Any) -> Any:
            return super().__call__(ids) * self.features**0.5

    return Embed
