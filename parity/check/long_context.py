"""Tokens far out: at positions up to `max_position_embeddings`, at the price of a few.

A forward pass over a whole context takes memory that grows with its square. Here the context is
drawn: random keys and values stand in the cache of both twins, and four tokens at a time are
decoded at positions ever further out, the fourth alone. What is wrong about a position shows, and
no token before it has to be computed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from numpy.typing import NDArray

from diy_core.config import DIYConfig
from diy_torch.tensors import to_numpy
from parity.batch import Batch, random_ids
from parity.check.first_layers import first_layers
from parity.twins import Pair

_STEP = 4  # tokens at a place: a few in one call, and the last one in another, which goes on
_LAST = 1  # from the positions that the first returned
_FIRST = 256  # the first position that is looked at; others are twice as far, each time
_ROOM = 1 << 28  # bytes of random keys and values: of as many layers as they are enough for


@dataclasses.dataclass(frozen=True)
class Far:
    """What is decoded, and where.

    Attributes:
        starts: position of the first token of each call, ascending.
        ids: tokens of all calls, (calls, tokens).
        layers: how many of the model's layers take part: the first ones.
        seed: of keys and values.
    """

    starts: tuple[int, ...]
    ids: NDArray[np.int32]
    layers: int
    seed: int

    @classmethod
    def make(cls, config: DIYConfig, seed: int) -> Far:
        """Positions that double, and the last ones that the config allows."""
        limit = config.max_position_embeddings
        step = min(_STEP, limit)
        last, starts = limit - step, [_FIRST]
        while starts[-1] * 2 < last:
            starts.append(starts[-1] * 2)
        starts = [start for start in starts if start < last] + [last]
        layer = 2 * 8 * limit * config.kv_heads * config.head_size
        generator = np.random.default_rng([seed, 3])
        ids = random_ids(generator, config.vocab_size, (len(starts), step))
        layers = min(config.num_hidden_layers, max(1, _ROOM // layer))
        return cls(tuple(starts), ids, layers, seed)

    @property
    def batch(self) -> Batch:
        """The calls as rows, to name places."""
        return Batch(self.ids, np.full(len(self.ids), self.ids.shape[1], np.int32))

    def place(self, index: int) -> str:
        """The position of the index-th token."""
        call, token = divmod(index, self.ids.shape[1])
        return f"position {self.starts[call] + token}"

    @property
    def reach(self) -> str:
        """How far it looks, in words."""
        positions = self.starts[-1] + self.ids.shape[1]
        return f"1 row, {self.ids.size} of 0-{positions - 1}, {self.layers} layers"


def far_logits(pair: Pair, far: Far) -> dict[str, NDArray[np.float64]]:
    """Logits of both twins, (tokens, V) each, of the model's first layers."""
    small = first_layers(pair, far.layers)
    return {"torch": _torch(small, far), "flax": _flax(small, far)}


def draw(config: DIYConfig, far: Far, layer: int) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """Random `key` and `value` of a layer, as many as there are positions: (1, K, T, H) each."""
    shape = 1, config.kv_heads, config.max_position_embeddings, config.head_size
    generator = np.random.default_rng([far.seed, 4, layer])
    for name in ("key", "value"):
        yield name, generator.standard_normal(shape)


def _torch(pair: Pair, far: Far) -> NDArray[np.float64]:
    config, model, device = pair.config, pair.torch, pair.device
    past: Any = [
        ({n: torch.from_numpy(a).to(device.torch) for n, a in draw(config, far, layer)}, None)
        for layer in range(far.layers)
    ]
    found = []
    with torch.inference_mode():
        for start, ids in zip(far.starts, far.ids, strict=True):
            at = torch.tensor([start], dtype=torch.int32, device=device.torch)
            past = [(cached, at) for cached, _ in past]
            for part in _calls(ids):
                given = torch.from_numpy(part[None]).to(device.torch)
                logits, past = model(given, past_key_values=past, use_cache=True)
                found.append(to_numpy(logits)[0])
    return np.concatenate(found)


def _flax(pair: Pair, far: Far) -> NDArray[np.float64]:
    config, params = pair.config, jax.device_put(pair.params, pair.device.jax)
    cached = [
        {n: jax.device_put(array, pair.device.jax) for n, array in draw(config, far, layer)}
        for layer in range(far.layers)
    ]
    found = []
    for start, ids in zip(far.starts, far.ids, strict=True):
        past = [(layer, jnp.full(1, start, jnp.int32)) for layer in cached]
        for part in _calls(ids):
            logits, past = _step(pair.flax, params, part[None], past)
            found.append(np.asarray(logits)[0])
        cached = [layer for layer, _ in past]
    return np.concatenate(found)


def _calls(ids: NDArray[np.int32]) -> list[NDArray[np.int32]]:
    return [part for part in (ids[:-_LAST], ids[-_LAST:]) if len(part)]


@partial(jax.jit, static_argnames="model", donate_argnames="past")
def _step(model: Any, params: Any, ids: Any, past: Any) -> Any:
    return model.apply({"params": params}, ids, past_key_values=past, use_cache=True)
