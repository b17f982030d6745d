"""One optimizer step in PyTorch."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diy_core.config import DIYConfig
from diy_core.mapping import tensors
from diy_core.training.config import TrainConfig
from diy_torch.optimizer import build_optimizer
from diy_torch.step import StepResult, build_step
from tests.oracles import CONFIGS, Array
from tests.step_tests import StepTests
from tests.torch_twin.build import build
from tests.training_oracles import random_batch, train_config


class Training:
    """A model with its optimizer and step; learning rate 1e-2."""

    def __init__(
        self, model: DIYConfig, config: TrainConfig, weights: Any = None, watch: Any = ()
    ) -> None:
        self.config, master = model, torch.float64 if config.dtype == "float64" else torch.float32
        self.model = build(model, master)
        self.named = dict(self.model.named_parameters())
        if weights is not None:
            with torch.no_grad():
                for t in tensors(model):
                    self.named[t.torch].copy_(torch.from_numpy(weights[t.hf]))
        self.optimizer = build_optimizer(self.model, config.optimizer)
        self.step = build_step(self.model, self.optimizer, config, watch=watch)

    def run(self, batch: Any, number: int = 0, seed: int = 3) -> StepResult:
        return self.step(batch, 1e-2, number, seed)

    def parameters(self) -> dict[str, Array]:
        return self.by_name(self.named)

    def by_name(self, named: Any) -> dict[str, Array]:
        return {t.hf: named[t.torch].detach().numpy().copy() for t in tensors(self.config)}

    def moments(self, name: str) -> dict[str, Array]:
        state, key = self.optimizer.state, {"mean": "exp_avg", "square": "exp_avg_sq"}[name]
        return {t.hf: state[self.named[t.torch]][key].numpy().copy() for t in tensors(self.config)}

    def set_first_norm(self, value: float) -> None:
        with torch.no_grad():
            self.model.model.norm.weight[0] = value


class TestStep(StepTests):
    training = Training


def test_parameters_of_another_dtype_are_refused() -> None:
    model = build(CONFIGS["gqa"], torch.bfloat16)
    config = train_config(dtype="bfloat16")
    with pytest.raises(
        ValueError, match=r"needs parameters in torch\.float32, got torch\.bfloat16"
    ):
        build_step(model, build_optimizer(model, config.optimizer), config)


def test_the_model_s_own_modules_stay_as_they_were() -> None:
    model = build(CONFIGS["gqa"])
    names, kinds = list(model.state_dict()), [type(m) for m in model.modules()]
    config = train_config(remat=True)
    step = build_step(model, build_optimizer(model, config.optimizer), config)
    step(random_batch(23), 1e-3, 0, 0)
    assert (names, kinds) == (list(model.state_dict()), [type(m) for m in model.modules()])
    assert all(parameter.grad is None for parameter in model.parameters())


def kept(remat: bool) -> int:
    """Elements that are kept for the backward pass, of a model with eight layers."""
    model = dataclasses.replace(CONFIGS["gqa"], num_hidden_layers=8)
    training, elements = Training(model, train_config(remat=remat)), 0

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal elements
        elements += 0 if isinstance(tensor, torch.nn.Parameter) else tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        training.run(random_batch(23))
    return elements


def test_computing_again_saves_memory() -> None:
    assert kept(remat=True) < 0.1 * kept(remat=False)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler here")
def test_compiled_layers_give_the_same_and_are_compiled_once() -> None:
    """In a process where no shapes are checked, which cannot be compiled."""
    said = subprocess.run(
        [sys.executable, "-m", "tests.torch_twin.compiled_step"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    found = json.loads(said.stdout)
    assert found["graphs"] == 1  # of both layers and all three steps
    assert found["compiled"]["loss"] == pytest.approx(found["eager"]["loss"], rel=1e-13, abs=0)
    for name, values in found["eager"]["parameters"].items():
        np.testing.assert_allclose(found["compiled"]["parameters"][name], values, rtol=1e-11)
