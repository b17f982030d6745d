from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import diy_torch
from diy_core.checkpoints.hf.directory import HFReader
from diy_core.errors import CheckpointError
from diy_core.mapping import tensors
from diy_core.notes import CheckpointNote
from diy_torch.tensors import to_numpy, to_tensor
from parity.check.measures import relative_l2
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
from tests.torch_twin.build import build, run

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


def same_bits(one: diy_torch.DIYForCausalLM, other: diy_torch.DIYForCausalLM) -> bool:
    pairs = zip(one.named_parameters(), other.named_parameters(), strict=True)
    return all(
        name == name_ and a.dtype == b.dtype and to_numpy(a).tobytes() == to_numpy(b).tobytes()
        for (name, a), (name_, b) in ((x, y) for x, y in pairs)
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["gqa", "untied", "biases"])
def test_a_round_trip_keeps_every_bit(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = build(CONFIGS[name], dtype).requires_grad_(False)
    model.save_pretrained(tmp_path / "model")
    for wanted in (dtype, None):
        again = diy_torch.DIYForCausalLM.from_pretrained(tmp_path / "model", dtype=wanted)
        assert same_bits(model, again.requires_grad_(False))
        assert dataclasses.replace(again.config, extra={}) == model.config
        tied = again.lm_head.weight is again.model.embed_tokens.weight
        assert tied == model.config.tie_word_embeddings


def test_it_loads_in_float32_unless_said_otherwise(tmp_path: Path) -> None:
    model = build(tiny(), torch.bfloat16).requires_grad_(False)
    model.save_pretrained(tmp_path / "model")
    again = diy_torch.DIYForCausalLM.from_pretrained(tmp_path / "model")
    assert same_bits(model.float(), again.requires_grad_(False))


def test_it_is_loaded_to_the_device_that_is_asked_for(tmp_path: Path) -> None:
    put(tmp_path / "model", weights())
    for device in ("cpu", "meta"):
        model = diy_torch.DIYForCausalLM.from_pretrained(tmp_path / "model", device=device)
        assert {parameter.device.type for parameter in model.parameters()} == {device}


@pytest.mark.parametrize("name", ["gqa", "untied", "biases"])
def test_the_file_holds_each_tensor_under_its_own_name(name: str, tmp_path: Path) -> None:
    model = build(CONFIGS[name])
    model.save_pretrained(tmp_path / "model")
    written = dict(HFReader(tmp_path / "model").read_all())
    parameters = {name: to_numpy(p.detach()) for name, p in model.named_parameters()}
    assert {t.hf for t in tensors(model.config)} == set(written)
    for tensor in tensors(model.config):
        assert (written[tensor.hf] == parameters[tensor.torch]).all()


@pytest.mark.parametrize("name", CONFIGS)
def test_transformers_loads_what_was_saved_and_answers_the_same(name: str, tmp_path: Path) -> None:
    config = CONFIGS[name]
    model, ids = build(config, torch.float32), random_ids(config, 2, 12)
    model.save_pretrained(tmp_path / "model")
    witness, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", dtype=torch.float32, output_loading_info=True
    )
    assert not any(info.values()), info
    with torch.no_grad():
        expected = witness(torch.from_numpy(ids).long()).logits.numpy()
    assert relative_l2(run(model, ids), expected) <= 1e-5


def test_numbers_pass_between_numpy_and_torch_bit_for_bit() -> None:
    for dtype in DTYPES:
        tensor = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
        assert to_numpy(tensor).dtype.name == str(dtype).removeprefix("torch.")
        assert torch.equal(to_tensor(to_numpy(tensor)), tensor)
    read_only = np.ones((2, 3))
    read_only.flags.writeable = False
    values = np.arange(6.0).reshape(3, 2)
    for array in (read_only, values.T, values[::-1]):
        assert (to_tensor(array).numpy() == array).all()
        assert to_tensor(array).is_contiguous()


def save(model: diy_torch.DIYForCausalLM, path: Path, **options: Any) -> None:
    model.save_pretrained(path, **options)


def test_only_values_that_were_saved_are_verified(tmp_path: Path) -> None:
    path = tmp_path / "model"
    save(build(tiny(), torch.float32), path)
    diy_torch.DIYForCausalLM.from_pretrained(path, verify=True)
    diy_torch.DIYForCausalLM.from_pretrained(path, dtype=torch.bfloat16, verify=True)
    change_one_value(path, QUERY)
    diy_torch.DIYForCausalLM.from_pretrained(path)
    for dtype in (torch.float32, torch.bfloat16):
        with pytest.raises(diy_torch.CheckpointError, match=f"{QUERY} does not have the SHA"):
            diy_torch.DIYForCausalLM.from_pretrained(path, dtype=dtype, verify=True)


def test_without_sums_verifying_says_who_writes_them(tmp_path: Path) -> None:
    path = put(tmp_path / "model", weights())
    diy_torch.DIYForCausalLM.from_pretrained(path)
    with pytest.raises(diy_torch.CheckpointError, match="save_pretrained write one"):
        diy_torch.DIYForCausalLM.from_pretrained(path, verify=True)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", ["gqa", "untied"])
def test_saving_writes_the_sums_of_all_tensors(name: str, dtype: str, tmp_path: Path) -> None:
    config = CONFIGS[name]
    save(build(config, getattr(torch, dtype)), tmp_path / "model")
    expected = weights(config, dtype)
    assert same(read(tmp_path / "model"), expected)
    assert sums_of(tmp_path / "model") == sums(expected)
    source = json.loads((tmp_path / "model" / MANIFEST).read_text())["source"]
    assert source == "memory model"


def test_large_models_are_saved_in_shards(tmp_path: Path) -> None:
    for limit in (1500, 4000, 10**9, 1500):
        path = tmp_path / "model"
        save(build(tiny(), torch.float32), path, max_shard_size=limit)
        sizes = [file.stat().st_size for file in path.glob("*.safetensors")]
        assert max(sizes) <= max(limit, 1700)  # the largest tensor alone
        assert (len(sizes) > 1) == (limit < 10**9)
        assert same(read(path), weights(tiny()))
        diy_torch.DIYForCausalLM.from_pretrained(path, verify=True)


def test_what_is_odd_is_warned_of_or_refused(tmp_path: Path) -> None:
    extra = {HEAD: weights()[EMBEDDING].copy(), "model.rotary_emb.inv_freq": weights()[QUERY][0]}
    put(tmp_path, weights() | extra)
    with pytest.warns(CheckpointNote) as caught:
        diy_torch.DIYForCausalLM.from_pretrained(tmp_path)
    assert [HEAD in str(warning.message) for warning in caught] == [False, True]
    with pytest.raises(CheckpointError, match="1 rotary table"):
        diy_torch.DIYForCausalLM.from_pretrained(tmp_path, strict=True)
    put(tmp_path, weights() | {HEAD: extra[HEAD]})
    with pytest.raises(CheckpointError, match=HEAD):
        diy_torch.DIYForCausalLM.from_pretrained(tmp_path, strict=True)


def test_a_config_is_for_what_has_none(tmp_path: Path) -> None:
    put(tmp_path / "m", weights())
    refused = pytest.raises(CheckpointError, match="has a config of its own: leave config out")
    with refused:
        diy_torch.DIYForCausalLM.from_pretrained(tmp_path / "m", config=tmp_path / "m")
