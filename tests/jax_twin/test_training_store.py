"""Checkpoints of training runs; see `tests/training_store_tests.py`."""

from __future__ import annotations

from diy_jax.training_store import TrainingStore
from tests.training_store_tests import StoreTests


class TestStore(StoreTests):
    store = TrainingStore
    # Orbax writes 50 to 80 kB beside the arrays, and more or less from run to run.
    most_beside_arrays = 500_000
