"""Runs of this twin: stopped, killed, resumed, exported; see `tests/training_twin_tests.py`."""

from __future__ import annotations

from diy_torch.train import assemble
from diy_torch.training_store import TrainingStore
from tests.training_damage_tests import DamageTests
from tests.training_twin_tests import ProcessTests, RunTests


class This:
    package = "diy_torch"
    assemble = staticmethod(assemble)
    store = TrainingStore


class TestRuns(This, RunTests, DamageTests):
    pass


class TestProcesses(This, ProcessTests):
    pass
