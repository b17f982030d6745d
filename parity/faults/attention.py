"""Faults of a port: attention, its mask and its rotary tables are computed otherwise."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from diy_core.rope_scaling import RopeScaling
from parity.faults.fault import Fault
from parity.faults.patches import attend, halves, mask, neighbours, queries_ahead, rope, tables

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
        ("scale-missing",),
        patches=attend(scale=lambda h: 1.0),
    ),
    Fault(
        "scale-twice",
        ("scale-head-dim",),
        patches=attend(scale=lambda h: 1.0 / h),
    ),
    Fault(
        "scale-hidden",
        ("scale-hidden",),
        patches=attend(scale=lambda h: 48**-0.5),
    ),
    Fault(
        "mask-left-out",
        ("mask-left-out",),
        patches=attend(mask=jnp.ones_like),
    ),
    Fault(
        "groups-modulo",
        ("heads-regrouped",),
        patches=attend(modulo=True),
    ),
    Fault(
        "heads-merged-inner",
        ("heads-merged-otherwise", "heads-regrouped"),
        patches=attend(merge_inner=True),
    ),
    Fault(
        "softmax-float32",
        ("softmax-float32", "precision-float32"),
        patches=attend(softmax=jnp.float32),
    ),
    Fault(
        "softmax-bfloat16",
        ("softmax-bfloat16", "precision-bfloat16"),
        patches=attend(softmax=jnp.bfloat16),
    ),
    Fault(
        "keys-for-values",
        ("key-value-swapped", "rotated-key-value-swapped"),
        patches=attend(swap=True),
    ),
    Fault(
        "rope-neighbours",
        ("rope-interleaved",),
        patches=rope(neighbours),
    ),
    Fault(
        "rope-backwards",
        ("rope-backwards",),
        patches=rope(lambda x, cos, sin: halves(x, cos, -sin)),
    ),
    Fault(
        "rope-left-out",
        ("rope-left-out",),
        patches=rope(lambda x, cos, sin: x),
    ),
    Fault(
        "rope-queries-ahead",
        ("position-ahead",),
        patches=rope(queries_ahead),
    ),
    Fault(
        "rope-theta",
        ("rope-theta",),
        config=lambda c: dataclasses.replace(c, rope_theta=5e5),
    ),
    Fault(
        "rope-linear-left-out",
        ("rope-scaled",),
        model="rope-linear",
        config=lambda c: dataclasses.replace(c, rope_scaling=None),
    ),
    Fault(
        "rope-llama3-left-out",
        ("rope-frequencies", "rope-scaled"),
        model="rope-llama3",
        config=lambda c: dataclasses.replace(c, rope_scaling=None),
    ),
    Fault(
        "rope-llama3-factor",
        ("rope-frequencies", "rope-scaled"),
        model="rope-llama3",
        config=lambda c: dataclasses.replace(
            c, rope_scaling=dataclasses.replace(_LLAMA3, factor=32.0)
        ),
    ),
    Fault(
        "rope-tables-bfloat16",
        ("rounded", "precision-bfloat16"),
        patches=tables(
            lambda f, c, p, d: tuple(t.astype(jnp.bfloat16).astype(d) for t in f(c, p, d))
        ),
    ),
    Fault(
        "rope-tables-float32",
        ("rounded", "rope-rounded"),
        patches=tables(lambda f, c, p, d: tuple(t.astype(d) for t in f(c, p, jnp.float32))),
    ),
    Fault(
        "rope-cos-sin",
        ("rope-swapped",),
        patches=tables(lambda f, c, p, d: f(c, p, d)[::-1]),
    ),
    Fault(
        "mask-one-ahead",
        ("mask-one-ahead",),
        patches=mask(lambda f, q, k, *s: f(q + 1, k, *s)),
    ),
    Fault(
        "mask-one-behind",
        ("mask-one-behind",),
        patches=mask(lambda f, q, k, *s: f(jnp.maximum(q - 1, 0), k, *s)),
    ),
]
