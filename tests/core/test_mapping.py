"""The table of names: read literally for one small model, and against transformers' own names."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from diy_core import CheckpointError, DIYConfig
from diy_core.mapping import (
    Permute,
    flatten,
    flax_module_path,
    match,
    tensors,
    unflatten,
)

SMALL: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
}
FULL = DIYConfig(**SMALL, tie_word_embeddings=False, attention_bias=True, mlp_bias=True)

# Hugging Face name, torch name, path in Flax, shape in torch, shape in Flax.
TABLE = """
model.embed_tokens.weight                       = model.embed_tokens.weight                     model/embed_tokens/embedding                  50,12  50,12
model.layers.0.input_layernorm.weight           = model.layers.0.attention_norm.weight          model/layers_0/attention_norm/scale           12     12
model.layers.0.self_attn.q_proj.weight          = model.layers.0.attention.q_proj.weight        model/layers_0/attention/q_proj/kernel        24,12  12,24
model.layers.0.self_attn.q_proj.bias            = model.layers.0.attention.q_proj.bias          model/layers_0/attention/q_proj/bias          24     24
model.layers.0.self_attn.k_proj.weight          = model.layers.0.attention.k_proj.weight        model/layers_0/attention/k_proj/kernel        12,12  12,12
model.layers.0.self_attn.k_proj.bias            = model.layers.0.attention.k_proj.bias          model/layers_0/attention/k_proj/bias          12     12
model.layers.0.self_attn.v_proj.weight          = model.layers.0.attention.v_proj.weight        model/layers_0/attention/v_proj/kernel        12,12  12,12
model.layers.0.self_attn.v_proj.bias            = model.layers.0.attention.v_proj.bias          model/layers_0/attention/v_proj/bias          12     12
model.layers.0.self_attn.o_proj.weight          = model.layers.0.attention.o_proj.weight        model/layers_0/attention/o_proj/kernel        12,24  24,12
model.layers.0.self_attn.o_proj.bias            = model.layers.0.attention.o_proj.bias          model/layers_0/attention/o_proj/bias          12     12
model.layers.0.post_attention_layernorm.weight  = model.layers.0.feedforward_norm.weight        model/layers_0/feedforward_norm/scale         12     12
model.layers.0.mlp.gate_proj.weight             = model.layers.0.feedforward.gate_proj.weight   model/layers_0/feedforward/gate_proj/kernel   20,12  12,20
model.layers.0.mlp.gate_proj.bias               = model.layers.0.feedforward.gate_proj.bias     model/layers_0/feedforward/gate_proj/bias     20     20
model.layers.0.mlp.up_proj.weight               = model.layers.0.feedforward.up_proj.weight     model/layers_0/feedforward/up_proj/kernel     20,12  12,20
model.layers.0.mlp.up_proj.bias                 = model.layers.0.feedforward.up_proj.bias       model/layers_0/feedforward/up_proj/bias       20     20
model.layers.0.mlp.down_proj.weight             = model.layers.0.feedforward.down_proj.weight   model/layers_0/feedforward/down_proj/kernel   12,20  20,12
model.layers.0.mlp.down_proj.bias               = model.layers.0.feedforward.down_proj.bias     model/layers_0/feedforward/down_proj/bias     12     12
model.norm.weight                               = model.norm.weight                             model/norm/scale                              12     12
lm_head.weight                                  = lm_head.weight                                lm_head/kernel                                50,12  12,50
"""  # noqa: E501


def test_every_name_of_a_full_model_is_the_one_in_the_table() -> None:
    def numbers(shape: tuple[int, ...]) -> str:
        return ",".join(map(str, shape))

    found = [
        [t.hf, "=", t.torch, "/".join(t.flax), numbers(t.shape), numbers(t.flax_shape)]
        for t in tensors(FULL)
    ]
    assert found == [line.split() for line in TABLE.strip().splitlines()]


def test_layers_are_numbered_and_stand_in_the_order_of_the_forward_pass() -> None:
    config = DIYConfig(**(SMALL | {"num_hidden_layers": 12}))
    found = tensors(config)
    layers = [t.layer for t in found]
    assert layers == [None] + [i for i in range(12) for _ in range(9)] + [None]
    eleventh = next(t for t in found if t.layer == 11 and "q_proj" in t.hf)
    assert eleventh.hf == "model.layers.11.self_attn.q_proj.weight"
    assert eleventh.torch == "model.layers.11.attention.q_proj.weight"
    assert eleventh.flax == ("model", "layers_11", "attention", "q_proj", "kernel")


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"tie_word_embeddings": True},
        {"attention_bias": True},
        {"mlp_bias": True},
        {"num_hidden_layers": 3, "hidden_size": 16, "num_key_value_heads": 4, "head_dim": None},
        {"num_key_value_heads": 1, "head_dim": 10},
    ],
)
def test_names_and_shapes_are_those_of_transformers(change: dict[str, Any]) -> None:
    config = DIYConfig(**(SMALL | {"tie_word_embeddings": False} | change))
    with torch.device("meta"):
        theirs = transformers.LlamaForCausalLM(
            transformers.LlamaConfig.from_dict(config.to_dict())
        ).state_dict()
    if config.tie_word_embeddings:
        theirs.pop("lm_head.weight")
    found = tensors(config)
    assert {t.hf: t.shape for t in found} == {k: tuple(v.shape) for k, v in theirs.items()}
    assert sum(t.parameters for t in found) == sum(v.numel() for v in theirs.values())


def test_names_are_unique_in_each_world() -> None:
    found = tensors(DIYConfig(**(SMALL | {"num_hidden_layers": 11}), tie_word_embeddings=False))
    for world in ("hf", "torch", "flax"):
        names = [getattr(t, world) for t in found]
        assert len(set(names)) == len(names) == 11 * 9 + 3


@given(st.permutations(range(4)), st.permutations(range(4)))
def test_the_inverse_of_a_permutation_undoes_it(axes: list[int], other: list[int]) -> None:
    array = np.arange(2 * 3 * 4 * 5).reshape(np.array([2, 3, 4, 5])[other])
    operation = Permute(tuple(axes))
    assert np.array_equal(operation(array), array.transpose(axes))
    assert operation.shape(array.shape) == operation(array).shape
    assert np.array_equal(operation.inverse(operation(array)), array)
    assert operation.inverse.inverse == operation


def test_the_identity_copies_nothing() -> None:
    array = np.zeros((2, 3))
    assert Permute((0, 1)).is_identity
    assert Permute((0, 1))(array) is array
    assert not Permute((1, 0)).is_identity
    assert np.shares_memory(Permute((1, 0))(array), array)


def test_only_projections_are_transposed() -> None:
    transposed = {t.hf.rpartition(".")[2] for t in tensors(FULL) if not t.to_flax.is_identity}
    kept = {t.kind for t in tensors(FULL) if t.to_flax.is_identity}
    assert transposed == {"weight"}
    assert kept == {"bias", "norm", "embedding"}
    assert {t.kind for t in tensors(FULL)} - kept == {"projection"}


def test_match_names_all_that_is_missing_extra_or_misshapen() -> None:
    wanted = {"a": (1, 2), "b": (3,), "c": ()}
    assert match(wanted, wanted) == []
    assert match({"a": [1, 2], "b": [3], "c": []}, wanted) == []  # type: ignore[dict-item]
    assert match({"a": (2, 1), "c": (), "d": (4,)}, wanted) == [
        "missing tensor b (3,)",
        "unexpected tensor d (4,)",
        "tensor a has shape (2, 1), expected (1, 2)",
    ]
    assert match({}, {}) == []


def test_faults_that_are_alike_in_many_layers_are_one_and_all_sides_are_seen() -> None:
    config = DIYConfig(**SMALL | {"num_hidden_layers": 30}, tie_word_embeddings=True)
    wanted = {tensor.hf: tensor.shape for tensor in tensors(config)}
    for name in ("model.norm.weight", "model.embed_tokens.weight"):
        found = {f"h.{i}.attn.c_attn.weight": (8, 4) for i in sorted(range(30), key=str)}
        found[name] = wanted[name]
        faults = match(found, wanted)
        assert len(faults) == 11
        assert "missing tensor model.layers.*.mlp.up_proj.weight (20, 12), 30 of them: 0 to 29" in (
            faults
        )
        assert faults[-1] == "unexpected tensor h.*.attn.c_attn.weight (8, 4), 30 of them: 0 to 29"
    experts = {f"layers.{i}.experts.{j}.w1.weight": (2,) for i in range(4) for j in range(8)}
    assert match(experts, {}) == [
        "unexpected tensor layers.*.experts.*.w1.weight (2,), 32 of them: 0 to 3"
    ]
    absurd = {f"layers.{digit * 5000}.w": (1,) for digit in "123456"}
    assert len(match(absurd, {})) == 6
    strange = {f"{letter}.weight": (1,) for letter in "abcdefghijklmn"}
    error = str(CheckpointError("m", match(strange, wanted)))
    assert "missing tensor model.embed_tokens.weight" in error
    assert "unexpected tensor f.weight (1,)" in error
    flax = {"/".join(tensor.flax): (1,) for tensor in tensors(config) if tensor.layer is not None}
    assert len(match({}, flax)) == 9


def test_a_module_path_is_translated() -> None:
    assert flax_module_path("model.layers.3.attention") == ("model", "layers_3", "attention")
    assert flax_module_path("lm_head") == ("lm_head",)


def test_unflatten_is_the_inverse_of_flatten() -> None:
    tree = {"a": {"b": 1, "c": {"d": 2}}, "e": 3}
    assert flatten(tree) == {("a", "b"): 1, ("a", "c", "d"): 2, ("e",): 3}
    assert unflatten(flatten(tree)) == tree
    assert unflatten({t.flax: t for t in tensors(FULL)})["lm_head"].keys() == {"kernel"}


def test_a_key_that_is_no_string_is_refused() -> None:
    with pytest.raises(CheckpointError, match="key 0 under 'model/layers' is not a string"):
        flatten({"model": {"layers": {0: 1}}})
