"""What the tests of the training loop share, and those that become another user."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.core.training_fake import Runner


@pytest.fixture
def without_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    return Runner(tmp_path / "run")


@pytest.fixture
def folder_of_all() -> Iterator[Path]:
    """A folder that all can reach; those of pytest are for their owner alone."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)
