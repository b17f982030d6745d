"""Checkpoints of training runs; see `tests/training_store_tests.py`."""

from __future__ import annotations

from diy_torch.training_store import TrainingStore
from tests.training_store_tests import StoreTests


class TestStore(StoreTests):
    store = TrainingStore
