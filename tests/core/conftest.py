"""What the tests of the training loop share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.core.training_fake import Runner


@pytest.fixture
def without_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    return Runner(tmp_path / "run")
