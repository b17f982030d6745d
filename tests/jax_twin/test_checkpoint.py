from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import diy_jax
from diy_core.checkpoints.hf.directory import HFReader
from diy_core.errors import CheckpointError
from diy_core.mapping import flatten, tensors
from diy_core.notes import CheckpointNote
from parity.check.measures import relative_l2
from tests.jax_twin.build import Built, build, run
from tests.oracles import CONFIGS, random_ids, tiny
from tests.tiny_checkpoints import (
    EMBEDDING,
    HEAD,
    MANIFEST,
    QUERY,
    change_one_value,
    put,
    read,
    same,
    sums,
    sums_of,
    weights,
)

DTYPES = [jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64]


def same_bits(one: dict[str, Any], other: dict[str, Any]) -> bool:
    left, right = flatten(one), flatten(other)
    return set(left) == set(right) and all(
        left[path].dtype == right[path].dtype
        and np.array(left[path]).tobytes() == np.array(right[path]).tobytes()
        for path in left
    )


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["gqa", "untied", "biases"])
def test_a_round_trip_keeps_every_bit(name: str, dtype: Any, tmp_path: Path) -> None:
    built = build(CONFIGS[name], dtype)
    built.model.save_pretrained(tmp_path / "model", built.params)
    for wanted in (dtype, None):
        again, params = diy_jax.DIYForCausalLM.from_pretrained(tmp_path / "model", dtype=wanted)
        assert same_bits(built.params, params)
        assert again.dtype == again.param_dtype == jnp.dtype(dtype)
        assert dataclasses.replace(again.config, extra={}) == built.model.config
        assert ("lm_head" in params) != built.model.config.tie_word_embeddings


def test_it_loads_in_float32_unless_said_otherwise(tmp_path: Path) -> None:
    built = build(tiny(), jnp.bfloat16)
    built.model.save_pretrained(tmp_path / "model", built.params)
    _, params = diy_jax.DIYForCausalLM.from_pretrained(tmp_path / "model")
    assert same_bits(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), built.params), params)


def test_float64_without_64_bit_mode_is_refused_and_not_cut(tmp_path: Path) -> None:
    with jax.enable_x64(True):
        built = build(tiny())
        built.model.save_pretrained(tmp_path / "model", built.params)
    for dtype in (jnp.float64, None):
        with pytest.raises(ValueError, match="float64 needs JAX's 64-bit mode"):
            diy_jax.DIYForCausalLM.from_pretrained(tmp_path / "model", dtype=dtype)
    diy_jax.DIYForCausalLM.from_pretrained(tmp_path / "model", dtype=jnp.float32)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["gqa", "untied", "biases"])
def test_the_file_holds_each_tensor_under_its_own_name(name: str, tmp_path: Path) -> None:
    built = build(CONFIGS[name])
    built.model.save_pretrained(tmp_path / "model", built.params)
    written = dict(HFReader(tmp_path / "model").read_all())
    parameters = flatten(built.params)
    assert {t.hf for t in tensors(built.model.config)} == set(written)
    for tensor in tensors(built.model.config):
        array = np.array(parameters[tensor.flax])
        assert (written[tensor.hf] == (array.T if "kernel" in tensor.flax else array)).all()


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize("name", ["gqa", "untied", "biases", "llama3"])
def test_transformers_loads_what_was_saved_and_answers_the_same(name: str, tmp_path: Path) -> None:
    config = CONFIGS[name]
    built, ids = build(config, jnp.float32), random_ids(config, 2, 12)
    built.model.save_pretrained(tmp_path / "model", built.params)
    witness, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", dtype=torch.float32, output_loading_info=True
    )
    assert not any(info.values()), info
    with torch.no_grad():
        expected = witness(torch.from_numpy(ids).long()).logits.numpy()
    assert relative_l2(run(built, ids), expected) <= 1e-5


@pytest.mark.parametrize("fault", ["missing", "extra", "misshapen"])
def test_params_of_another_config_are_not_saved(fault: str, tmp_path: Path) -> None:
    params: dict[str, Any] = diy_jax.init_params(tiny())
    if fault == "missing":
        del params["model"]["norm"]
    elif fault == "extra":
        params["lm_head"] = {"kernel": jnp.ones((16, 23))}
    else:
        params["model"]["norm"]["scale"] = jnp.ones(17)
    name = "lm_head/kernel" if fault == "extra" else "model/norm/scale"
    with pytest.raises(diy_jax.CheckpointError, match=name):
        diy_jax.DIYForCausalLM(tiny()).save_pretrained(tmp_path / "model", params)
    assert not list(tmp_path.iterdir())


