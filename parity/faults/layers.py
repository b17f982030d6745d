"""Faults of a port: norms, activations, residual sums and products are computed otherwise."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

import diy_jax.attention
import diy_jax.feedforward
from parity.faults.fault import Fault, Patch
from parity.faults.patches import (
    block,
    gated,
    linear,
    narrow,
    narrow_norm,
    norm,
    rms,
    scaled_embedding,
    tf32,
)

_ATTENTION, _FEEDFORWARD = "model.layers.0.attention", "model.layers.0.feedforward"
_NORM, _BLOCK = "model.layers.0.attention_norm", "model.layers.0"
LAYER_FAULTS = [
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
