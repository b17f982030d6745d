"""Faults of a port: attention, its mask and its rotary tables are computed otherwise."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from diy_core.rope_scaling import RopeScaling
from parity.faults.fault import Fault
from parity.faults.patches import attend, halves, mask, neighbours, queries_ahead, rope, tables

_ATTENTION = "model.layers.0.attention"
_LLAMA3 = RopeScaling(
    rope_type="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=64,
)
ATTENTION_FAULTS = [
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
]
