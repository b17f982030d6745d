"""What a check feeds both twins with, all of it drawn from one seed."""

from __future__ import annotations

import dataclasses

import numpy as np

from diy_core.config import DIYConfig
from parity.batch import Batch
from parity.check.decoding import Decoding
from parity.check.plan import Plan, make_batch, random_batch
from parity.check.training import token_batches


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Random tokens, no more of them than the model has positions.

    Attributes:
        batch: of the forward and backward lines.
        ragged: of the ragged lines.
        decoding: of the decoded and the chunked lines.
        training: the batches of the training lines, in order.
    """

    batch: Batch
    ragged: Batch
    decoding: Decoding
    training: list[Batch]

    @classmethod
    def make(cls, config: DIYConfig, plan: Plan) -> Inputs:
        """As much as a plan wants."""
        limit = config.max_position_embeddings
        ragged = np.minimum(plan.ragged, limit).astype(np.int32)
        columns = min(plan.training_sequence, limit)
        return cls(
            make_batch(config, plan),
            random_batch(config, ragged, plan.seed + 1),
            Decoding.make(config, plan.decode_prompts, plan.decode_positions, plan.seed),
            token_batches(
                config.vocab_size, plan.training_steps, plan.training_rows, columns, plan.seed
            ),
        )

    @property
    def steps(self) -> str:
        """How far training looks, in words."""
        return f"{len(self.training)} steps, 0-{self.training[0].ids.shape[1] - 1}"
