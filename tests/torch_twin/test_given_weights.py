"""Weights as PyTorch users hand them over."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.parameter import UninitializedParameter
from torch.optim.swa_utils import AveragedModel
from torch.testing._internal.two_tensor import TwoTensor

import diy_torch
from diy_core.errors import CheckpointError
from diy_core.mapping import tensors
from diy_torch.given_weights import given_weights, plain_weights
from diy_torch.tensors import to_numpy
from tests.oracles import CONFIGS, tiny
from tests.tiny_checkpoints import same, weights
from tests.torch_twin.build import build

HF = {tensor.torch: tensor.hf for tensor in tensors(tiny(tie_word_embeddings=False))}


class Wrapped(torch.nn.Module):
    """A module under the name that a wrapper gives it."""

    def __init__(self, name: str, module: torch.nn.Module) -> None:
        super().__init__()
        self.add_module(name, module)


class Sharded(torch.Tensor):
    """One process's part, as a DTensor is."""

    def full_tensor(self) -> torch.Tensor:
        raise AssertionError


def renamed(rename: Callable[[str], str]) -> Callable[[torch.nn.Module], Any]:
    return lambda model: {rename(name): tensor for name, tensor in model.state_dict().items()}


def nested() -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that they are a prototype
        return torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])


WAYS: dict[str, Callable[[torch.nn.Module], Any]] = {
    "state dict": lambda model: model.state_dict(),
    "module": lambda model: model,
    "parameters": lambda model: dict(model.named_parameters()),
    "compiled": lambda model: Wrapped("_orig_mod", model),
    "data parallel": lambda model: torch.nn.DataParallel(model).state_dict(),
    "both": lambda model: Wrapped("module", Wrapped("_orig_mod", model)).state_dict(),
    "checkpoint": lambda model: {"model": model.state_dict(), "step": 3, "optimizer": {}},
    "checkpoint of a checkpoint": lambda model: {"app": {"model": model.state_dict()}, "step": 3},
    "with its optimizer": lambda model: {
        "model": model.state_dict(),
        "optimizer": {"state": {"0": {"exp_avg": torch.ones(1)}}, "param_groups": [{}]},
    },
    "module in a dict": lambda model: {"model": model},
    "nested prefix": renamed(lambda name: f"policy.{name}"),
    "hugging face": renamed(HF.__getitem__),
}


@pytest.mark.parametrize("name", ["gqa", "untied"])
@pytest.mark.parametrize("way", WAYS)
def test_there_is_one_meaning(way: str, name: str) -> None:
    model = build(CONFIGS[name])
    found = given_weights(WAYS[way](model), model.config)
    parameters = dict(model.named_parameters())
    assert found.keys() == {tensor.torch for tensor in tensors(model.config)}
    assert all(tensor.data_ptr() == parameters[name].data_ptr() for name, tensor in found.items())
    assert not any(tensor.requires_grad for tensor in found.values())


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([1], "state_dict: is a list: pass a module or its state_dict()"),
        ({"a": {"w": torch.ones(1)}, "b": {"w": torch.ones(1)}}, "holds several: pass one of 'a'"),
        ({"model.norm.weight": 3}, "model.norm.weight is a int and no tensor"),
        ({"x": torch.ones(1, device="meta")}, "tensor x has a shape and no values"),
        (
            {"a": {"w.x": {"model": {"w.y": torch.ones(1)}}}, "b": {"w": torch.ones(1)}},
            "holds several: pass one of 'a', 'w.x', 'model'; 'b'",
        ),
        ({"x": FakeTensorMode().from_tensor(torch.ones(1))}, "x is a FakeTensor: make it a plain"),
        ({"x": UninitializedParameter()}, "tensor x has a shape and no values"),
        (
            {"x": torch.ones(1).to_sparse()},
            "tensor x is not stored as a dense array: call its to_d",
        ),
        (
            {"x": torch.ones(1).to_mkldnn()},
            "tensor x is not stored as a dense array: call its to_d",
        ),
        ({"x": nested()}, "tensor x is not stored as a dense array"),
        (
            {"x": TwoTensor(torch.ones(1), torch.ones(1))},
            "tensor x is a TwoTensor: make it a plain tensor",
        ),
        ({"x": torch.ones(1), "ema": {"x": torch.ones(1)}}, "ema is a dict and no tensor"),
        ({"x": torch.ones(1).as_subclass(Sharded)}, "tensor x is a part of one: gather it"),
    ],
)
def test_where_there_is_none_it_says_what_to_pass(given: Any, words: str) -> None:
    with pytest.raises(CheckpointError) as refused:
        plain_weights(given)
    assert words in str(refused.value)


def test_what_does_not_fit_is_shown_with_its_prefix() -> None:
    model = build(tiny())
    state = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    del state["module.model.norm.weight"]
    with pytest.raises(CheckpointError) as refused:
        given_weights(state, model.config)
    first, second = refused.value.faults
    assert first.startswith("'module' (of DistributedDataParallel) was taken off the names")
    assert second == "missing tensor model.norm.weight (16,)"


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.float8_e4m3fn])
def test_quantised_tensors_are_no_weights(dtype: torch.dtype) -> None:
    state = build(tiny()).state_dict()
    state["model.norm.weight"] = state["model.norm.weight"].to(dtype)
    with pytest.raises(CheckpointError) as refused:
        given_weights(state, tiny())
    name = str(dtype).removeprefix("torch.")
    assert refused.value.faults == [
        f"tensor model.norm.weight is {name}, and weights are floats: dequantise or convert it "
        "first"
    ]


def test_layers_that_were_compiled_one_by_one_are_saved(tmp_path: Path) -> None:
    model = build(tiny())
    expected = {HF[name]: tensor.numpy() for name, tensor in given_weights(model, tiny()).items()}
    for i, layer in enumerate(model.model.layers):
        model.model.layers[i] = Wrapped("_orig_mod", layer)  # type: ignore[assignment]
    model.save_pretrained(tmp_path / "model")
    again = diy_torch.DIYForCausalLM.from_pretrained(tmp_path / "model", None)
    found = {HF[name]: t.numpy() for name, t in given_weights(again, again.config).items()}
    assert same(found, expected)
    assert found.keys() == weights().keys()


def test_a_tied_model_whose_head_has_become_another_is_not_saved(tmp_path: Path) -> None:
    model = build(tiny())
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() + 1)
    with pytest.raises(CheckpointError, match="a head of its own needs a config with false"):
        model.save_pretrained(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_averages_and_negated_views_are_read_as_what_they_hold() -> None:
    model = build(CONFIGS["gqa"])
    averaged = given_weights(AveragedModel(model), model.config)
    negated = {name: torch._neg_view(-tensor).detach() for name, tensor in model.named_parameters()}
    for found in (averaged, given_weights(negated, model.config)):
        for name, tensor in found.items():
            assert np.array_equal(to_numpy(tensor), model.state_dict()[name].numpy())
