"""Conversion in memory and on disk: bit for bit, and every fault named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint
import pytest
import torch
from orbax.checkpoint import v1 as ocp

import diy_jax
import diy_torch
import parity
from diy_core.checkpoints.hf_directory import HFReader
from diy_core.errors import CheckpointError
from diy_core.mapping import flatten
from diy_jax import orbax_store
from parity.convert import convert, kind_of
from parity.random_models import small_configs, write_random_model

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(
        one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8)
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["gqa", "untied", "biases"])
def test_there_and_back_in_memory_is_the_same_to_the_bit(name: str, dtype: str) -> None:
    config = small_configs()[name]
    state = diy_torch.DIYForCausalLM(config, seed=3, dtype=DTYPES[dtype]).state_dict()
    params = parity.to_flax(state, config)
    expected = flatten(diy_jax.init_params(config, seed=3, dtype=DTYPES_JAX[dtype]))
    assert {path: str(a.dtype) for path, a in flatten(params).items()} == dict.fromkeys(
        expected, dtype
    )
    for path, array in flatten(params).items():
        np.testing.assert_array_equal(np.asarray(array), np.asarray(expected[path]))
    back = parity.to_torch(params, config)
    assert set(back) == set(state) != set()
    assert all(same_bits(back[key], state[key]) for key in state)
    diy_torch.DIYForCausalLM(config, dtype=DTYPES[dtype]).load_state_dict(back)


DTYPES_JAX = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}


def test_float64_is_kept_with_64_bits_and_refused_without() -> None:
    config = small_configs()["gqa"]
    state = diy_torch.DIYForCausalLM(config, dtype=torch.float64).state_dict()
    with pytest.raises(ValueError, match="jax_enable_x64"):
        parity.to_flax(state, config)
    with jax.enable_x64(True):
        params = parity.to_flax(state, config)
        assert all(array.dtype == np.float64 for array in flatten(params).values())


def test_every_fault_of_a_state_dict_is_named_at_once() -> None:
    config = small_configs()["gqa"]
    state = diy_torch.DIYForCausalLM(config).state_dict()
    del state["model.norm.weight"]
    state["model.layers.7.attention.q_proj.weight"] = torch.zeros(2)
    state["model.layers.0.attention.k_proj.weight"] = torch.zeros(16, 47)
    with pytest.raises(CheckpointError) as error:
        parity.to_flax(state, config)
    text = str(error.value)
    for part in (
        "3 faults",
        "missing tensor model.norm.weight",
        "unexpected tensor model.layers.7",
        "(16, 47), expected (16, 48)",
    ):
        assert part in text


def test_a_tied_head_that_drifted_is_refused() -> None:
    config = small_configs()["gqa"]
    state = dict(diy_torch.DIYForCausalLM(config).state_dict())
    state["lm_head.weight"] = state["lm_head.weight"] + 1
    with pytest.raises(CheckpointError, match="differs from the embedding"):
        parity.to_flax(state, config)


def test_faults_of_params_are_named() -> None:
    config = small_configs()["gqa"]
    params = diy_jax.init_params(config)
    params["model"]["layers_0"]["attention"]["bogus"] = np.zeros(3)
    with pytest.raises(CheckpointError, match="unexpected tensor model/layers_0/attention/bogus"):
        parity.to_torch(params, config)


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_hugging_face_to_orbax_and_back_is_the_same_to_the_bit(dtype: str, tmp_path: Path) -> None:
    config = small_configs()["biases"]
    write_random_model(tmp_path / "random", config, "fan-in")
    kind = getattr(torch, dtype)
    diy_torch.DIYForCausalLM.from_pretrained(tmp_path / "random", kind).save_pretrained(
        tmp_path / "model"
    )
    (tmp_path / "model" / "tokenizer.json").write_text("{}")
    assert convert(tmp_path / "model", tmp_path / "orbax").kind == "orbax"
    assert kind_of(tmp_path / "orbax") == "orbax"
    assert convert(tmp_path / "orbax", tmp_path / "back").kind == "hf"
    assert (tmp_path / "back" / "tokenizer.json").read_text() == "{}"
    before, after = HFReader(tmp_path / "model"), HFReader(tmp_path / "back")
    assert before.config.to_dict() == after.config.to_dict()
    assert before.stored == after.stored
    for name in before.stored:
        one, other = before.read(name), after.read(name)
        assert one.dtype == other.dtype == np.dtype(dtype)
        assert one.tobytes() == other.tobytes()


def test_relative_paths_do_as_well_as_absolute_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_random_model(tmp_path / "model", small_configs()["gqa"], "fan-in")
    monkeypatch.chdir(tmp_path)
    assert convert("model", "orbax").kind == "orbax"
    assert convert("orbax", "back").kind == "hf"
    assert HFReader("back").stored == HFReader("model").stored


def test_plain_orbax_reads_what_was_written(tmp_path: Path) -> None:
    config = small_configs()["gqa"]
    write_random_model(tmp_path / "model", config, "fan-in")
    convert(tmp_path / "model", tmp_path / "orbax")
    name, leaf = "model.layers.1.mlp.up_proj.weight", ("layers_1", "feedforward", "up_proj")
    expected = HFReader(tmp_path / "model").read(name).T
    with jax.enable_x64(True):
        new: Any = ocp.load(tmp_path / "orbax")
        old = orbax.checkpoint.PyTreeCheckpointer().restore(tmp_path / "orbax" / "state")
    for tree in (new, old):
        node = tree["model"]
        for key in leaf:
            node = node[key]
        np.testing.assert_array_equal(np.asarray(node["kernel"]), expected)


def test_an_orbax_checkpoint_runs_in_the_flax_twin(tmp_path: Path) -> None:
    config = small_configs()["gqa"]
    diy_torch.DIYForCausalLM(config, seed=1).save_pretrained(tmp_path / "model")
    convert(tmp_path / "model", tmp_path / "orbax")
    config, params = orbax_store.load_params(tmp_path / "orbax")
    model, expected = diy_jax.DIYForCausalLM.from_pretrained(tmp_path / "model")
    ids = [[1, 2, 3]]
    np.testing.assert_array_equal(
        model.apply({"params": params}, ids), model.apply({"params": expected}, ids)
    )


def test_what_is_in_the_way_is_not_lost(tmp_path: Path) -> None:
    write_random_model(tmp_path / "model", small_configs()["gqa"], "fan-in")
    convert(tmp_path / "model", tmp_path / "orbax")
    with pytest.raises(CheckpointError, match="exists already: --overwrite"):
        convert(tmp_path / "model", tmp_path / "orbax")
    convert(tmp_path / "model", tmp_path / "orbax", overwrite=True)
    with pytest.raises(CheckpointError, match="is the source itself"):
        convert(tmp_path / "model", tmp_path / "model", overwrite=True)
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "thesis.txt").write_text("years")
    with pytest.raises(CheckpointError, match="choose another place"):
        convert(tmp_path / "model", tmp_path / "papers", overwrite=True)
    assert (tmp_path / "papers" / "thesis.txt").read_text() == "years"
    with pytest.raises(CheckpointError, match="neither a Hugging Face directory"):
        convert(tmp_path / "papers", tmp_path / "x")


def test_an_orbax_checkpoint_that_does_not_fit_its_config_is_refused(tmp_path: Path) -> None:
    write_random_model(tmp_path / "model", small_configs()["gqa"], "fan-in")
    convert(tmp_path / "model", tmp_path / "orbax")
    config = json.loads((tmp_path / "orbax" / "config.json").read_text())
    config["intermediate_size"] = 81
    (tmp_path / "orbax" / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"up_proj/kernel has shape \(48, 80\), expected"):
        convert(tmp_path / "orbax", tmp_path / "back")
    assert not (tmp_path / "back").exists()
