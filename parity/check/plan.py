"""What is compared, in which dtypes, and how much of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diy_core.checkpoints.hf.directory import require_directory
from diy_core.config import DIYConfig
from diy_core.mapping import tensors
from diy_core.training.config import OptimizerConfig
from parity.batch import Batch, random_ids
from parity.check.kinds import KINDS
from parity.check.optimizers import RECIPE

_LARGE = 20_000_000  # parameters: from here on less is compared, so that a check takes minutes
_SLOW = ("step", "optimizer", "training")


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is compared, and how much of it.

    Attributes:
        kinds: which of `KINDS`.
        batch_size: rows of the forward and backward checks.
        sequence: and their tokens; the first row has all of them.
        decode_prompts: how many tokens of each row of the decoding check are its prompt.
        decode_positions: tokens of its first row; each further one has a few less.
        chunks: sizes of the chunks in which the same rows are fed in the chunked check.
        ragged: lengths of the rows of the ragged check.
        packed: and of the documents of each row of the packed check.
        cache_rows: lengths of the documents of the check of gradients through the cache.
        cache_chunk: tokens of a chunk there.
        cache_prefix: and of the prefix that is learned.
        cache_layers: of the model, the first ones; None: all.
        greedy_tokens: of the greedy continuation; 0 leaves it out.
        optimizer_steps: updates of the optimizer check; the states are exchanged half way.
        training_steps: updates of the training check.
        training_rows: sequences in a training batch.
        training_sequence: and their tokens.
        recipe: of both optimizers; the learning rate stays what it is.
        seed: of all random tokens and gradients.
    """

    kinds: tuple[str, ...] = tuple(KINDS)
    batch_size: int = 2
    sequence: int = 64
    decode_prompts: tuple[int, ...] = (3, 200, 77)
    decode_positions: int = 320
    chunks: tuple[int, ...] = (97, 30, 130, 64)
    ragged: tuple[int, ...] = (48, 13, 29)
    packed: tuple[tuple[int, ...], ...] = (
        (20, 13, 31),
        (1, 40, 23),
        (7, 2, 11, 5, 39),
        (3, 2, 1, 4, 1, 2, 1, 2, 40, 8),
    )
    cache_rows: tuple[int, ...] = (40, 27, 9)
    cache_chunk: int = 16
    cache_prefix: int = 5
    cache_layers: int | None = None
    greedy_tokens: int = 48
    optimizer_steps: int = 10
    training_steps: int = 100
    training_rows: int = 4
    training_sequence: int = 32
    recipe: OptimizerConfig = RECIPE
    seed: int = 0


def plan_for(path: str | Path) -> Plan:
    """How much to compare for the model in a directory: less for a large one."""
    require_directory(path)
    config = DIYConfig.from_pretrained(path)
    if sum(tensor.parameters for tensor in tensors(config)) < _LARGE:
        return Plan()
    kinds = tuple(kind for kind in KINDS if kind not in _SLOW)
    return Plan(
        kinds=kinds,
        decode_prompts=(120, 31),
        decode_positions=256,
        cache_rows=(20, 13, 6),
        cache_chunk=8,
        cache_layers=2,
    )


def left_out(plan: Plan) -> str:
    """One line about the kinds of check that a default plan leaves out, or nothing."""
    kinds = [kind for kind in KINDS if kind not in plan.kinds]
    if not kinds:
        return ""
    return (
        f"left out, since the model is large: {', '.join(kinds)} "
        f"(--checks {','.join(kinds)} makes them)"
    )


def make_batch(config: DIYConfig, plan: Plan) -> Batch:
    """A ragged batch of random tokens: the first row whole, the others shorter."""
    sequence = min(plan.sequence, config.max_position_embeddings)
    lengths = np.linspace(sequence, max(2, sequence // 4), plan.batch_size)
    return random_batch(config, lengths.astype(np.int32), plan.seed)


def random_batch(config: DIYConfig, lengths: NDArray[np.int32], seed: int) -> Batch:
    """Random tokens in right-padded rows of these lengths."""
    generator = np.random.default_rng(seed)
    shape = len(lengths), int(lengths.max())
    return Batch(random_ids(generator, config.vocab_size, shape), lengths)
