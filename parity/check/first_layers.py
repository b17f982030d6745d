"""A pair of twins cut down to its first layers: the same tensors, not copies of them."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import diy_torch
from diy_core.config import DIYConfig
from parity.twins import Pair


def first_layers(pair: Pair, layers: int) -> Pair:
    """The twins with their embedding, their first layers, their last norm and their head."""
    config = dataclasses.replace(pair.config, num_hidden_layers=layers)
    return pair if config == pair.config else _FirstLayers(pair, config)


def in_words(config: DIYConfig) -> str:
    """How many layers there are."""
    count = config.num_hidden_layers
    return "1 layer" if count == 1 else f"{count} layers"


class _FirstLayers(Pair):
    """It loads nothing: what it has is the whole pair's."""

    def __init__(self, whole: Pair, config: DIYConfig) -> None:
        self.path, self.dtype, self.device = whole.path, whole.dtype, whole.device
        self.whole = whole
        self.flax, self.params = whole.flax.clone(config=config), _params(whole.params, config)

    @property
    def torch(self) -> diy_torch.DIYForCausalLM:
        """The PyTorch twin."""
        return _torch(self.whole.torch, self.config)

    def drop_torch(self) -> None:
        """Free the whole PyTorch twin's memory; it is loaded again when it is asked for."""
        self.whole.drop_torch()


def _torch(model: diy_torch.DIYForCausalLM, config: DIYConfig) -> diy_torch.DIYForCausalLM:
    small, trunk = copy.copy(model), copy.copy(model.model)
    for module in (small, trunk):
        module._modules = dict(module._modules)  # or the copy would change the original
        module.config = config
    trunk.layers = model.model.layers[: config.num_hidden_layers]
    small.model = trunk
    return small


def _params(params: Any, config: DIYConfig) -> Any:
    kept = {f"layers_{layer}" for layer in range(config.num_hidden_layers)}
    trunk = {
        name: value
        for name, value in params["model"].items()
        if not name.startswith("layers_") or name in kept
    }
    return {**params, "model": trunk}
