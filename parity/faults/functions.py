"""Faults of a port: a layer, a mask or a table that is computed otherwise."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

import diy_jax.attention
import diy_jax.feedforward
from diy_core.rope_scaling import RopeScaling
from parity.faults.fault import Fault, Patch
from parity.faults.patches import (
    attend,
    block,
    gated,
    halves,
    linear,
    mask,
    narrow,
    narrow_norm,
    neighbours,
    norm,
    queries_ahead,
    rms,
    rope,
    scaled_embedding,
    tables,
    tf32,
)

_ATTENTION, _FEEDFORWARD = "model.layers.0.attention", "model.layers.0.feedforward"
_NORM, _BLOCK = "model.layers.0.attention_norm", "model.layers.0"
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
        patches=norm(
            lambda x, w, eps: w * x / (jnp.sqrt(jnp.mean(x * x, -1, keepdims=True)) + eps)
        ),
    ),
    Fault(
        "norm-one-plus",
        "the norm multiplies by 1 + w",
        _NORM,
        ("norm-weight",),
        patches=norm(lambda x, w, eps: rms(x, eps) * (1 + w)),
    ),
    Fault(
        "norm-float32",
        "the norm computes in float32",
        _NORM,
        ("precision-float32", "norm-precision"),
        patches=norm(narrow_norm(jnp.float32)),
    ),
    Fault(
        "norm-bfloat16",
        "the norm computes in bfloat16",
        _NORM,
        ("precision-bfloat16", "norm-precision"),
        patches=norm(narrow_norm(jnp.bfloat16)),
    ),
    Fault(
        "layer-norm",
        "the norm subtracts the mean",
        _NORM,
        ("norm-mean",),
        patches=norm(lambda x, w, eps: rms(x - x.mean(-1, keepdims=True), eps) * w),
    ),
    Fault(
        "activation-gelu",
        "GELU in place of SiLU",
        _FEEDFORWARD,
        ("activation",),
        patches=gated(lambda gate, up: nn.gelu(gate, approximate=False) * up),
    ),
    Fault(
        "activation-gelu-tanh",
        "the tanh form of GELU in place of SiLU",
        _FEEDFORWARD,
        ("activation",),
        patches=gated(lambda gate, up: nn.gelu(gate) * up),
    ),
    Fault(
        "activation-relu",
        "ReLU in place of SiLU",
        _FEEDFORWARD,
        ("activation",),
        patches=gated(lambda gate, up: nn.relu(gate) * up),
    ),
    Fault(
        "gate-on-up",
        "SiLU is applied to up, not to gate",
        _FEEDFORWARD,
        ("activation",),
        patches=gated(lambda gate, up: nn.silu(up) * gate),
    ),
    Fault(
        "gate-left-out",
        "the activation of gate is left out",
        _FEEDFORWARD,
        ("activation",),
        patches=gated(lambda gate, up: gate * up),
    ),
    Fault(
        "scale-missing",
        "scores are not divided by sqrt(H)",
        _ATTENTION,
        ("scale-missing",),
        patches=attend(scale=lambda h: 1.0),
    ),
    Fault(
        "scale-twice",
        "scores are divided by H",
        _ATTENTION,
        ("scale-head-dim",),
        patches=attend(scale=lambda h: 1.0 / h),
    ),
    Fault(
        "scale-hidden",
        "scores are divided by sqrt(D)",
        _ATTENTION,
        ("scale-hidden",),
        patches=attend(scale=lambda h: 48**-0.5),
    ),
    Fault(
        "mask-left-out",
        "attention sees the future",
        _ATTENTION,
        ("mask-left-out",),
        patches=attend(mask=jnp.ones_like),
    ),
    Fault(
        "groups-modulo",
        "query head n takes key head n % K",
        _ATTENTION,
        ("heads-regrouped",),
        patches=attend(modulo=True),
    ),
    Fault(
        "heads-merged-inner",
        "heads are merged as (H, N)",
        _ATTENTION,
        ("heads-merged-otherwise", "heads-regrouped"),
        patches=attend(merge_inner=True),
    ),
    Fault(
        "softmax-float32",
        "the softmax is computed in float32",
        _ATTENTION,
        ("softmax-float32", "precision-float32"),
        patches=attend(softmax=jnp.float32),
    ),
    Fault(
        "softmax-bfloat16",
        "the softmax is computed in bfloat16",
        _ATTENTION,
        ("softmax-bfloat16", "precision-bfloat16"),
        patches=attend(softmax=jnp.bfloat16),
    ),
    Fault(
        "keys-for-values",
        "keys and values are exchanged",
        _ATTENTION,
        ("key-value-swapped", "rotated-key-value-swapped"),
        patches=attend(swap=True),
    ),
    Fault(
        "rope-neighbours",
        "neighbouring channels are rotated",
        _ATTENTION,
        ("rope-interleaved",),
        patches=rope(neighbours),
    ),
    Fault(
        "rope-backwards",
        "channels are rotated the other way",
        _ATTENTION,
        ("rope-backwards",),
        patches=rope(lambda x, cos, sin: halves(x, cos, -sin)),
    ),
    Fault(
        "rope-left-out",
        "nothing is rotated",
        _ATTENTION,
        ("rope-left-out",),
        patches=rope(lambda x, cos, sin: x),
    ),
    Fault(
        "rope-queries-ahead",
        "queries stand one position ahead of keys",
        _ATTENTION,
        ("position-ahead",),
        patches=rope(queries_ahead),
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
        patches=tables(
            lambda f, c, p, d: tuple(t.astype(jnp.bfloat16).astype(d) for t in f(c, p, d))
        ),
    ),
    Fault(
        "rope-tables-float32",
        "cos and sin are computed in float32",
        "model",
        ("rounded", "rope-rounded"),
        patches=tables(lambda f, c, p, d: tuple(t.astype(d) for t in f(c, p, jnp.float32))),
    ),
    Fault(
        "rope-cos-sin",
        "cos and sin are exchanged",
        "model",
        ("rope-swapped",),
        patches=tables(lambda f, c, p, d: f(c, p, d)[::-1]),
    ),
    Fault(
        "mask-one-ahead",
        "the mask lets each query see the next token",
        "model",
        ("mask-one-ahead",),
        patches=mask(lambda f, q, k, *s: f(q + 1, k, *s)),
    ),
    Fault(
        "mask-one-behind",
        "the mask hides each query's own token",
        "model",
        ("mask-one-behind",),
        patches=mask(lambda f, q, k, *s: f(jnp.maximum(q - 1, 0), k, *s)),
    ),
    Fault(
        "residual-left-out",
        "the sum after attention is left out",
        _BLOCK,
        ("sum",),
        patches=block(lambda x, normed, attended: attended),
    ),
    Fault(
        "residual-from-norm",
        "what is added to attention is the normed input",
        _BLOCK,
        ("sum",),
        patches=block(lambda x, normed, attended: normed + attended),
    ),
    Fault(
        "residual-halved",
        "attention counts half",
        _BLOCK,
        ("sum",),
        patches=block(lambda x, normed, attended: x + 0.5 * attended),
    ),
    Fault(
        "second-residual-left-out",
        "the sum after the feed-forward layer is left out",
        _BLOCK,
        ("sum",),
        patches=block(lambda x, n, a: x + a, lambda hidden, out: out),
    ),
    Fault(
        "bias-left-out",
        "biases of attention are not added",
        f"{_ATTENTION}.q_proj",
        ("linear-bias", "bias-dropped"),
        model="biases",
        patches=linear(diy_jax.attention, jnp.matmul, bias=False),
    ),
    Fault(
        "matmul-bfloat16",
        "products have bfloat16 operands",
        f"{_ATTENTION}.q_proj",
        ("linear-precision", "precision-bfloat16"),
        patches=linear(diy_jax.attention, narrow(jnp.bfloat16)),
    ),
    Fault(
        "matmul-tf32",
        "products have TF32 operands",
        f"{_ATTENTION}.q_proj",
        ("linear-precision", "precision-TF32"),
        patches=linear(diy_jax.attention, tf32),
    ),
    Fault(
        "matmul-float32",
        "products are computed in float32",
        f"{_FEEDFORWARD}.gate_proj",
        ("linear-precision", "precision-float32"),
        patches=linear(
            diy_jax.feedforward,
            lambda x, w: jnp.matmul(x.astype(jnp.float32), w.astype(jnp.float32)).astype(x.dtype),
        ),
    ),
    Fault(
        "embedding-scaled",
        "the embedding is multiplied by sqrt(D)",
        "model.embed_tokens",
        ("embedding-scaled", "scale"),
        patches=(Patch(nn, "Embed", scaled_embedding),),
    ),
]
