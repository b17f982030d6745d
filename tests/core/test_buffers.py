"""What a checkpoint holds besides its weights: left out where it changes nothing, else refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import transformers

from diy_core import CheckpointError
from diy_core.buffers import is_buffer
from diy_core.checkpoints.hf.directory import HFReader
from diy_core.mapping import tensors
from diy_core.rope_scaling import RopeScaling
from tests.tiny_checkpoints import CONFIG, HEAD, UNTIED, Arrays, put, same, weights

BUFFERS = {
    "rotary_emb.inv_freq": True,
    "model.rotary_emb.inv_freq": True,
    "model.rotary_emb.original_inv_freq": True,
    "model.layers.0.self_attn.rotary_emb.inv_freq": True,
    "module.model.layers.31.self_attn.rotary_emb.cos_cached": True,
    "transformer.h.0.attn.masked_bias": True,
    "model.layers.0.self_attn.bias": True,
    "model.layers.0.attention.causal_mask": True,
    "model.causal_mask": True,
    "model.embeddings.position_ids": True,
    "rope.freqs": True,
    "freqs_cis": True,
    "inv_freq": True,
    "model.inv_freq": True,
    "model.layers.0.self_attn.sin_cached": True,
    "model.layers.0.self_attn.rotary_fn.inv_freq": True,
    "model.layers.0.self_attn.rotary_emb.cache": True,
    "model.rotary_embs.cos": True,
    "model.rope_cache": True,
    "model.cos": True,
    "model.rotary_emb.attention_scaling": True,
    "model.layers.0.self_attn.attn_mask": True,
    "model.layers.0.attention.kv_cache.k_cache": True,
    "model.mask": True,
    "model.layers.0.mlp.up_proj.mask": False,
    "model.layers.0.self_attn.q_proj.weight_mask": False,
    "model.attn_bias": True,
    "model.layers.0.self_attn.attn_bias": True,
    "model.mask_cache": True,
    "transformer.mask": True,
    "model.layers.0.self_attn.scale": False,
    "model.layers.0.self_attn.rotary_emb.inv_freq2": False,
    "model.layers.0.self_attn.q_proj.weight": False,
    "model.layers.0.self_attn.q_proj.bias": False,
    "model.layers.0.self_attn.q_norm.scale": False,
    "bias": False,
}


@pytest.mark.parametrize("name", BUFFERS)
def test_only_buffers_are_dropped(name: str) -> None:
    assert is_buffer(name) is BUFFERS[name]


def test_no_tensor_of_a_model_has_the_name_of_a_buffer() -> None:
    config = dataclasses.replace(UNTIED, attention_bias=True, mlp_bias=True)
    names = [name for tensor in tensors(config) for name in (tensor.hf, tensor.torch)]
    assert not any(map(is_buffer, names))


def table(dtype: type = np.float32) -> np.ndarray:
    """As transformers computes it, in float32."""
    theirs = transformers.LlamaConfig.from_dict(CONFIG.to_dict())
    frequencies = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(theirs).inv_freq
    return frequencies.numpy().astype(dtype)


def with_buffers(path: Path, buffers: Arrays) -> list[str]:
    reader = HFReader(put(path, weights() | buffers))
    assert same(dict(reader.read_all()), weights())
    return reader.notes


LAYERS = [f"model.layers.{i}.self_attn.rotary_emb" for i in range(2)]


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
def test_tables_that_follow_from_the_config_are_dropped(tmp_path: Path, dtype: type) -> None:
    buffers = {f"{layer}.inv_freq": table(dtype=dtype) for layer in LAYERS}
    assert with_buffers(tmp_path, buffers) == [
        "2 rotary tables were dropped: they follow from the config"
    ]
    cached = {f"{LAYERS[0]}.{name}_cached": np.ones((1, 1, 8, 4)) for name in ("cos", "sin")}
    assert with_buffers(tmp_path, cached) == [
        "2 rotary tables were dropped: they follow from the config"
    ]


@pytest.mark.parametrize("factor", [4.0, 1.0, 2.0])
def test_a_stretched_rope_may_have_its_table_stretched_or_as_old_files_have_it(
    tmp_path: Path, factor: float
) -> None:
    scaling = RopeScaling(rope_type="linear", factor=4.0)
    config = dataclasses.replace(CONFIG, rope_scaling=scaling)
    arrays = weights(config) | {f"{LAYERS[0]}.inv_freq": (table() / factor).astype(np.float32)}
    (note,) = HFReader(put(tmp_path, arrays, config)).notes
    assert ("other frequencies" in note) == (factor == 2)


@pytest.mark.parametrize("wrong", ["values", "shape"])
def test_a_table_of_another_rope_is_named(tmp_path: Path, wrong: str) -> None:
    other = table() * 1.01 if wrong == "values" else np.ones(7, np.float32)
    buffers = {f"{LAYERS[0]}.inv_freq": table(), f"{LAYERS[1]}.inv_freq": other}
    assert with_buffers(tmp_path, buffers) == [
        "2 rotary tables were dropped: they follow from the config, which gives other frequencies "
        f"than {LAYERS[1]}.inv_freq (is its rope right?)"
    ]


def test_masks_are_dropped_whatever_their_dtype_and_biases_are_not(tmp_path: Path) -> None:
    mask = np.tril(np.ones((8, 8), np.bool_))[None, None]
    buffers: Arrays = {
        "model.layers.0.self_attn.bias": mask,
        "model.layers.0.self_attn.masked_bias": np.array(-1e9, np.float32),
    }
    assert with_buffers(tmp_path, buffers) == [
        "2 masks or positions were dropped, such as model.layers.0.self_attn.bias: attention is "
        "causal"
    ]
    with pytest.raises(CheckpointError, match=r"unexpected tensor model\.layers\.0\.self_attn\.b"):
        HFReader(put(tmp_path, weights() | {"model.layers.0.self_attn.bias": np.ones(16)}))


ALLOWED = np.tril(np.ones((8, 8), np.bool_))
CAUSAL: dict[str, Any] = {
    "allowed": ALLOWED,
    "forbidden": ~ALLOWED,
    "allowed, a byte each": ALLOWED.astype(np.uint8),
    "allowed, as numbers": ALLOWED.astype(np.float32),
    "to be added": np.where(ALLOWED, 0, -np.inf).astype(np.float32)[None, None],
    "to be added, the least number": np.where(
        ALLOWED, 0, ml_dtypes.finfo(ml_dtypes.bfloat16).min
    ).astype(ml_dtypes.bfloat16),
    "one for each head": np.broadcast_to(ALLOWED, (1, 2, 8, 8)).copy(),
    "of one position": np.ones((1, 1), np.bool_),
    "of none": np.ones((0, 0), np.bool_),
    "longer than a piece": np.tril(np.ones((1500, 1500), np.bool_)),
}
OTHERS: dict[str, Any] = {
    "all": np.ones((8, 8), np.bool_),
    "a window": ALLOWED & ~np.tril(ALLOWED, -4),
    "one position too far": np.tril(np.ones((8, 8), np.bool_), 1),
    "slopes": np.where(ALLOWED, -np.arange(8.0), -np.inf).astype(np.float32),
    "a little": np.where(ALLOWED, 0, -1).astype(np.float32),
    "not a number": np.where(ALLOWED, 0, np.nan).astype(np.float32),
    "slopes, all in a row": -np.arange(8.0, dtype=np.float32)[None, None, None],
    "complex": ALLOWED.astype(np.complex64),
    "a single row of many": np.r_[np.ones((1, 8), np.bool_), ALLOWED[1:]],
    "not the last of two": np.stack([ALLOWED, np.ones((8, 8), np.bool_)]),
}
MASKS = ["model.attn_bias", "model.layers.0.self_attn.bias", "model.causal_mask"]


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("kind", CAUSAL)
def test_a_causal_mask_is_dropped(tmp_path: Path, kind: str, name: str) -> None:
    assert with_buffers(tmp_path, {name: CAUSAL[kind]}) == [
        f"1 mask or positions was dropped, such as {name}: attention is causal"
    ]


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("kind", OTHERS)
def test_any_other_mask_is_refused(tmp_path: Path, kind: str, name: str) -> None:
    with pytest.raises(CheckpointError) as refused:
        HFReader(put(tmp_path, weights() | {name: OTHERS[kind]}))
    said, fault = refused.value.faults[:2]
    assert said == f"{name} is called as a mask, and is none of causal attention"
    assert fault.startswith(f"unexpected tensor {name}")


IDLE: dict[str, tuple[Arrays, str]] = {
    "a scale": (
        {"model.layers.0.self_attn.k_proj.k_scale": np.array(0.5, np.float32)},
        "1 scale was dropped, such as model.layers.0.self_attn.k_proj.k_scale: no weight here is "
        "quantised",
    ),
    "scales": (
        {
            "model.layers.0.self_attn.v_scale": np.array([2], np.float32),
            "model.layers.1.self_attn.attn.k_scale": np.array(2, np.float32),
            "model.layers.1.mlp.down_proj.input_scale": np.array([[3]], np.float16),
        },
        "3 scales were dropped, such as model.layers.0.self_attn.v_scale: no weight here is "
        "quantised",
    ),
    "the head's bias": (
        {"lm_head.bias": np.zeros(48, np.float32)},
        "1 bias was dropped, such as lm_head.bias: the config has no such bias, and zeros add "
        "nothing",
    ),
    "biases": (
        {
            "model.layers.0.self_attn.q_proj.bias": -np.zeros(16, np.float16),
            "model.norm.bias": np.zeros(16, ml_dtypes.bfloat16),
        },
        "2 biases were dropped, such as model.layers.0.self_attn.q_proj.bias: the config has no "
        "such bias, and zeros add nothing",
    ),
}


@pytest.mark.parametrize("kind", IDLE)
def test_what_adds_nothing_is_dropped_as_transformers_drops_it(tmp_path: Path, kind: str) -> None:
    arrays, note = IDLE[kind]
    assert with_buffers(tmp_path, arrays) == [note]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()
    assert all(np.array_equal(theirs[name].numpy(), array) for name, array in weights().items())


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("lm_head.bias", np.eye(1, 48, 47, dtype=np.float32)[0]),
        ("model.layers.1.mlp.up_proj.bias", np.full(24, np.nan, np.float32)),
        ("model.layers.0.self_attn.q_proj.bias", np.zeros((16, 1), np.float32)),
        ("model.layers.0.self_attn.k_scale", np.ones(8, np.float32)),
        ("model.layers.0.self_attn.scale", np.array(1, np.float32)),
        ("model.layers.0.mlp.up_proj.weight_scale", np.array(1, np.float32)),
    ],
)
def test_what_may_add_something_is_not(tmp_path: Path, name: str, array: Any) -> None:
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        HFReader(put(tmp_path, weights() | {name: array}))


def test_a_bias_of_zeros_that_the_config_has_is_kept(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, attention_bias=True)
    arrays = weights(config)
    name = "model.layers.0.self_attn.q_proj.bias"
    arrays[name] = np.zeros_like(arrays[name])
    reader = HFReader(put(tmp_path, arrays | {"lm_head.bias": np.zeros(3, np.float32)}, config))
    assert same(dict(reader.read_all()), arrays)
    assert ["lm_head.bias" in note for note in reader.notes] == [True]


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_a_tied_head_of_another_dtype_is_the_embedding(tmp_path: Path, dtype: str) -> None:
    arrays = {n: a.astype(ml_dtypes.bfloat16).astype(a.dtype) for n, a in weights().items()}
    embedding = arrays["model.embed_tokens.weight"]
    wide = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float64
    put(tmp_path, arrays | {HEAD: embedding.astype(wide)})
    reader = HFReader(tmp_path)
    assert same(dict(reader.read_all()), arrays)
    assert reader.notes == [
        f"{HEAD} (as {dtype}) was dropped: it equals the embedding, to which the config ties it"
    ]
    put(tmp_path, arrays | {HEAD: (embedding * (1 + 2.0**-7)).astype(wide)})
    with pytest.raises(CheckpointError, match=f"{HEAD} differs from"):
        dict(HFReader(tmp_path).read_all())
