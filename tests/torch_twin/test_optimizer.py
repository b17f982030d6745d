"""AdamW and clipping against their formulas in numpy, and what decays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import diy_torch
from diy_core.mapping import tensors
from diy_core.training.config import OptimizerConfig
from diy_torch.optimizer import build_optimizer, can_be_squared, clip_by_global_norm
from tests.clipping_tests import ClippingTests, gradients_like
from tests.oracles import CONFIGS, random_weights
from tests.torch_twin.build import build
from tests.training_oracles import Array, adamw, random_gradients


def decayed_names(name: str, options: OptimizerConfig) -> set[str]:
    """What decays, by the optimizer's own groups, as Hugging Face names."""
    config = CONFIGS[name]
    optimizer = build_optimizer(diy_torch.DIYForCausalLM(config), options)
    names = {t.torch: t.hf for t in tensors(config)}
    groups = [set(group["param_names"]) for group in optimizer.param_groups]
    assert groups[0] | groups[1] == set(names)
    return {
        names[name]
        for group in optimizer.param_groups
        for name in group["param_names"]
        if group["weight_decay"]
    }


@pytest.mark.parametrize("name", ["biases", "untied"])
def test_matrices_decay_and_vectors_and_embeddings_do_not(name: str) -> None:
    found = decayed_names(name, OptimizerConfig())
    projections = [f"self_attn.{letter}_proj" for letter in "qkvo"]
    projections += [f"mlp.{part}_proj" for part in ("gate", "up", "down")]
    assert found == {f"model.layers.{i}.{p}.weight" for i in range(2) for p in projections}
    more = decayed_names(name, OptimizerConfig(decay_embeddings=True)) - found
    head = {"lm_head.weight"} if name == "untied" else set()  # a tied head is the embedding
    assert more == {"model.embed_tokens.weight"} | head


@pytest.mark.parametrize(
    "options",
    [
        OptimizerConfig(),
        OptimizerConfig(
            beta1=0.8, beta2=0.999, eps=1e-5, weight_decay=0.3, decay_embeddings=True, clip_norm=0.5
        ),
        OptimizerConfig(clip_norm=0.0, weight_decay=0.0),
    ],
    ids=["defaults", "another", "neither clipped nor decayed"],
)
def test_thirty_steps_are_the_formula(options: OptimizerConfig) -> None:
    config = CONFIGS["untied"]
    first = random_weights(config)
    gradients, rates = random_gradients(first, 30), [1e-2 * (step + 1) / 30 for step in range(30)]
    model = build(config)
    named = dict(model.named_parameters())
    optimizer = build_optimizer(model, options)
    for drawn, rate in zip(gradients, rates, strict=True):
        for t in tensors(config):
            named[t.torch].grad = torch.from_numpy(drawn[t.hf].copy())
        norm = clip_by_global_norm([p.grad for p in named.values()], options.clip_norm)
        assert norm.item() == pytest.approx(_norm(drawn), rel=1e-14)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
    expected = adamw(first, gradients, rates, options, decayed_names("untied", options))
    for t in tensors(config):
        np.testing.assert_allclose(
            named[t.torch].detach().numpy(), expected[t.hf], rtol=0, atol=1e-13
        )


def _norm(drawn: dict[str, Array]) -> float:
    return float(np.sqrt(sum((g**2).sum() for g in drawn.values())))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_clipping_is_that_of_torch(scale: float) -> None:
    arrays = [np.random.default_rng(i).normal(size=(5, 2)) * scale for i in range(3)]
    ours = [torch.from_numpy(array.copy()) for array in arrays]
    norm = clip_by_global_norm(ours, 0.5)
    parameters = [torch.nn.Parameter(torch.zeros(5, 2, dtype=torch.float64)) for _ in arrays]
    for parameter, array in zip(parameters, arrays, strict=True):
        parameter.grad = torch.from_numpy(array.copy())
    wanted = torch.nn.utils.clip_grad_norm_(parameters, 0.5).item()
    assert norm.item() == pytest.approx(wanted, rel=1e-15)
    for one, other in zip(ours, parameters, strict=True):
        np.testing.assert_allclose(one.numpy(), other.grad, rtol=1e-15)


@pytest.mark.parametrize("mean", [0.0, 1e-3])
def test_the_norm_of_large_gradients_is_that_of_float64(mean: float) -> None:
    arrays = [
        np.random.default_rng(i).normal(mean, 1e-3, size).astype(np.float32)
        for i, size in enumerate([(4096, 512), (512, 4096), (512,)])
    ]
    norm = clip_by_global_norm([torch.from_numpy(array) for array in arrays], 0.0)
    wanted = np.sqrt(sum((array.astype(np.float64) ** 2).sum() for array in arrays))
    assert float(norm) == pytest.approx(wanted, rel=8 * 2.0**-23)


class TestClipping(ClippingTests):
    def clip(self, gradients: Sequence[Array], max_norm: float) -> tuple[list[Array], Any]:
        tensors = [torch.from_numpy(gradient) for gradient in gradients]
        norm = clip_by_global_norm(tensors, max_norm)
        return [tensor.numpy() for tensor in tensors], norm.numpy()

    def can_be_squared(self, norm: Any, max_norm: float) -> bool:
        return bool(can_be_squared(torch.tensor(norm), max_norm))


class Operations(TorchDispatchMode):
    """Counts what is computed of whole gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> torch.Tensor:
        if args and isinstance(args[0], torch.Tensor) and args[0].ndim == 2:
            self.names.append(func.overloadpacket.__name__)
        found: torch.Tensor = func(*args, **(kwargs or {}))
        return found


@pytest.mark.parametrize("size", [1e15, 1e3, 1.0, 1e-3, 1e-8])
def test_ordinary_gradients_are_read_as_often_as_ever_and_keep_their_bits(size: float) -> None:
    ours, other = ([torch.from_numpy(g) for g in gradients_like(size, size)] for _ in range(2))
    with Operations() as counted:
        norm = clip_by_global_norm(ours, 1.0)
    assert counted.names == ["linalg_vector_norm"] * 2 + ["mul_"] * 2
    rows = [torch.linalg.vector_norm(gradient, dim=-1) for gradient in other]
    wanted = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(row) for row in rows]))
    assert norm.equal(wanted)
    for one, gradient in zip(ours, other, strict=True):
        assert one.equal(gradient.mul(torch.clamp(1.0 / (wanted + 1e-6), max=1.0)))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_moments_have_the_dtype_of_the_parameters(dtype: str) -> None:
    model = build(CONFIGS["gqa"], getattr(torch, dtype))
    optimizer = build_optimizer(model, OptimizerConfig())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for parameter in model.parameters():
        state = optimizer.state[parameter]
        assert state["exp_avg"].dtype == state["exp_avg_sq"].dtype == getattr(torch, dtype)
