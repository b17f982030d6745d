"""The table of config keys is complete: held against the installed transformers."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import textwrap
import types
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from diy_core.config_keys import (
    ABSENT_IN_FILE,
    REACHES,
    REFUSED,
    WITHOUT_EFFECT,
    classes,
    refuse_unsupported,
)

ROOT = Path(transformers.__file__).parent
# What computes a Llama, and what that calls with the config in its hand.
SOURCES = [
    "models/llama/modeling_llama.py",
    "modeling_utils.py",
    "modeling_layers.py",
    "modeling_rope_utils.py",
    "modeling_flash_attention_utils.py",
    "masking_utils.py",
    "cache_utils.py",
    "configuration_utils.py",
    "activations.py",
    "utils/generic.py",
    "utils/output_capturing.py",
    "loss/loss_utils.py",
    "generation/utils.py",
    "integrations/sdpa_attention.py",
    "integrations/flash_attention.py",
    "integrations/flex_attention.py",
    "integrations/heterogeneity/configuration_utils.py",
]
CONFIGS = ("config", "text_config", "layer_config", "effective_config", "decoder_config")
# Attributes that no file can set: what transformers keeps in a config while it runs.
INTERNAL = {
    "__class__",
    "_heterogeneity_spec",
    "_is_quantized",
    "_original_object_hash",
    "_post_init_done",
    "is_heterogeneous",
    "sub_configs",
    "sub_configs_defaults",
    "ignore_keys_at_rope_validation",
}


def is_config(node: ast.expr) -> bool:
    match node:
        case ast.Name(id=name):
            return name in CONFIGS
        case ast.Attribute(value=ast.Name(id=("self" | "model" | "module")), attr=attribute):
            return attribute == "config"
        case ast.Call(func=ast.Attribute(attr=attribute)):
            return attribute == "get_text_config"
    return False


def reads(tree: ast.AST, of: Any = is_config) -> set[str]:
    """The names that are read from configs: by attribute, by `getattr` and by `hasattr`."""
    found = set()
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=value, attr=name) if of(value):
                found.add(name)
            case ast.Call(
                func=ast.Name(id=("getattr" | "hasattr")),
                args=[value, ast.Constant(value=str(name)), *_],
            ) if of(value):
                found.add(name)
    return found


def popped(tree: ast.AST) -> set[str]:
    """The keys that a function takes out of its keyword arguments."""
    return {
        str(node.args[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("pop", "get")
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "kwargs"
        and node.args
        and isinstance(node.args[0], ast.Constant)
    }


def is_method(name: str) -> bool:
    value = inspect.getattr_static(transformers.LlamaConfig, name, None)
    return isinstance(value, types.FunctionType | classmethod | staticmethod)


@functools.cache
def read_by_transformers() -> frozenset[str]:
    found: set[str] = set()
    for source in SOURCES:
        found |= reads(ast.parse((ROOT / source).read_text()))
    for part in (
        transformers.PreTrainedConfig.__post_init__,
        transformers.PreTrainedConfig.convert_rope_params_to_dict,
        transformers.PreTrainedConfig.standardize_rope_params,
        transformers.PreTrainedConfig.nested_rope_parameter_keys,
    ):
        tree = ast.parse(textwrap.dedent(inspect.getsource(part)))
        itself = reads(tree, lambda node: isinstance(node, ast.Name) and node.id == "self")
        found |= itself | popped(tree)
    return frozenset(name for name in found - INTERNAL if not is_method(name))


def test_every_field_of_llama_config_is_in_the_table() -> None:
    fields = {field.name for field in dataclasses.fields(transformers.LlamaConfig)}
    assert len(fields) > 25
    assert fields <= classes().keys()
    # And what it writes into a file, or takes out of an old one.
    assert transformers.LlamaConfig().to_dict().keys() <= classes().keys()
    assert transformers.GenerationConfig._get_default_generation_params().keys() <= classes().keys()


def test_every_key_that_the_modelling_code_reads_is_in_the_table() -> None:
    found = read_by_transformers()
    # The scan sees what it is for: attributes, getattr, hasattr, and arguments of old files.
    assert found >= {"mlp_bias", "is_causal", "attention_chunk_size", "layer_types", "torch_dtype"}
    assert len(found) > 60
    assert sorted(found - classes().keys()) == []


def test_no_key_is_in_two_tables() -> None:
    tables = [set(ABSENT_IN_FILE), set(REFUSED), set(REACHES), set(WITHOUT_EFFECT)]
    assert sum(map(len, tables)) == len(set().union(*tables))


SIZES: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
}
# A value that would show, for each key without effect on which transformers builds a model at all.
SHOWING: dict[str, Any] = {
    "add_cross_attention": True,
    "base_model_tp_plan": {"layers.*.mlp.up_proj": "rowwise"},
    "chunk_size_feed_forward": 3,
    "classifier_dropout": 0.5,
    "default_theta": 7.0,
    "dtype": "bfloat16",
    "fusion_config": {},
    "gradient_checkpointing": True,
    "hidden_dropout": 0.5,
    "id2label": {"0": "a"},
    "is_decoder": True,
    "logits_mup_width_multiplier": 3.0,
    "num_mtp_layers": 1,
    "output_hidden_states": True,
    "pad_token_id": 5,
    "pretraining_tp": 2,
    "problem_type": "regression",
    "temperature": 0.1,
    "tie_encoder_decoder": True,
    "tie_last_hidden_states": False,
    "torch_dtype": "float16",
    "torchscript": True,
    "unpadded_vocab_size": 50,
    "use_cache": False,
}


def logits(keys: dict[str, Any], padded: bool = False) -> torch.Tensor:
    """Of transformers' Llama: at once, and with a cache token by token."""
    config = transformers.LlamaConfig.from_dict(SIZES | keys)
    model = transformers.LlamaForCausalLM(config).eval().float()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
        ids = torch.arange(24)[None] % 61
        whole = model(ids).logits
        cache, steps = transformers.DynamicCache(config=config), []
        for token in ids[0]:
            step = model(token[None, None], past_key_values=cache, use_cache=True)
            steps.append(step.logits)
    return torch.cat([whole, *steps], 1)


