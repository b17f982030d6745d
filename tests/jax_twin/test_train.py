"""Runs of this twin: stopped, killed, resumed, exported; see `tests/training_twin_tests.py`."""

from __future__ import annotations

import contextlib
from typing import Any

import jax

from diy_jax.train import assemble
from diy_jax.training_store import TrainingStore
from tests.training_twin_tests import ProcessTests, RunTests


class This:
    package = "diy_jax"
    assemble = staticmethod(assemble)
    store = TrainingStore

    @staticmethod
    def precision(dtype: str) -> contextlib.AbstractContextManager[Any]:
        enabled: contextlib.AbstractContextManager[Any] = jax.enable_x64(dtype == "float64")
        return enabled


class TestRuns(This, RunTests):
    pass


class TestProcesses(This, ProcessTests):
    pass
