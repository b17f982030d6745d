"""What the twins are fed with: the edges of the vocabulary are there, as ids and as labels."""

from __future__ import annotations

import numpy as np
import pytest

from diy_core.config import DIYConfig
from parity.batch import Batch, random_ids
from parity.check.cache_documents import Document
from parity.check.inputs import Inputs
from parity.check.long_context import Far
from parity.check.packing import Packed
from parity.check.plan import Plan
from tests.oracles import tiny

LAST = 1_000_002  # chance does not draw it, nor 0
PLAN = Plan(training_steps=2, training_rows=2)


def fed(config: DIYConfig) -> dict[str, Batch]:
    """The batch of each kind of check."""
    inputs = Inputs.make(config, PLAN)
    packed = Packed.make(config, PLAN.packed, 0)
    document = Document.make(config, PLAN.cache_rows, PLAN.cache_chunk, PLAN.cache_prefix, 0)
    return {
        "logits": inputs.batch,
        "ragged": inputs.ragged,
        "decode": inputs.decoding.batch,
        "training": inputs.training[-1],
        "packed": packed.documents,
        "context": Far.make(config, 0).batch,
        "cache-gradients": document.batch,
    }


@pytest.mark.parametrize("limit", [2048, 300, 12])
def test_every_batch_has_the_first_and_the_last_id(limit: int) -> None:
    config = tiny(vocab_size=LAST + 1, max_position_embeddings=limit)
    for kind, batch in fed(config).items():
        ids, labels = batch.ids[0, : batch.lengths[0]], batch.labels[0]
        assert {0, LAST} <= set(ids[:4]), kind
        assert {0, LAST} <= set(labels[:4]), kind
    decoded = fed(config)["decode"]
    assert decoded.ids[0, -2:].tolist() == [LAST, 0]
    assert decoded.lengths[0] == decoded.ids.shape[1]


@pytest.mark.parametrize("columns", range(1, 8))
def test_the_others_are_drawn(columns: int) -> None:
    ids = random_ids(np.random.default_rng(0), LAST + 1, (2, columns))
    drawn = np.random.default_rng(0).integers(0, LAST + 1, (2, columns), np.int32)
    edges = np.isin(ids[0], (0, LAST))
    assert edges.sum() == (
        min(columns - 1, 2) if columns < 5 else len({1, 2, columns - 2, columns - 1})
    )
    assert (ids[0] == drawn[0])[~edges].all()
    assert (ids[1] == drawn[1]).all()
    assert {0, LAST} <= set(ids[0]) or columns < 3


def test_batches_have_a_third_row() -> None:
    found = fed(tiny(max_position_embeddings=2048))
    for kind in ("ragged", "packed", "cache-gradients"):
        assert len(found[kind].ids) > 2, kind
        assert len(set(found[kind].lengths.tolist())) > 2, kind
