"""Cached decoding of a ragged batch in both twins: token by token, in chunks, greedily."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
import torch
from numpy.typing import NDArray

import diy_jax
import diy_torch
from diy_core.config import DIYConfig
from parity.batch import Batch, random_ids
from parity.twins import Pair

Chunk = tuple[NDArray[np.int32], NDArray[np.int32]]


@dataclasses.dataclass
class Decoding:
    """A ragged batch to decode, and in which pieces.

    Attributes:
        batch: rows of other lengths.
        prompts: how many tokens of each row the first call takes, (B,).
        widths: how many tokens of every row each further call takes; the last of them until all
            rows are done.
        pauses: in each further call another row waits, which takes no token, and now and then none.
    """

    batch: Batch
    prompts: NDArray[np.int32]
    widths: tuple[int, ...] = (64, 1)
    pauses: bool = False

    @classmethod
    def make(
        cls, config: DIYConfig, prompts: tuple[int, ...], positions: int, seed: int
    ) -> Decoding:
        """Random tokens; the first row has `positions` tokens, each further one a few less."""
        positions = min(positions, config.max_position_embeddings)
        lengths = np.maximum(4, positions - 29 * np.arange(len(prompts)))
        generator = np.random.default_rng([seed, 1])
        ids = random_ids(generator, config.vocab_size, (len(prompts), positions))
        batch = Batch(ids, np.minimum(lengths, positions).astype(np.int32))
        return cls(batch, _within(prompts, batch))

    def in_chunks(self, widths: Sequence[int]) -> Decoding:
        """The same batch in chunks of these sizes; the rows' first chunks are of uneven size too.

        The first chunk of row i is a 2**i-th of the first width. Later on rows wait in turn.
        """
        first = [max(1, widths[0] >> row) for row in range(len(self.prompts))]
        return dataclasses.replace(
            self, prompts=_within(first, self.batch), widths=tuple(widths[1:]), pauses=True
        )

    def chunks(self) -> Iterator[Chunk]:
        """What the model is fed, call by call: ids (B, S) and how many of them count, (B,)."""
        start, columns = np.zeros_like(self.prompts), self.batch.ids.shape[1]
        width, wanted, further = int(self.prompts.max()), self.prompts, list(self.widths)
        rows, turn = len(self.prompts), 0
        while (start < self.batch.lengths).any():
            new = np.minimum(wanted, self.batch.lengths - start)
            index = np.minimum(start[:, None] + np.arange(width)[None, :], columns - 1)
            yield np.take_along_axis(self.batch.ids, index, axis=1), new.astype(np.int32)
            width = min(further.pop(0) if len(further) > 1 else further[0], columns)
            start = start + new
            wanted = np.full_like(start, width)
            if self.pauses:
                wanted[np.arange(rows) == turn % (rows + 1)] = 0
            turn += 1


def _within(prompts: Sequence[int], batch: Batch) -> NDArray[np.int32]:
    """Prompts that leave two tokens of each row to decode, where it has so many."""
    return np.minimum(prompts, np.maximum(batch.lengths - 2, 1)).astype(np.int32)


def cached_logits(
    pair: Pair, decoding: Decoding, *, masks: bool = False
) -> dict[str, NDArray[np.float64]]:
    """Logits of both twins by cached decoding, at the valid tokens: (tokens, V) float64 each.

    Args:
        pair: the twins.
        decoding: what they decode.
        masks: say how many tokens count by `attention_mask`, not by `seq_lengths`.
    """
    limit = pair.config.max_position_embeddings
    counted = "attention_mask" if masks else "seq_lengths"

    def count(ids: Any, new: Any) -> Any:
        return (np.arange(ids.shape[1]) < new[:, None]).astype(np.int32) if masks else new

    def torch_step(ids: Any, new: Any, past: Any, _: int) -> Any:
        with torch.inference_mode():
            logits, past = pair.torch(
                torch.from_numpy(ids).to(pair.device.torch),
                **{counted: torch.from_numpy(count(ids, new)).to(pair.device.torch)},
                past_key_values=past,
                use_cache=True,
            )
        return logits.double().cpu().numpy(), past

    params = jax.device_put(pair.params, pair.device.jax)

    def flax_step(ids: Any, new: Any, past: Any, needed: int) -> Any:
        if past is None:
            past = diy_jax.init_cache(pair.config, len(ids), needed, pair.flax.dtype)
        past = diy_jax.grow_cache(past, needed, limit)
        given = {counted: count(ids, new)}
        logits, past = _flax_step(pair.flax, params, ids, given, past)
        return np.asarray(logits, np.float64), past

    return {"torch": _collect(decoding, torch_step), "flax": _collect(decoding, flax_step)}


@partial(jax.jit, static_argnames="model", donate_argnames="past")
def _flax_step(model: Any, params: Any, ids: Any, given: Any, past: Any) -> Any:
    return model.apply({"params": params}, ids, **given, past_key_values=past, use_cache=True)


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