def test_loaded_params_are_what_init_params_and_flax_make() -> None:
    config = CONFIGS["untied"]
    model = diy_jax.DIYForCausalLM(config)
    by_flax = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 2), jnp.int32))["params"]
    ours = flatten(diy_jax.init_params(config))
    assert {p: (a.shape, a.dtype) for p, a in ours.items()} == {
        p: (a.shape, a.dtype) for p, a in flatten(by_flax).items()
    }
    assert run(Built(model, diy_jax.init_params(config)), np.ones((1, 2), np.int32)).any()


def save(built: Built, path: Path, **options: Any) -> None:
    built.model.save_pretrained(path, built.params, **options)


def test_only_values_that_were_saved_are_verified(tmp_path: Path) -> None:
    path = tmp_path / "model"
    save(build(tiny(), jnp.float32), path)
    diy_jax.DIYForCausalLM.from_pretrained(path, verify=True)
    diy_jax.DIYForCausalLM.from_pretrained(path, dtype=jnp.bfloat16, verify=True)
    change_one_value(path, QUERY)
    diy_jax.DIYForCausalLM.from_pretrained(path)
    for dtype in (jnp.float32, jnp.bfloat16):
        with pytest.raises(diy_jax.CheckpointError, match=f"{QUERY} does not have the SHA"):
            diy_jax.DIYForCausalLM.from_pretrained(path, dtype=dtype, verify=True)


def test_without_sums_verifying_says_who_writes_them(tmp_path: Path) -> None:
    path = put(tmp_path / "model", weights())
    diy_jax.DIYForCausalLM.from_pretrained(path)
    with pytest.raises(diy_jax.CheckpointError, match="save_pretrained write one"):
        diy_jax.DIYForCausalLM.from_pretrained(path, verify=True)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", ["gqa", "untied"])
def test_saving_writes_the_sums_of_all_tensors(name: str, dtype: str, tmp_path: Path) -> None:
    config = CONFIGS[name]
    save(build(config, getattr(jnp, dtype)), tmp_path / "model")
    expected = weights(config, dtype)
    assert same(read(tmp_path / "model"), expected)
    assert sums_of(tmp_path / "model") == sums(expected)
    source = json.loads((tmp_path / "model" / MANIFEST).read_text())["source"]
    assert source == "memory model"


def test_large_models_are_saved_in_shards(tmp_path: Path) -> None:
    for limit in (1500, 4000, 10**9, 1500):
        path = tmp_path / "model"
        save(build(tiny(), jnp.float32), path, max_shard_size=limit)
        sizes = [file.stat().st_size for file in path.glob("*.safetensors")]
        assert max(sizes) <= max(limit, 1700)  # the largest tensor alone
        assert (len(sizes) > 1) == (limit < 10**9)
        assert same(read(path), weights(tiny()))
        diy_jax.DIYForCausalLM.from_pretrained(path, verify=True)


def test_what_is_odd_is_warned_of_or_refused(tmp_path: Path) -> None:
    extra = {HEAD: weights()[EMBEDDING].copy(), "model.rotary_emb.inv_freq": weights()[QUERY][0]}
    put(tmp_path, weights() | extra)
    with pytest.warns(CheckpointNote) as caught:
        diy_jax.DIYForCausalLM.from_pretrained(tmp_path)
    assert [HEAD in str(warning.message) for warning in caught] == [False, True]
    with pytest.raises(CheckpointError, match="1 rotary table"):
        diy_jax.DIYForCausalLM.from_pretrained(tmp_path, strict=True)
    put(tmp_path, weights() | {HEAD: extra[HEAD]})
    with pytest.raises(CheckpointError, match=HEAD):
        diy_jax.DIYForCausalLM.from_pretrained(tmp_path, strict=True)


def test_a_config_is_for_what_has_none(tmp_path: Path) -> None:
    put(tmp_path / "m", weights())
    refused = pytest.raises(CheckpointError, match="has a config of its own: leave config out")
    with refused:
        diy_jax.DIYForCausalLM.from_pretrained(tmp_path / "m", config=tmp_path / "m")
