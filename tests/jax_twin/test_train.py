"""Runs of this twin: stopped, killed, resumed, exported; see `tests/training_twin_tests.py`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax

from diy_jax.train import assemble
from diy_jax.training_store import TrainingStore
from tests.jax_cache import compiled_once
from tests.training_damage_tests import DamageTests
from tests.training_twin_tests import ProcessTests, RunTests


class This:
    package = "diy_jax"
    assemble = staticmethod(assemble)
    store = TrainingStore

    @staticmethod
    @contextlib.contextmanager
    def precision(dtype: str) -> Iterator[None]:
        with jax.enable_x64(dtype == "float64"), compiled_once():
            yield


class TestRuns(This, RunTests, DamageTests):
    pass


class TestProcesses(This, ProcessTests):
    pass
