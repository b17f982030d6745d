"""What both twins are observed to compute."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from parity.batch import Batch
from parity.environment import Device, exact
from parity.random_models import small_configs, write_random_model
from parity.twins import Observation, Pair


@pytest.mark.parametrize("side", ["torch", "flax"])
def test_gradients_by_position_add_up_to_that_of_the_embedding(
    side: str, tmp_path: Path, device: Device
) -> None:
    """Untied: each row of the table has the sum over the positions of its id."""
    config = small_configs()["untied"]
    write_random_model(tmp_path / "m", config, "fan-in")
    ids = np.random.default_rng(0).integers(0, 7, (2, 12)).astype(np.int32)
    batch = Batch(ids, np.array([12, 9], np.int32))
    with exact(device):
        pair = Pair(tmp_path / "m", "float64", device)
        found: Observation = getattr(pair, f"observe_{side}")(batch)
        without: Observation = getattr(pair, f"observe_{side}")(batch, gradients=False)
    assert found.embedded is not None
    assert found.embedded.shape == (11 + 8, config.hidden_size)
    table = np.zeros((config.vocab_size, config.hidden_size))
    np.add.at(table, ids[batch.labels >= 0], found.embedded)
    np.testing.assert_allclose(
        table, found.gradients["model.embed_tokens.weight"], rtol=1e-12, atol=1e-15
    )
    assert without.embedded is None
    np.testing.assert_array_equal(without.logits, found.logits)
