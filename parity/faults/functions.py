"""Faults of a port: a layer, a mask or a table that is computed otherwise."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

import diy_jax.attention
import diy_jax.feedforward
import diy_jax.model
from diy_core.rope_scaling import RopeScaling
from parity.faults.fault import Fault, Patch

_ATTENTION, _FEEDFORWARD = "model.layers.0.attention", "model.layers.0.feedforward"
_NORM, _BLOCK = "model.layers.0.attention_norm", "model.layers.0"


def _norm(normalise: Callable[[Any, Any, float], Any]) -> tuple[Patch, ...]:
    """A norm that computes `normalise(x, scale, eps)`."""

    def make(original: Any) -> Any:
        class RMSNorm(original):
            @nn.compact
            def __call__(self, x: Any) -> Any:
                shape = (self.hidden_size,)
                scale = self.param("scale", nn.initializers.ones, shape, self.param_dtype)
                return normalise(x, scale, self.eps)

        return RMSNorm

    return (Patch(diy_jax.model, "RMSNorm", make),)


def _rms(x: Any, eps: float) -> Any:
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps)


def _narrow_norm(dtype: Any) -> Callable[[Any, Any, float], Any]:
    return lambda x, scale, eps: _rms(x.astype(dtype), dtype(eps)).astype(x.dtype) * scale


def _attend(
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

    return (Patch(diy_jax.model, "Attention", make),)


def _rope(rotate: Callable[[Any, Any, Any], Any]) -> tuple[Patch, ...]:
    return (Patch(diy_jax.attention, "apply_rope", lambda original: rotate),)


def _halves(x: Any, cos: Any, sin: Any) -> Any:
    a, b = jnp.split(x, 2, axis=-1)
    cos, sin = cos[:, None], sin[:, None]
    return jnp.concatenate((a * cos - b * sin, b * cos + a * sin), axis=-1)


def _neighbours(x: Any, cos: Any, sin: Any) -> Any:
    a, b = x[..., 0::2], x[..., 1::2]
    cos, sin = cos[:, None], sin[:, None]
    return jnp.stack((a * cos - b * sin, b * cos + a * sin), axis=-1).reshape(x.shape)


def _queries_ahead(x: Any, cos: Any, sin: Any) -> Any:
    """Queries, which have more heads than keys here, turned by the next position."""
    if x.shape[1] > 2:
        one, other = cos[:, 1:2], sin[:, 1:2]  # the angles from one position to the next
        cos, sin = cos * one - sin * other, sin * one + cos * other
    return _halves(x, cos, sin)


def _tables(change: Callable[..., Any]) -> tuple[Patch, ...]:
    """`change(original, config, positions, dtype)` in place of the rotary tables."""
    return (
        Patch(
            diy_jax.model,
            "rope_tables",
            lambda original: lambda *arguments: change(original, *arguments),
        ),
    )


def _mask(change: Callable[..., Any]) -> tuple[Patch, ...]:
    """`change(original, query_positions, key_positions, ...)` in place of the mask."""
    return (
        Patch(
            diy_jax.model,
            "attention_mask_from_positions",
            lambda original: lambda *arguments: change(original, *arguments),
        ),
    )


def _gated(combine: Callable[[Any, Any], Any]) -> tuple[Patch, ...]:
    """A feed-forward layer with `combine(gate, up)` between its projections."""

    def make(original: Any) -> Any:
        class FeedForward(original):
            def __call__(self, x: Any) -> Any:
                return self.down_proj(combine(self.gate_proj(x), self.up_proj(x)))

        return FeedForward

    return (Patch(diy_jax.model, "FeedForward", make),)


def _block(join: Callable[[Any, Any, Any], Any], last: Any = None) -> tuple[Patch, ...]:
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


def _linear(
    owner: Any, multiply: Callable[[Any, Any], Any], bias: bool = True
) -> tuple[Patch, ...]:
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


def _narrow(dtype: Any) -> Callable[[Any, Any], Any]:
    def multiply(x: Any, kernel: Any) -> Any:
        rounded = [side.astype(dtype).astype(x.dtype) for side in (x, kernel)]
        return jnp.matmul(*rounded)

    return multiply


def _tf32(x: Any, kernel: Any) -> Any:
    def cut(side: Any) -> Any:
        bits = jax.lax.bitcast_convert_type(side.astype(jnp.float32), jnp.uint32)
        kept = (bits + jnp.uint32(0x1000)) & jnp.uint32(0xFFFFE000)
        return jax.lax.bitcast_convert_type(kept, jnp.float32).astype(side.dtype)

    return jnp.matmul(cut(x), cut(kernel))


def _scaled_embedding(original: Any) -> Any:
    class Embed(original):
        def __call__(self, ids: Any) -> Any:
            return super().__call__(ids) * self.features**0.5

    return Embed


_LLAMA3 = RopeScaling(
    rope_type="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=64,
)
FUNCTION_FAULTS = [
    Fault(
        "eps",
        "eps is 1e-6 in place of 1e-5",
        _NORM,
        ("norm-eps",),
        config=lambda c: dataclasses.replace(c, rms_norm_eps=1e-6),
    ),
    Fault(
        "eps-of-the-file",
        "eps is the float32 nearest to 1e-5",
        _NORM,
        ("norm-eps",),
        config=lambda c: dataclasses.replace(c, rms_norm_eps=float(np.float32(1e-5))),
    ),
    Fault(
        "eps-outside",
        "eps is added after the root",
        _NORM,
        ("norm-eps",),
        patches=_norm(
            lambda x, w, eps: w * x / (jnp.sqrt(jnp.mean(x * x, -1, keepdims=True)) + eps)
        ),
    ),
    Fault(
        "norm-one-plus",
        "the norm multiplies by 1 + w",
        _NORM,
        ("norm-weight",),
        patches=_norm(lambda x, w, eps: _rms(x, eps) * (1 + w)),
    ),
    Fault(
        "norm-float32",
        "the norm computes in float32",
        _NORM,
        ("precision-float32", "norm-precision"),
        patches=_norm(_narrow_norm(jnp.float32)),
    ),
    Fault(
        "norm-bfloat16",
        "the norm computes in bfloat16",
        _NORM,
        ("precision-bfloat16", "norm-precision"),
        patches=_norm(_narrow_norm(jnp.bfloat16)),
    ),
    Fault(
        "layer-norm",
        "the norm subtracts the mean",
        _NORM,
        ("norm-mean",),
        patches=_norm(lambda x, w, eps: _rms(x - x.mean(-1, keepdims=True), eps) * w),
    ),
    Fault(
        "activation-gelu",
        "GELU in place of SiLU",
        _FEEDFORWARD,
        ("activation",),
        patches=_gated(lambda gate, up: nn.gelu(gate, approximate=False) * up),
    ),
    Fault(
        "activation-gelu-tanh",
        "the tanh form of GELU in place of SiLU",
        _FEEDFORWARD,
        ("activation",),
        patches=_gated(lambda gate, up: nn.gelu(gate) * up),
    ),
    Fault(
        "activation-relu",
        "ReLU in place of SiLU",
        _FEEDFORWARD,
        ("activation",),
        patches=_gated(lambda gate, up: nn.relu(gate) * up),
    ),
    Fault(
        "gate-on-up",
        "SiLU is applied to up, not to gate",
        _FEEDFORWARD,
        ("activation",),
        patches=_gated(lambda gate, up: nn.silu(up) * gate),
    ),
    Fault(
        "gate-left-out",
        "the activation of gate is left out",
        _FEEDFORWARD,
        ("activation",),
        patches=_gated(lambda gate, up: gate * up),
    ),
    Fault(
        "scale-missing",
        "scores are not divided by sqrt(H)",
        _ATTENTION,
        ("scale-missing",),
        patches=_attend(scale=lambda h: 1.0),
    ),
    Fault(
        "scale-twice",
        "scores are divided by H",
        _ATTENTION,
        ("scale-head-dim",),
        patches=_attend(scale=lambda h: 1.0 / h),
    ),
    Fault(
        "scale-hidden",
        "scores are divided by sqrt(D)",
        _ATTENTION,
        ("scale-hidden",),
        patches=_attend(scale=lambda h: 48**-0.5),
    ),
    Fault(
        "mask-left-out",
        "attention sees the future",
        _ATTENTION,
        ("mask-left-out",),
        patches=_attend(mask=jnp.ones_like),
    ),
    Fault(
        "groups-modulo",
        "query head n takes key head n % K",
        _ATTENTION,
        ("heads-regrouped",),
        patches=_attend(modulo=True),
    ),
    Fault(
        "heads-merged-inner",
        "heads are merged as (H, N)",
        _ATTENTION,
        ("heads-merged-otherwise", "heads-regrouped"),
        patches=_attend(merge_inner=True),
    ),
    Fault(
        "softmax-float32",
        "the softmax is computed in float32",
        _ATTENTION,
        ("softmax-float32", "precision-float32"),
        patches=_attend(softmax=jnp.float32),
    ),
    Fault(
        "softmax-bfloat16",
        "the softmax is computed in bfloat16",
        _ATTENTION,
        ("softmax-bfloat16", "precision-bfloat16"),
        patches=_attend(softmax=jnp.bfloat16),
    ),
    Fault(
        "keys-for-values",
        "keys and values are exchanged",
        _ATTENTION,
        ("key-value-swapped", "rotated-key-value-swapped"),
        patches=_attend(swap=True),
    ),
    Fault(
        "rope-neighbours",
        "neighbouring channels are rotated",
        _ATTENTION,
        ("rope-interleaved",),
        patches=_rope(_neighbours),
    ),
    Fault(
        "rope-backwards",
        "channels are rotated the other way",
        _ATTENTION,
        ("rope-backwards",),
        patches=_rope(lambda x, cos, sin: _halves(x, cos, -sin)),
    ),
    Fault(
        "rope-left-out",
        "nothing is rotated",
        _ATTENTION,
        ("rope-left-out",),
        patches=_rope(lambda x, cos, sin: x),
    ),
    Fault(
        "rope-queries-ahead",
        "queries stand one position ahead of keys",
        _ATTENTION,
        ("position-ahead",),
        patches=_rope(_queries_ahead),
    ),
    Fault(
        "rope-theta",
        "theta is 500000 in place of 10000",
        "model",
        ("rope-theta",),
        config=lambda c: dataclasses.replace(c, rope_theta=5e5),
    ),
    Fault(
        "rope-linear-left-out",
        "linear scaling of positions is left out",
        "model",
        ("rope-scaled",),
        model="rope-linear",
        config=lambda c: dataclasses.replace(c, rope_scaling=None),
    ),
    Fault(
        "rope-llama3-left-out",
        "llama3 scaling is left out",
        "model",
        ("rope-frequencies", "rope-scaled"),
        model="rope-llama3",
        config=lambda c: dataclasses.replace(c, rope_scaling=None),
    ),
    Fault(
        "rope-llama3-factor",
        "llama3 scaling has another factor",
        "model",
        ("rope-frequencies", "rope-scaled"),
        model="rope-llama3",
        config=lambda c: dataclasses.replace(
            c, rope_scaling=dataclasses.replace(_LLAMA3, factor=32.0)
        ),
    ),
    Fault(
        "rope-tables-bfloat16",
        "cos and sin are rounded to bfloat16",
        "model",
        ("rounded", "precision-bfloat16"),
        patches=_tables(
            lambda f, c, p, d: tuple(t.astype(jnp.bfloat16).astype(d) for t in f(c, p, d))
        ),
    ),
    Fault(
        "rope-tables-float32",
        "cos and sin are computed in float32",
        "model",
        ("rounded", "rope-rounded"),
        patches=_tables(lambda f, c, p, d: tuple(t.astype(d) for t in f(c, p, jnp.float32))),
    ),
    Fault(
        "rope-cos-sin",
        "cos and sin are exchanged",
        "model",
        ("rope-swapped",),
        patches=_tables(lambda f, c, p, d: f(c, p, d)[::-1]),
    ),
    Fault(
        "mask-one-ahead",
        "the mask lets each query see the next token",
        "model",
        ("mask-one-ahead",),
        patches=_mask(lambda f, q, k, *s: f(q + 1, k, *s)),
    ),
    Fault(
        "mask-one-behind",
        "the mask hides each query's own token",
        "model",
        ("mask-one-behind",),
        patches=_mask(lambda f, q, k, *s: f(jnp.maximum(q - 1, 0), k, *s)),
    ),
    Fault(
        "residual-left-out",
        "the sum after attention is left out",
        _BLOCK,
        ("sum",),
        patches=_block(lambda x, normed, attended: attended),
    ),
    Fault(
        "residual-from-norm",
        "what is added to attention is the normed input",
        _BLOCK,
        ("sum",),
        patches=_block(lambda x, normed, attended: normed + attended),
    ),
    Fault(
        "residual-halved",
        "attention counts half",
        _BLOCK,
        ("sum",),
        patches=_block(lambda x, normed, attended: x + 0.5 * attended),
    ),
    Fault(
        "second-residual-left-out",
        "the sum after the feed-forward layer is left out",
        _BLOCK,
        ("sum",),
        patches=_block(lambda x, n, a: x + a, lambda hidden, out: out),
    ),
    Fault(
        "bias-left-out",
        "biases of attention are not added",
        f"{_ATTENTION}.q_proj",
        ("linear-bias", "bias-dropped"),
        model="biases",
        patches=_linear(diy_jax.attention, jnp.matmul, bias=False),
    ),
    Fault(
        "matmul-bfloat16",
        "products have bfloat16 operands",
        f"{_ATTENTION}.q_proj",
        ("linear-precision", "precision-bfloat16"),
        patches=_linear(diy_jax.attention, _narrow(jnp.bfloat16)),
    ),
    Fault(
        "matmul-tf32",
        "products have TF32 operands",
        f"{_ATTENTION}.q_proj",
        ("linear-precision", "precision-TF32"),
        patches=_linear(diy_jax.attention, _tf32),
    ),
    Fault(
        "matmul-float32",
        "products are computed in float32",
        f"{_FEEDFORWARD}.gate_proj",
        ("linear-precision", "precision-float32"),
        patches=_linear(
            diy_jax.feedforward,
            lambda x, w: jnp.matmul(x.astype(jnp.float32), w.astype(jnp.float32)).astype(x.dtype),
        ),
    ),
    Fault(
        "embedding-scaled",
        "the embedding is multiplied by sqrt(D)",
        "model.embed_tokens",
        ("embedding-scaled", "scale"),
        patches=(Patch(nn, "Embed", _scaled_embedding),),
    ),
]
