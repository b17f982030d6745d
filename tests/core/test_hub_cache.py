"""Whoever gives the root of a hub's cache, or a repository in it, is told where its models are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from diy_core import CheckpointError, DIYConfig
from diy_core.checkpoints.kinds import kind_of
from diy_core.system.hub_cache import snapshots_below
from diy_core.text.tokenizer import Tokenizer


def put(cache: Path, name: str, *revisions: str, main: str = "") -> None:
    for revision in revisions:
        folder = cache / f"models--{name}" / "snapshots" / revision
        folder.mkdir(parents=True)
        for file in ("config.json", "model.safetensors"):
            (folder / file).touch()
    (cache / f"models--{name}" / "refs").mkdir(parents=True)
    if main:
        (cache / f"models--{name}" / "refs" / "main").write_text(f"{main}\n")


@pytest.mark.parametrize("read", [kind_of, DIYConfig.from_pretrained, Tokenizer.from_pretrained])
@pytest.mark.parametrize("place", ["", "hub", "hub/models--a--b", "hub/models--a--b/snapshots"])
def test_the_snapshot_is_named(place: str, read: Callable[[Path], Any], tmp_path: Path) -> None:
    put(tmp_path / "hub", "a--b", "01", "02", main="02")
    snapshot = tmp_path / "hub" / "models--a--b" / "snapshots" / "02"
    with pytest.raises((CheckpointError, ValueError)) as error:
        read(tmp_path / place)
    assert f" {snapshot}" in str(error.value)
    assert str(error.value).endswith(("give that", "give one of them"))


def test_of_each_repository_the_main_revision_is_meant(tmp_path: Path) -> None:
    put(tmp_path, "a--b", "01", "02", main="02")
    put(tmp_path, "c", "9")
    put(tmp_path, "empty")
    (tmp_path / "datasets--d" / "snapshots" / "1").mkdir(parents=True)
    found = [str(path.relative_to(tmp_path)) for path in snapshots_below(tmp_path)]
    assert found == ["models--a--b/snapshots/02", "models--c/snapshots/9"]
    assert snapshots_below(tmp_path / "models--a--b" / "refs") == []
    assert snapshots_below(tmp_path / "no such") == []
