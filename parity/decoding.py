"""Cached decoding of a ragged batch in both twins: a prompt, a second chunk, then single tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import numpy as np
import torch
from numpy.typing import NDArray

import diy_jax
import diy_torch
from diy_core.config import DIYConfig
from parity.pair import Batch, Pair

SECOND_CHUNK = 64
Chunk = tuple[NDArray[np.int32], NDArray[np.int32]]


@dataclasses.dataclass
class Decoding:
    """A ragged batch to decode: rows of other lengths, out of prompts of other lengths."""

    batch: Batch
    prompts: NDArray[np.int32]

    @classmethod
    def make(
        cls, config: DIYConfig, prompts: tuple[int, ...], positions: int, seed: int
    ) -> Decoding:
        """Random tokens; the first row has `positions` tokens, each further one a few less."""
        positions = min(positions, config.max_position_embeddings)
        lengths = np.maximum(4, positions - 29 * np.arange(len(prompts)))
        generator = np.random.default_rng([seed, 1])
        ids = generator.integers(0, config.vocab_size, (len(prompts), positions), np.int32)
        batch = Batch(ids, lengths.astype(np.int32))
        return cls(batch, np.minimum(prompts, lengths - 2).astype(np.int32))

    def chunks(self) -> Iterator[Chunk]:
        """What the model is fed, call by call: ids (B, S) and how many of them count, (B,)."""
        start = np.zeros_like(self.prompts)
        width, wanted = int(self.prompts.max()), self.prompts
        while (start < self.batch.lengths).any():
            new = np.minimum(wanted, self.batch.lengths - start)
            columns = np.minimum(
                start[:, None] + np.arange(width)[None, :], self.batch.ids.shape[1] - 1
            )
            yield np.take_along_axis(self.batch.ids, columns, axis=1), new.astype(np.int32)
            width = SECOND_CHUNK if start.max() == 0 else 1
            start = start + new
            wanted = np.full_like(start, width)

    def place(self, index: int) -> str:
        """The row and position of the index-th valid token."""
        row, position = np.argwhere(self.batch.valid)[index]
        return f"row {row}, position {position}"


def cached_logits(pair: Pair, decoding: Decoding) -> dict[str, NDArray[np.float64]]:
    """Logits of both twins by cached decoding, at the valid tokens: (tokens, V) float64 each."""
    limit = pair.config.max_position_embeddings

    def torch_step(ids: Any, new: Any, past: Any, _: int) -> Any:
        with torch.inference_mode():
            logits, past = pair.torch(
                torch.from_numpy(ids).to(pair.device.torch),
                seq_lengths=torch.from_numpy(new).to(pair.device.torch),
                past_key_values=past,
                use_cache=True,
            )
        return logits.double().cpu().numpy(), past

    params = jax.device_put(pair.params, pair.device.jax)

    def flax_step(ids: Any, new: Any, past: Any, needed: int) -> Any:
        if past is None:
            past = diy_jax.init_cache(pair.config, len(ids), needed, pair.flax.dtype)
        past = diy_jax.grow_cache(past, needed, limit)
        logits, past = _flax_step(pair.flax, params, ids, new, past)
        return np.asarray(logits, np.float64), past

    return {"torch": _collect(decoding, torch_step), "flax": _collect(decoding, flax_step)}


@partial(jax.jit, static_argnames="model", donate_argnames="past")
def _flax_step(model: Any, params: Any, ids: Any, new: Any, past: Any) -> Any:
    return model.apply(
        {"params": params}, ids, seq_lengths=new, past_key_values=past, use_cache=True
    )


def _collect(decoding: Decoding, step: Callable[..., Any]) -> NDArray[np.float64]:
    """Run the chunks and put each valid logit at its position."""
    rows: list[list[NDArray[np.float64]]] = [[] for _ in decoding.prompts]
    past, done = None, np.zeros_like(decoding.prompts)
    for ids, new in decoding.chunks():
        done = done + new
        logits, past = step(ids, new, past, int(done.max()))
        for row, count in enumerate(new):
            rows[row].append(logits[row, :count])
    return np.concatenate([part for row in rows for part in row])


def greedy(
    pair: Pair, decoding: Decoding, tokens: int
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Greedy continuations of the prompts by both twins, (B, L) each."""
    width, limit = int(decoding.prompts.max()), pair.config.max_position_embeddings
    ids = decoding.batch.ids[:, :width]
    mask = (np.arange(width)[None, :] < decoding.prompts[:, None]).astype(np.int32)
    tokens = min(tokens, limit - width)
    one = diy_torch.generate(pair.torch, ids, mask, max_new_tokens=tokens)
    other = diy_jax.generate(pair.flax, pair.params, ids, mask, max_new_tokens=tokens)
    return one.sequences.cpu().numpy().astype(np.int32), np.asarray(other.sequences)
