"""`DIYConfig`: what it accepts, what it refuses, and that transformers reads the same model."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from diy_core import DIYConfig, RopeScaling
from diy_core.config import require_config
from diy_core.config_keys import QUANTISED, REACHES, REFUSED
from diy_core.rope import inverse_frequencies
from diy_core.rope_scaling import ROPE_KEYS

SMALL: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
LLAMA3: dict[str, Any] = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR = {"rope_type": "linear", "factor": 2.0}
FILE = {"model_type": "llama", **SMALL}
DROPOUTS = ("attention_dropout", "residual_dropout")


def test_defaults_are_those_of_the_contract() -> None:
    config = DIYConfig(**SMALL)
    assert dataclasses.asdict(config) == SMALL | {
        "num_key_value_heads": 4,
        "head_dim": 4,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "initializer_range": 0.02,
        "attention_dropout": 0.0,
        "residual_dropout": 0.0,
        "extra": {},
    }
    assert (config.kv_heads, config.head_size) == (4, 4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        *[
            ({name: bad}, f"{name} must be a positive integer, got {bad!r}")
            for name in (*SMALL, "num_key_value_heads", "head_dim", "max_position_embeddings")
            for bad in (0, -1, 4.0, "4", True)
        ],
        ({"num_key_value_heads": 3}, "(4) must be a multiple of num_key_value_heads (3)"),
        ({"num_key_value_heads": 8}, "(4) must be a multiple of num_key_value_heads (8)"),
        ({"hidden_size": 18}, "hidden_size (18) is not a multiple of num_attention_heads (4)"),
        ({"head_dim": 5}, "head_dim (5) must be even"),
        ({"hidden_size": 12}, "head_dim (3) must be even"),
        *[
            ({name: bad}, f"{name} must be a finite number, got {bad!r}")
            for name in ("rms_norm_eps", "rope_theta", "initializer_range", *DROPOUTS)
            for bad in (float("nan"), float("inf"), "1", None, True, 10**400)
        ],
        ({"rms_norm_eps": -1e-6}, "rms_norm_eps must be at least 0.0, got -1e-06"),
        ({"initializer_range": -0.1}, "initializer_range must be at least 0.0"),
        ({"rope_theta": 0}, "rope_theta must be greater than 0"),
        *[({name: -0.1}, f"{name} must be at least 0.0, got -0.1") for name in DROPOUTS],
        *[({name: 1}, f"{name} must be less than 1, got 1.0") for name in DROPOUTS],
        *[
            ({name: bad}, f"{name} must be true or false, got {bad!r}")
            for name in ("tie_word_embeddings", "attention_bias", "mlp_bias")
            for bad in (1, None, "true")
        ],
        ({"rope_scaling": dict(LINEAR)}, "rope_scaling must be a RopeScaling or None"),
        ({"extra": {"hidden_size": 8}}, "extra holds hidden_size"),
        ({"extra": {"rope_theta": 1e6}}, "extra holds rope_theta"),
        ({"extra": {"model_type": "mistral"}}, "model_type 'mistral' is not supported"),
        ({"extra": {"sliding_window": 8}}, "sliding_window 8 is not supported"),
        ({"extra": 3}, "extra must be a mapping"),
    ],
)
def test_a_bad_value_is_refused_by_name(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError) as error:
        DIYConfig(**(SMALL | change))
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"rope_type": "yarn", "factor": 2.0}, "rope_type 'yarn' is not supported"),
        ({"rope_type": "default", "factor": 2.0}, "rope_type 'default' is not supported"),
        (LINEAR | {"factor": 0}, "factor must be greater than 0, got 0"),
        (LLAMA3 | {"factor": -1.0}, "factor must be greater than 0, got -1.0"),
        (LINEAR | {"factor": None}, "factor must be a finite number, got None"),
        (LINEAR | {"low_freq_factor": 1.0}, "'linear' has no use for low_freq_factor"),
        (LLAMA3 | {"low_freq_factor": None}, "low_freq_factor must be a finite number"),
        (LLAMA3 | {"low_freq_factor": 0.0}, "low_freq_factor must be greater than 0"),
        (LLAMA3 | {"high_freq_factor": 0.0}, "high_freq_factor must be greater than 0"),
        (LLAMA3 | {"original_max_position_embeddings": 8.0}, "must be a positive integer, got 8.0"),
    ],
)
def test_a_bad_rope_scaling_is_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError) as error:
        RopeScaling(**values)
    assert words in str(error.value)


def test_a_config_is_frozen_hashable_and_keyword_only() -> None:
    config = DIYConfig(**SMALL, rope_scaling=RopeScaling(**LLAMA3), extra={"a": [1]})
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.hidden_size = 8  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.rope_scaling.factor = 1.0  # type: ignore[misc,union-attr]
    with pytest.raises(TypeError):
        DIYConfig(32, 16, 24, 2, 4)  # type: ignore[call-arg,misc]
    twin = DIYConfig(**SMALL, rope_scaling=RopeScaling(**LLAMA3), extra={"a": [1]})
    assert config == twin
    assert hash(config) == hash(twin)
    assert len({config, twin, dataclasses.replace(config, rms_norm_eps=1e-6)}) == 2


def test_extra_belongs_to_the_config_alone() -> None:
    extra = {"nested": {"list": [1]}}
    config = DIYConfig(**SMALL, extra=extra)
    extra["nested"]["list"].append(2)
    assert config.extra == {"nested": {"list": [1]}}
    config.to_dict()["nested"]["list"].append(3)
    assert config.extra == {"nested": {"list": [1]}}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=4,
)


@st.composite
def configs(draw: st.DrawFn) -> DIYConfig:
    kv_heads, positive = draw(st.integers(1, 4)), st.floats(1e-3, 1e7)
    low = draw(st.floats(0.1, 8))
    scaling = draw(
        st.sampled_from(
            [
                None,
                RopeScaling(rope_type="linear", factor=draw(st.floats(1, 64))),
                RopeScaling(
                    rope_type="llama3",
                    factor=draw(st.floats(1, 64)),
                    low_freq_factor=low,
                    high_freq_factor=low + draw(st.floats(0.1, 8)),
                    original_max_position_embeddings=draw(st.integers(1, 8192)),
                ),
            ]
        )
    )
    names = st.text().map(lambda name: f"x_{name}")
    return DIYConfig(
        vocab_size=draw(st.integers(1, 10**6)),
        hidden_size=draw(st.integers(1, 10**4)),
        intermediate_size=draw(st.integers(1, 10**5)),
        num_hidden_layers=draw(st.integers(1, 200)),
        num_attention_heads=kv_heads * draw(st.integers(1, 8)),
        num_key_value_heads=kv_heads,
        head_dim=2 * draw(st.integers(1, 128)),
        max_position_embeddings=draw(st.integers(1, 10**6)),
        rms_norm_eps=draw(st.floats(0, 1)),
        rope_theta=draw(positive),
        rope_scaling=scaling,
        tie_word_embeddings=draw(st.booleans()),
        attention_bias=draw(st.booleans()),
        mlp_bias=draw(st.booleans()),
        initializer_range=draw(st.floats(0, 1)),
        attention_dropout=draw(st.floats(0, 1, exclude_max=True)),
        residual_dropout=draw(st.floats(0, 1, exclude_max=True)),
        extra=draw(st.dictionaries(names, JSON, max_size=3)),
    )


@given(configs())
@settings(max_examples=100, deadline=None, derandomize=True)
def test_to_dict_and_from_dict_are_inverse_through_json(config: DIYConfig) -> None:
    written = json.loads(json.dumps(config.to_dict()))
    read = DIYConfig.from_dict(written)
    identity = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu"}
    assert read == dataclasses.replace(config, extra=identity | dict(config.extra))
    assert read.to_dict() == written


def test_dropout_of_a_file_is_a_rate_and_silence_is_none() -> None:
    assert DIYConfig.from_dict(FILE | {"attention_dropout": 0.1}).attention_dropout == 0.1
    assert DIYConfig.from_dict(FILE | {"attention_dropout": None}).attention_dropout == 0
    silent = DIYConfig.from_dict(FILE)
    assert silent.attention_dropout == silent.residual_dropout == 0
    assert "residual_dropout" not in silent.to_dict()  # nobody else knows it


def test_a_round_trip_loses_no_key_of_a_file() -> None:
    values = FILE | {
        "architectures": ["LlamaForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": [2, 3],
        "hidden_act": "swish",
        "is_llama_config": True,
        "pretraining_tp": 1,
        "rope_interleaved": False,
        "torch_dtype": "bfloat16",
        "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}},
        "use_cache": True,
    }
    kept = copy.deepcopy(values)
    assert DIYConfig.from_dict(values).to_dict().items() >= kept.items()
    assert values == kept


OLD, NEW = {"rope_theta": 5e5}, {"rope_theta": 5e5, "rope_type": "default"}
ROPE_BLOCKS: dict[str, tuple[float, dict[str, Any] | None, dict[str, Any]]] = {
    "nothing": (10000.0, None, {}),
    "nulls": (10000.0, None, {"rope_scaling": None, "rope_parameters": None}),
    "old default": (5e5, None, OLD),
    "new default": (5e5, None, {"rope_parameters": NEW}),
    "new default without theta": (10000.0, None, {"rope_parameters": {"rope_type": "default"}}),
    "old type default": (5e5, None, OLD | {"rope_scaling": {"type": "default"}}),
    "old linear, type": (5e5, LINEAR, OLD | {"rope_scaling": {"type": "linear", "factor": 2}}),
    "old linear, rope_type": (5e5, LINEAR, OLD | {"rope_scaling": LINEAR}),
    "old linear, both": (5e5, LINEAR, OLD | {"rope_scaling": LINEAR | {"type": "linear"}}),
    "new linear": (5e5, LINEAR, {"rope_parameters": OLD | LINEAR}),
    "old and new linear": (
        5e5,
        LINEAR,
        OLD | {"rope_scaling": LINEAR, "rope_parameters": OLD | LINEAR},
    ),
    "old type default and new default": (
        5e5,
        None,
        OLD | {"rope_scaling": {"type": "default"}, "rope_parameters": NEW},
    ),
    "old type default and new default, the usual theta": (
        10000.0,
        None,
        {"rope_scaling": {"type": "default"}, "rope_parameters": NEW | {"rope_theta": 1e4}},
    ),
    "old type default with a factor and new without a type": (
        10000.0,
        None,
        {
            "rope_scaling": {"type": "default", "factor": 1.0},
            "rope_parameters": {"rope_theta": 1e4},
        },
    ),
    "old linear and new linear, the usual theta": (
        10000.0,
        LINEAR,
        {"rope_scaling": LINEAR, "rope_parameters": LINEAR | {"rope_theta": 1e4}},
    ),
    "old empty and new default": (5e5, None, {"rope_scaling": {}, "rope_parameters": NEW}),
    "old default and new empty": (5e5, None, {"rope_scaling": NEW, "rope_parameters": {}}),
    "old llama3": (5e5, LLAMA3, OLD | {"rope_scaling": LLAMA3}),
    "new llama3": (5e5, LLAMA3, {"rope_parameters": OLD | LLAMA3}),
    "length as a float": (
        5e5,
        LLAMA3,
        OLD | {"rope_scaling": LLAMA3 | {"original_max_position_embeddings": 64.0}},
    ),
    "new llama3, null factors": (
        5e5,
        LLAMA3,
        {"rope_parameters": OLD | LLAMA3 | {"partial_rotary_factor": None, "type": None}},
    ),
    "old llama3, length outside": (
        5e5,
        LLAMA3,
        OLD
        | {
            "rope_scaling": {k: v for k, v in LLAMA3.items() if not k.startswith("original")},
            "original_max_position_embeddings": 64,
        },
    ),
}


@pytest.mark.parametrize("name", ROPE_BLOCKS)
def test_old_and_new_files_say_the_same_rope_and_transformers_agrees(name: str) -> None:
    theta, scaling, keys = ROPE_BLOCKS[name]
    config = DIYConfig.from_dict(FILE | copy.deepcopy(keys))
    assert config.rope_theta == theta
    assert config.rope_scaling == (RopeScaling(**scaling) if scaling else None)
    theirs = transformers.LlamaConfig.from_dict(FILE | copy.deepcopy(keys))
    theirs.standardize_rope_params()  # as its rotary embedding does before it reads them
    wanted = {"rope_theta": theta, "rope_type": "default"} | (scaling or {})
    assert {key: theirs.rope_parameters[key] for key in wanted} == wanted


def test_llama3_without_an_original_length_means_the_length_of_the_file() -> None:
    block = {k: v for k, v in LLAMA3.items() if k != "original_max_position_embeddings"}
    keys = FILE | {"max_position_embeddings": 96, "rope_scaling": block}
    scaling = DIYConfig.from_dict(keys).rope_scaling
    assert scaling is not None
    theirs = transformers.LlamaConfig.from_dict(copy.deepcopy(keys)).rope_parameters
    assert scaling.original_max_position_embeddings == 96
    assert theirs["original_max_position_embeddings"] == 96


@pytest.mark.parametrize("scaling", [None, RopeScaling(**LINEAR), RopeScaling(**LLAMA3)])
def test_transformers_reads_what_is_written(tmp_path: Path, scaling: RopeScaling | None) -> None:
    config = DIYConfig(
        **SMALL,
        num_key_value_heads=2,
        head_dim=6,
        max_position_embeddings=512,
        rms_norm_eps=3e-4,
        rope_theta=77.0,
        rope_scaling=scaling,
        tie_word_embeddings=False,
        attention_bias=True,
        mlp_bias=True,
        initializer_range=0.5,
        attention_dropout=0.25,
        residual_dropout=0.125,
        extra={"eos_token_id": [2, 7]},
    )
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    assert isinstance(theirs, transformers.LlamaConfig)
    same = [f.name for f in dataclasses.fields(config) if not f.name.startswith(("rope", "extra"))]
    assert {name: getattr(theirs, name) for name in same} == {
        name: getattr(config, name) for name in same
    }
    assert theirs.eos_token_id == [2, 7]
    assert theirs.rope_parameters == {"rope_theta": 77.0, "rope_type": "default"} | (
        scaling.to_dict() if scaling else {}
    )
    # And back, through the file that transformers writes.
    theirs.save_pretrained(tmp_path)
    read = DIYConfig.from_pretrained(tmp_path)
    assert dataclasses.replace(read, extra={}) == dataclasses.replace(config, extra={})


def test_a_config_of_transformers_is_not_one_and_the_way_is_named() -> None:
    theirs = transformers.LlamaConfig(vocab_size=100, num_hidden_layers=1)
    with pytest.raises(TypeError, match=r"to_dict\(\)\), got LlamaConfig$"):
        DIYConfig.from_dict(theirs)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"got LlamaConfig: DIYConfig\.from_dict\(config\.to_dict"):
        require_config(theirs)
    require_config(DIYConfig.from_dict(theirs.to_dict()))


def test_an_absent_key_means_what_transformers_takes_it_to_mean() -> None:
    config, theirs = DIYConfig.from_dict({"model_type": "llama"}), transformers.LlamaConfig()
    ours = ("rope", "extra", "residual")
    names = [f.name for f in dataclasses.fields(config) if not f.name.startswith(ours)]
    assert len(names) == 14
    assert config.residual_dropout == 0
    assert {name: getattr(config, name) for name in names} == {
        name: getattr(theirs, name) for name in names
    }
    assert theirs.rope_parameters == {"rope_theta": config.rope_theta, "rope_type": "default"}
    assert config.rope_scaling is None
    assert (theirs.hidden_act, theirs.pretraining_tp) == ("silu", 1)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"model_type": "qwen2"}, "model_type 'qwen2' is not supported: this reads llama"),
        ({"model_type": None}, "model_type None is not supported"),
        ({"model_type": ["llama"]}, "model_type ['llama'] is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported: this reads silu, swish"),
        ({"hidden_act": None}, "hidden_act None is not supported"),
        ({"quantization_config": {"quant_method": "gptq"}}, "dequantise the checkpoint first"),
        (
            {"sliding_window": 2047},
            "sliding_window 2047 is not supported; only null changes nothing",
        ),
        ({"attention_chunk_size": 8}, "or what is not less than max_position_embeddings (2048)"),
        ({"attention_chunk_size": True}, "attention_chunk_size True is not supported"),
        ({"sliding_window": 1}, "sliding_window 1 is not supported"),
        ({"is_causal": False}, "is_causal False is not supported; only true changes nothing"),
        *[({"is_causal": bad}, f"is_causal {bad!r} is not supported") for bad in (None, [], {}, 0)],
        ({"quantization_config": {"bits": 4}}, "quantization_config {'bits': 4} is not supported"),
        ({"num_experts": [0, 8]}, "num_experts [0, 8] is not supported"),
        ({"per_layer_config": {"0": {}, "1": {"head_dim": 8}}}, "per_layer_config {'0': {}, '1'"),
        ({"embedding_multiplier": 0}, "embedding_multiplier 0 is not supported"),
        ({"sliding_window": 8, "use_sliding_window": True}, "sliding_window 8 is not supported"),
        ({"attention_chunk_size": 8, "use_sliding_window": False}, "attention_chunk_size 8 is not"),
        ({"per_layer_config": {"0": {"rms_norm_eps": 0.5}}}, "per_layer_config {'0': "),
        ({"is_encoder_decoder": True}, "is_encoder_decoder True is not supported"),
        ({"text_config": {"hidden_size": 8}}, "text_config {'hidden_size': 8} is not supported"),
        ({"attribute_map": {"hidden_size": "d"}}, "attribute_map {'hidden_size': 'd'} is not"),
        ({"transformers_weights": "x.safetensors"}, "transformers_weights 'x.safetensors' is not"),
        ({"quantization": {"bits": 4}}, "only null changes nothing: dequantise the checkpoint"),
        (
            {"architectures": ["LlamaForSequenceClassification"]},
            "architectures ['LlamaForSequenceClassification'] is not supported: its head is not",
        ),
        ({"rope_theta": None}, "rope_theta must be a finite number, got None"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 is not supported"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor 0.5 is not"),
        ({"rope_interleaved": True}, "rope_interleaved True is not supported"),
        ({"attention_multiplier": 0.1}, "attention_multiplier 0.1 is not supported"),
        ({"embedding_multiplier": 12.0}, "embedding_multiplier 12.0 is not supported"),
        ({"residual_multiplier": 0.2}, "residual_multiplier 0.2 is not supported"),
        ({"logits_scaling": 8.0}, "logits_scaling 8.0 is not supported"),
        ({"logit_scale": 0.1}, "logit_scale 0.1 is not supported"),
        ({"num_experts": 8}, "num_experts 8 is not supported"),
        ({"num_local_experts": 8}, "num_local_experts 8 is not supported"),
        ({"use_qk_norm": True}, "use_qk_norm True is not supported"),
        ({"qk_norm": True}, "qk_norm True is not supported"),
        ({"clip_qkv": 8.0}, "clip_qkv 8.0 is not supported"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping 50.0 is not supported"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping 30.0 is not supported"),
        ({"query_pre_attn_scalar": 256}, "query_pre_attn_scalar 256 is not supported"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types ['full_att"),
        ({"no_rope_layers": [1, 0]}, "no_rope_layers [1, 0] is not supported"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2}}, "rope_type 'yarn' is not supported"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2}}, "'dynamic' is not supported"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "'longrope' is not supported"),
        ({"rope_parameters": {"rope_type": ["linear"]}}, "rope_type ['linear'] is not supported"),
        ({"rope_scaling": "linear"}, "rope_scaling must be an object or null, got 'linear'"),
        ({"rope_scaling": {"type": "linear", "rope_type": "llama3"}}, "keep one"),
        (
            {"rope_scaling": LINEAR, "rope_parameters": LINEAR | {"factor": 4.0}},
            "disagree: keep one of them",
        ),
        (
            {"rope_scaling": LINEAR, "rope_parameters": {"rope_theta": 1e4}},
            "disagree: keep one of them",
        ),
        (  # transformers reads 10000 here
            {"rope_scaling": LINEAR, "rope_parameters": LINEAR | {"rope_theta": 5e5}},
            "disagree: keep one of them",
        ),
        (
            {"rope_scaling": {"rope_type": "linear"}, "rope_parameters": LINEAR},
            "disagree: keep one of them",
        ),
        ({"rope_theta": 1e4, "rope_parameters": NEW}, "rope_theta is 10000.0 and 500000.0 inside"),
        ({"rope_scaling": {"factor": 8.0}}, "rope_type 'default' has no field factor: give the"),
        (
            {"rope_parameters": {"full_attention": NEW, "sliding_attention": OLD}},
            "rope_type 'default' has no field full_attention, sliding_attention",
        ),
        ({"rope_scaling": {"rope_type": "linear"}}, "rope_type 'linear' needs a factor"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2}}, "low_freq_factor must be"),
        (
            {"rope_scaling": LLAMA3, "original_max_position_embeddings": 32},
            "original_max_position_embeddings is 32 and 64 inside the rope block",
        ),
        ({"rope_theta": "1e4"}, "rope_theta must be a finite number, got '1e4'"),
        ({"vocab_size": None}, "vocab_size must be a positive integer, got None"),
        ({"tie_word_embeddings": None}, "tie_word_embeddings must be true or false, got None"),
    ],
)
def test_what_the_model_does_not_do_is_refused(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError) as error:
        DIYConfig.from_dict(FILE | keys)
    assert words in str(error.value)


@pytest.mark.parametrize(
    "keys",
    [
        {"quantization_config": None, "sliding_window": None, "pretraining_tp": None},
        {"partial_rotary_factor": 1.0, "rope_interleaved": False, "qk_norm": False},
        {"embedding_multiplier": 1.0, "residual_multiplier": 1, "logits_scaling": 1.0},
        {"num_experts": 0, "num_local_experts": None, "clip_qkv": None},
        {"layer_types": ["full_attention", "attention"], "no_rope_layers": [1, 1]},
        {"is_causal": True, "per_layer_config": {}, "is_encoder_decoder": False},
        {"per_layer_config": {"0": {}}, "pruned_heads": {"0": []}, "no_rope_layers": []},
        {"sliding_window": 0, "attention_chunk_size": -1},
        {"sliding_window": 8, "use_sliding_window": False},
        *[
            {key: value}
            for key, neutral in REFUSED.items()
            if None in neutral and key not in QUANTISED
            for value in (False, "", [], {})
        ],
        *[{key: False} for key in REACHES],
    ],
)
def test_neutral_values_of_such_keys_are_carried(keys: dict[str, Any]) -> None:
    config = DIYConfig.from_dict(FILE | keys)
    assert config.to_dict().items() >= keys.items()
    assert config.notes == []


@pytest.mark.parametrize("value", [{}, [], False, "", {"quant_method": None}])
def test_a_quantisation_of_nothing_is_left_out_as_transformers_stumbles_over_it(
    value: Any,
) -> None:
    config = DIYConfig.from_dict(FILE | {"quantization_config": value})
    assert config.notes == [f"quantization_config {value!r} says nothing and was left out"]
    assert "quantization_config" not in config.to_dict()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[(key, value) for key in ROPE_KEYS[:2] for value in (None, {}, {"factor": 1.0})],
        *[("rope_scaling", value) for value in ([], False, "")],
    ],
)
def test_a_rope_block_of_nothing_scales_nothing(key: str, value: Any) -> None:
    theirs = transformers.LlamaConfig.from_dict(FILE | {key: copy.deepcopy(value)})
    table = transformers.LlamaForCausalLM(theirs).model.rotary_emb.inv_freq.numpy()
    config = DIYConfig.from_dict(FILE | {key: value})
    assert config.rope_scaling is None
    assert np.allclose(table, inverse_frequencies(config), rtol=1e-6)


@pytest.mark.parametrize("name", DROPOUTS)
def test_a_dropout_of_null_is_none(name: str) -> None:
    assert getattr(DIYConfig.from_dict(FILE | {name: None}), name) == 0.0


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"pretraining_tp": 2}, "pretraining_tp 2 was passed over: it says in how many pieces"),
        ({"sliding_window": 2048}, "sliding_window 2048 was passed over: it is not less than"),
        ({"attention_chunk_size": 4096}, "attention_chunk_size 4096 was passed over"),
        ({"auto_map": {"AutoModelForCausalLM": "a.B"}}, "auto_map names code of the model's own"),
        ({"architectures": ["LlamaModel"]}, "architectures names LlamaModel: read as LlamaForCaus"),
        ({"architectures": "AForCausalLM"}, "architectures names AForCausalLM: read as LlamaFor"),
        ({"mine": 1}, "has a key that is not known here and is carried along unread: 'mine'"),
        ({"rms_norm_epsilon": 1}, "unread: 'rms_norm_epsilon' (was rms_norm_eps meant?)"),
        ({f"x{i}": i for i in range(20)}, "keys that are not known here and are carried along"),
        ({"x" * 200: 1}, "unread: 'xxx"),
    ],
)
def test_what_may_surprise_is_carried_and_noted(keys: dict[str, Any], words: str) -> None:
    config = DIYConfig.from_dict(FILE | keys)
    (note,) = config.notes
    assert words in note
    assert len(note) < 300
    assert config.to_dict().items() >= keys.items()
    assert dataclasses.replace(config, rms_norm_eps=0.5).notes == [note]


@pytest.mark.parametrize(
    ("block", "left"),
    [
        (LINEAR | {"beta_fast": 32}, "'linear' has no use for 'beta_fast'"),
        (LLAMA3 | {"mscale": 1, "attention_factor": 2.0}, "'attention_factor', 'mscale'"),
        ({"rope_type": "default", "factor": 8.0}, "'default' has no use for 'factor'"),
        (LINEAR | {"factor": 0.5}, "the rope factor 0.5 is less than 1: it moves positions apart"),
        (LLAMA3 | {"factor": 0.25}, "the rope factor 0.25 is less than 1"),
        (LLAMA3 | {"low_freq_factor": 4.0}, "high_freq_factor (4.0) is not greater than low_freq_"),
        (LLAMA3 | {"low_freq_factor": 5.0}, "low_freq_factor (5.0): nothing is blended"),
    ],
)
def test_a_rope_that_may_surprise_is_that_of_transformers_and_noted(
    block: dict[str, Any], left: str
) -> None:
    config = DIYConfig.from_dict(FILE | {"rope_scaling": block})
    assert len(config.notes) == 1
    assert left in config.notes[0]
    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig.from_dict(FILE | {"rope_scaling": dict(block)})
    )
    table = theirs.model.rotary_emb.inv_freq.numpy()
    assert np.allclose(table, inverse_frequencies(config), rtol=1e-6)


def test_a_window_that_reaches_every_position_stops_doing_so_where_there_are_more() -> None:
    config = DIYConfig.from_dict(FILE | {"sliding_window": 2048})
    with pytest.raises(ValueError, match="sliding_window 2048 is not supported"):
        dataclasses.replace(config, max_position_embeddings=2049)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("hiden_size", "DIYConfig has no hiden_size: did you mean hidden_size?"),
        ("hidden_act", "DIYConfig has no hidden_act: it goes into extra, or from_dict reads it"),
        ("zzz", "DIYConfig has no zzz: choose among vocab_size, hidden_size, "),
    ],
)
def test_a_mistyped_argument_is_refused_with_the_nearest_name(name: str, words: str) -> None:
    with pytest.raises(TypeError) as error:
        DIYConfig(**(SMALL | {name: 8}))
    assert words in str(error.value)


def test_a_config_can_be_copied_and_pickled() -> None:
    config = DIYConfig.from_dict(FILE | {"rope_scaling": LINEAR | {"beta_fast": 32}})
    for same in (copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert same == config
        assert same.notes == config.notes


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"model_type": ', "is not valid JSON"),
        (b"", "is not valid JSON"),
        (b"\xff\xfe\x00", "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b'{"model_type": "llama", "vocab_size": ' + b"9" * 5000 + b"}", "is not valid JSON"),
        (b"[1]", "must hold a JSON object, got list"),
        (b"null", "must hold a JSON object, got NoneType"),
        (b"{}", "model_type None is not supported"),
        (b'{"model_type": "llama", "rms_norm_eps": NaN}', "rms_norm_eps must be a finite number"),
        (b'{"model_type": "llama", "hidden_size": 64.0}', "hidden_size must be a positive integer"),
    ],
)
def test_an_invalid_config_json_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError) as error:
        DIYConfig.from_pretrained(tmp_path)
    assert str(error.value).startswith(str(tmp_path / "config.json"))
    assert words in str(error.value)


def test_a_missing_or_unreadable_config_json_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config\.json does not exist"):
        DIYConfig.from_pretrained(tmp_path)
    (tmp_path / "config.json").mkdir()
    with pytest.raises(ValueError, match=r"config\.json: cannot be read: it is a dir"):
        DIYConfig.from_pretrained(str(tmp_path))
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"file/config\.json does not exist"):
        DIYConfig.from_pretrained(tmp_path / "file")


@pytest.mark.parametrize("key", ["vocab_size", "hidden_act", "mlp_bias", "rope_theta"])
def test_a_message_about_a_flood_is_cut(tmp_path: Path, key: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(FILE | {key: "x" * 10**5}))
    with pytest.raises(ValueError, match=key) as raised:
        DIYConfig.from_pretrained(tmp_path)
    assert len(str(raised.value)) < 3000