@pytest.mark.parametrize("key", SHOWING)
def test_what_is_called_without_effect_has_none(key: str) -> None:
    assert classes()[key] in ("without effect", "noted")
    assert torch.allclose(logits({key: SHOWING[key]}), logits({}), atol=1e-5)


@pytest.mark.parametrize(
    ("key", "value"), [("is_causal", False), ("sliding_window", 4), ("attention_chunk_size", 4)]
)
def test_what_is_refused_has_an_effect(key: str, value: Any) -> None:
    assert classes()[key] == "refused"
    assert not torch.allclose(logits({key: value}), logits({}), atol=1e-2)


# Keys of relatives of Llama and of old files, each with a value that gives another function.
OTHER_MODELS: dict[str, Any] = {
    "use_bidirectional_attention": True,
    "kv_sharing_modes": ["shared"],
    "num_kv_shared_layers": 2,
    "pruned_heads": {"0": [1]},
    "decoder": {"vocab_size": 61},
    "generator": {"vocab_size": 61},
    "encoder": {"vocab_size": 61},
    "text_encoder": {"vocab_size": 61},
    "compression_config": {"bits": 4},
    "no_rope_layer_interval": 4,
    "_rope_type_labels": ["full"],
    "attn_temperature_tuning": True,
    "use_parallel_residual": True,
    "parallel_attn": True,
    "n_routed_experts": 8,
    "no_rope_layers": [1, 0],
}


@pytest.mark.parametrize("key", OTHER_MODELS)
def test_what_another_model_would_compute_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match=f"^{key} .* is not supported"):
        refuse_unsupported({"model_type": "llama", key: OTHER_MODELS[key]}, 32)


def test_one_head_of_a_language_model_among_several_is_enough() -> None:
    names = ["LlamaForSequenceClassification", "LlamaForCausalLM"]
    refuse_unsupported({"model_type": "llama", "architectures": names}, 32)
    with pytest.raises(ValueError, match="its head is not that of a language model"):
        refuse_unsupported({"model_type": "llama", "architectures": names[:1]}, 32)
