"""Modules lifted by `nn.scan` and `nn.vmap`: one module that stands for many."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen as nn

import diy_torch
import parity
from diy_core.config import DIYConfig
from diy_core.mapping import tensors
from diy_jax.attention import attention_mask_from_positions
from diy_jax.model import ModelBlock
from diy_jax.norm import RMSNorm
from diy_jax.rope import rope_tables
from parity.environment import Device, exact
from parity.random_models import small_configs
from parity.tracing.match.rules import Rule
from parity.tracing.result import TraceResult
from tests.parity.foreign_pairs import dense, drawn, values
from tests.parity.small_pair import Layer, SmallPair, small_pair

CONFIG = dataclasses.replace(small_configs()["gqa"], num_hidden_layers=3)


@pytest.fixture(autouse=True)
def _exact(device: Device) -> Iterator[None]:
    with exact(device):
        yield


class Body(nn.Module):
    """One time around: a block of the Flax twin, with something else done to what it gives."""

    config: DIYConfig
    scale: float = 1.0

    @nn.compact
    def __call__(self, x: Any, rope: Any, mask: Any) -> Any:
        x, _ = ModelBlock(self.config, x.dtype, x.dtype, name="block")(x, rope, mask)
        return x * self.scale, None


class Scanned(nn.Module):
    """The Flax twin with its blocks in a loop of JAX, as one trains it."""

    config: DIYConfig
    scale: float = 1.0
    stack: int = 0
    remat: bool = False

    @nn.compact
    def __call__(self, ids: Any) -> Any:
        config, dtype = self.config, jnp.float64
        embed = nn.Embed(config.vocab_size, config.hidden_size, dtype, dtype, name="embed_tokens")
        positions = jnp.broadcast_to(jnp.arange(ids.shape[1], dtype=jnp.int32), ids.shape)
        mask = attention_mask_from_positions(positions, positions)
        layers = nn.scan(
            nn.remat(Body, prevent_cse=False) if self.remat else Body,
            variable_axes={"params": self.stack},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, nn.broadcast),
            length=config.num_hidden_layers,
        )
        x, _ = layers(config, self.scale, name="layers")(
            embed(ids), rope_tables(config, positions, dtype), mask
        )
        return embed.attend(RMSNorm(config.hidden_size, config.rms_norm_eps, dtype, name="norm")(x))


def rules(stack: int = 0) -> list[Rule]:
    """A row for each tensor of a layer, and one for each other tensor."""
    found = []
    for tensor in tensors(CONFIG):
        path, axes = "/".join(tensor.flax), tensor.to_flax.axes
        one, other = tensor.torch, path.removeprefix("model/")
        if tensor.layer == 0:
            one = one.replace("layers.0.", "layers.{i}.")
            found.append(Rule(one, other.replace("layers_0", "layers/block"), axes, stack=stack))
        elif tensor.layer is None:
            found.append(Rule(one, other, axes))
    return found


def scanned(stack: int = 0, **options: Any) -> SmallPair:
    """The PyTorch twin, and a Flax model that keeps all its layers in one tensor of each kind."""
    model: Any = drawn(diy_torch.DIYForCausalLM(CONFIG), "float64")
    params = parity.to_flax(model.state_dict(), CONFIG)["model"]
    layers = [params.pop(f"layers_{i}") for i in range(CONFIG.num_hidden_layers)]
    params["layers"] = {"block": jax.tree.map(lambda *leaves: np.stack(leaves, stack), *layers)}
    ids = np.random.default_rng(0).integers(0, CONFIG.vocab_size, (2, 9), np.int32)
    return SmallPair(model, Scanned(CONFIG, stack=stack, **options), params, ids)


def trace(pair: SmallPair, **options: Any) -> TraceResult:
    return pair.trace(rules=rules(pair.flax.stack), **options)


@pytest.mark.parametrize(("stack", "remat"), [(0, False), (1, True)])
def test_a_loop_over_layers_is_compared_layer_by_layer(stack: int, remat: bool) -> None:
    result = trace(scanned(stack, remat=remat))
    assert result.equal, result.first_divergence
    assert result.notes == []
    found = {row.torch: row.flax for row in result.rows}
    for i in range(3):
        for part in ("attention", "attention/q_proj", "feedforward_norm"):
            flax = found[f"model.layers.{i}.{part.replace('/', '.')}"]
            assert flax.partition(" ")[0] == f"layers/block/{part}"
    assert len(set(found.values())) == len(found)
    names = {name for name, _ in diy_torch.DIYForCausalLM(CONFIG).named_parameters()}
    assert set(result.gradients) == names


def test_what_a_loop_does_to_its_layers_is_found_in_the_first_of_them() -> None:
    """Nothing in the block is wrong: what its wrapper makes of it goes into the next one."""
    found = trace(scanned(scale=1.25)).first_divergence
    assert found is not None
    assert (found.torch, found.flax, found.direction) == ("model.layers.0", "layers", "forward")


def test_another_epsilon_in_a_loop() -> None:
    pair = scanned()
    pair.flax = Scanned(dataclasses.replace(CONFIG, rms_norm_eps=1e-3))
    found = trace(pair).first_divergence
    assert found is not None
    assert (found.torch, found.flax) == (
        "model.layers.0.attention_norm",
        "layers/block/attention_norm",
    )


def test_a_gradient_in_a_loop() -> None:
    """The one layer of PyTorch that lets no gradient through."""
    pair = scanned()
    layer = pair.torch.model.layers[1].feedforward.down_proj
    layer.register_forward_pre_hook(lambda module, args: tuple(x.detach() for x in args))
    found = trace(pair).first_divergence
    assert found is not None
    assert (found.torch, found.direction) == ("model.layers.1.feedforward", "backward")
    assert found.flax == "layers/block/feedforward"


def test_a_compiled_loop_counts_as_one_with_what_is_around_it() -> None:
    """Its calls cannot be told apart, which is said; a fault before it is still found."""
    pair = scanned()
    result = trace(pair, jit=True, backward=False)
    assert result.equal
    note = "layers runs in a compiled loop: to have the calls in it compared, pass jit=False"
    assert note in result.notes
    pair.params["embed_tokens"] = jax.tree.map(lambda leaf: 2 * leaf, pair.params["embed_tokens"])
    found = trace(pair, jit=True, backward=False).first_divergence
    assert found is not None
    assert (found.torch, found.flax) == ("model.embed_tokens", "embed_tokens")


class Heads(torch.nn.Module):
    """Layers side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = torch.nn.ModuleList(torch.nn.Linear(6, 6) for _ in range(4))
        self.out = torch.nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(torch.stack([torch.tanh(head(x)) for head in self.heads]).sum(0))


