"""Random healthy models, and the trace of one, which must find nothing."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import strategies as st

import parity
from diy_core.config import DIYConfig
from diy_core.rope_scaling import RopeScaling
from parity.environment import choose_device, exact
from parity.random_models import small_configs, write_random_model
from parity.tracing.match.rules import twin_rules
from parity.twins import Pair

IDS = np.random.default_rng(0).integers(0, 131, (2, 24)).astype(np.int32)


@st.composite
def configs(draw: st.DrawFn) -> DIYConfig:
    """What a config can switch, with sizes that need no new compilation."""
    scaling = RopeScaling(rope_type="linear", factor=draw(st.sampled_from([2.0, 5.0])))
    return dataclasses.replace(
        small_configs()["gqa"],
        num_hidden_layers=draw(st.integers(1, 3)),
        num_key_value_heads=draw(st.sampled_from([1, 2, 6])),
        rope_theta=draw(st.floats(10, 1e6)),
        rms_norm_eps=draw(st.floats(1e-8, 1e-2)),
        rope_scaling=draw(st.sampled_from([None, scaling])),
        tie_word_embeddings=draw(st.booleans()),
        attention_bias=draw(st.booleans()),
        mlp_bias=draw(st.booleans()),
    )


def trace_healthy(config: DIYConfig, scale: str, seed: int, own: bool) -> None:
    """Trace the twins on a model of this config, with the twins' own rules or with inferred ones.

    Raises:
        AssertionError: a divergence or a note, or something that was not compared.
    """
    cpu = choose_device("cpu")
    with tempfile.TemporaryDirectory() as path, exact(cpu):
        write_random_model(Path(path) / "model", config, scale, seed)
        pair = Pair(Path(path) / "model", "float64", cpu)
        rules = twin_rules(config) if own else None
        result = parity.trace(pair.torch, pair.flax, pair.params, IDS, rules=rules)
    assert result.equal, f"{config}, {scale}, seed {seed}: {result.first_divergence}"
    assert result.notes == []
    assert len(result.rows) == 5 + 12 * config.num_hidden_layers
    assert set(result.gradients) == set(result.parameters)
