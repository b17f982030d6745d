"""Documents packed into rows by `segment_ids`, against the same documents alone."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import numpy as np
import torch
from numpy.typing import NDArray

from diy_core.config import DIYConfig
from diy_torch.tensors import to_numpy
from parity.batch import Batch, random_ids
from parity.twins import Pair

# What stands in `segment_ids`, document by document and then again from the front: each row has
# numbers that come back, and neighbours that are one number once they are cut to 8 or 16 bits, or
# rounded to float32.
_NUMBERS = (3, 3 + (1 << 8), 3, 3 + (1 << 16), 1 << 24, (1 << 24) + 1, -1)


@dataclasses.dataclass(frozen=True)
class Packed:
    """Rows of documents, one after the other, no padding.

    Attributes:
        ids: tokens (B, S).
        segments: the number of the document of each, (B, S); a number may come back.
        documents: the same tokens, a document a row, padded on the right; in the order of `ids`.
    """

    ids: NDArray[np.int32]
    segments: NDArray[np.int32]
    documents: Batch

    @classmethod
    def make(cls, config: DIYConfig, shares: tuple[tuple[int, ...], ...], seed: int) -> Packed:
        """Random tokens.

        Args:
            config: of the model.
            shares: for each row the lengths of its documents; all rows are of one length.
            seed: of the tokens.
        """
        limit = config.max_position_embeddings
        rows = [_within(lengths, limit) for lengths in shares]
        columns = min(sum(lengths) for lengths in rows)
        generator = np.random.default_rng([seed, 5])
        ids = random_ids(generator, config.vocab_size, (len(rows), columns))
        ends = [np.cumsum(lengths).clip(max=columns) for lengths in rows]
        alone = [
            document
            for row, own in zip(ids, ends, strict=True)
            for document in np.split(row, own)
            if len(document)
        ]
        numbers = [np.resize(_NUMBERS, len(lengths)) for lengths in rows]
        segments = np.stack(
            [np.repeat(own, r)[:columns] for own, r in zip(numbers, rows, strict=True)]
        ).astype(np.int32)
        lengths = np.array([len(document) for document in alone], np.int32)
        padded = np.zeros((len(alone), lengths.max()), np.int32)
        for place, document in zip(padded, alone, strict=True):
            place[: len(document)] = document
        return cls(ids, segments, Batch(padded, lengths))

    @property
    def reach(self) -> str:
        """How far it looks, in words."""
        count, longest = self.documents.ids.shape
        return f"{count} documents in {len(self.ids)} rows, 0-{longest - 1}"


def _within(lengths: tuple[int, ...], limit: int) -> list[int]:
    """The lengths, or shorter ones of the same proportions where so many tokens are too many."""
    if sum(lengths) <= limit:
        return list(lengths)
    ends = np.linspace(0, limit, min(len(lengths), limit) + 1).astype(int)
    return [int(n) for n in np.diff(ends)]


def packed_logits(pair: Pair, packed: Packed) -> dict[str, NDArray[np.float64]]:
    """Logits of both twins, document by document: (tokens, V) each."""
    with torch.inference_mode():
        logits = pair.torch(
            torch.from_numpy(packed.ids).to(pair.device.torch),
            segment_ids=torch.from_numpy(packed.segments).to(pair.device.torch),
        )
    params = jax.device_put(pair.params, pair.device.jax)
    other = _logits(pair.flax, params, packed.ids, packed.segments)
    return {
        "torch": to_numpy(logits).astype(np.float64).reshape(-1, logits.shape[-1]),
        "flax": np.asarray(other, np.float64).reshape(-1, other.shape[-1]),
    }


@partial(jax.jit, static_argnames="model")
def _logits(model: Any, params: Any, ids: Any, segments: Any) -> Any:
    return model.apply({"params": params}, ids, segment_ids=segments)
