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

LAYER_FAULTS = [
    Fault(
        "eps",
        ("norm-eps",),
        config=lambda c: dataclasses.replace(c, rms_norm_eps=1e-6),
    ),
    Fault(
        "eps-of-the-file",
        ("norm-eps",),
        config=lambda c: dataclasses.replace(c, rms_norm_eps=float(np.float32(1e-5))),
    ),
    Fault(
        "eps-outside",
        ("norm-eps",),
        patches=norm(
            lambda x, w, eps: w * x / (jnp.sqrt(jnp.mean(x * x, -1, keepdims=True)) + eps)
        ),
    ),
    Fault(
        "norm-one-plus",
        ("norm-weight",),
        patches=norm(lambda x, w, eps: rms(x, eps) * (1 + w)),
    ),
    Fault(
        "norm-float32",
        ("precision-float32", "norm-precision"),
        patches=norm(narrow_norm(jnp.float32)),
    ),
    Fault(
        "norm-bfloat16",
        ("precision-bfloat16", "norm-precision"),
        patches=norm(narrow_norm(jnp.bfloat16)),
    ),
    Fault(
        "layer-norm",
        ("norm-mean",),
        patches=norm(lambda x, w, eps: rms(x - x.mean(-1, keepdims=True), eps) * w),
    ),
    Fault(
        "activation-gelu",
        ("activation",),
        patches=gated(lambda gate, up: nn.gelu(gate, approximate=False) * up),
    ),
    Fault(
        "activation-gelu-tanh",
        ("activation",),
        patches=gated(lambda gate, up: nn.gelu(gate) * up),
    ),
    Fault(
        "activation-relu",
        ("activation",),
        patches=gated(lambda gate, up: nn.relu(gate) * up),
    ),
    Fault(
        "gate-on-up",
        ("activation",),
        patches=gated(lambda gate, up: nn.silu(up) * gate),
    ),
    Fault(
        "gate-left-out",
        ("activation",),
        patches=gated(lambda gate, up: gate * up),
    ),
    Fault(
        "residual-left-out",
        ("sum",),
        patches=block(lambda x, normed, attended: attended),
    ),
    Fault(
        "residual-from-norm",
        ("sum",),
        patches=block(lambda x, normed, attended: normed + attended),
    ),
    Fault(
        "residual-halved",
        ("sum",),
        patches=block(lambda x, normed, attended: x + 0.5 * attended),
    ),
    Fault(
        "second-residual-left-out",
        ("sum",),
        patches=block(lambda x, n, a: x + a, lambda hidden, out: out),
    ),
    Fault(
        "bias-left-out",
        ("linear-bias", "bias-dropped"),
        model="biases",
        patches=linear(diy_jax.attention, jnp.matmul, bias=False),
    ),
    Fault(
        "matmul-bfloat16",
        ("linear-precision", "precision-bfloat16"),
        patches=linear(diy_jax.attention, narrow(jnp.bfloat16)),
    ),
    Fault(
        "matmul-tf32",
        ("linear-precision", "precision-TF32"),
        patches=linear(diy_jax.attention, tf32),
    ),
    Fault(
        "matmul-float32",
        ("linear-precision", "precision-float32"),
        patches=linear(
            diy_jax.feedforward,
            lambda x, w: jnp.matmul(x.astype(jnp.float32), w.astype(jnp.float32)).astype(x.dtype),
        ),
    ),
    Fault(
        "embedding-scaled",
        ("embedding-scaled", "scale"),
        patches=(Patch(nn, "Embed", scaled_embedding),),
    ),
]