class Mapped(nn.Module):
    """The same layers as one, over an axis of their parameters."""

    sign: float = 1.0

    @nn.compact
    def __call__(self, x: Any) -> Any:
        axes: Any = {"params": 0}
        heads = nn.vmap(Layer, axes, split_rngs={"params": True}, in_axes=None, axis_size=4)
        x = self.sign * heads(name="heads")(x).sum(0)
        return nn.Dense(4, name="out", param_dtype=x.dtype)(x)


@pytest.mark.parametrize("jit", [False, True])
def test_calls_that_vmap_makes_at_once(jit: bool) -> None:
    model: Any = drawn(Heads(), "float64")
    heads = [{"inner": dense(head)} for head in model.heads]
    params = {"heads": jax.tree.map(lambda *leaves: np.stack(leaves), *heads)}
    params["out"] = dense(model.out)
    pair = SmallPair(model, Mapped(), params, values(0, 5, 6, dtype="float64"))
    table = [
        Rule("heads.{i}.weight", "heads/inner/kernel", stack=0),
        Rule("heads.{i}.bias", "heads/inner/bias", stack=0),
        Rule("out.weight", "out/kernel"),
        Rule("out.bias", "out/bias"),
    ]
    result = pair.trace(rules=table, jit=jit)
    assert result.equal
    assert result.notes[-1] == (
        "heads is mapped over an axis by JAX: the calls in it are compared as a part of what is "
        "around them"
    )
    pair.flax = Mapped(-1.0)
    found = pair.trace(rules=table, jit=jit).first_divergence
    assert found is not None
    assert (found.torch, found.where) == ("", "what goes into out")


def test_mapped_over_rows_with_the_same_parameters() -> None:
    class Rows(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            for i in range(3):
                axes: Any = {"params": None}
                layer = nn.vmap(Layer, variable_axes=axes, split_rngs={"params": False})
                x = layer(name=f"layers_{i}")(x)
            return nn.Dense(4, name="out", param_dtype=x.dtype)(x)

    pair = small_pair()
    pair.flax = Rows()
    result = pair.trace(backward=False)
    assert result.equal
    assert any(note.startswith("layers_0 is mapped over an axis by JAX") for note in result.notes)


def test_one_layer_of_a_loop_is_wrong() -> None:
    pair = scanned()
    kernel = pair.params["layers"]["block"]["attention"]["q_proj"]["kernel"]
    kernel[1] = kernel[1].T
    found = trace(pair).first_divergence
    assert found is not None
    assert found.torch == "model.layers.1.attention.q_proj"
    assert found.flax == "layers/block/attention/q_proj"
    assert [suspect.name for suspect in found.suspects] == ["weight-transposed"]
    assert (found.suspects[0].after or 0.0) <= 1e-12
