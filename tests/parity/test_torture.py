"""A short sample of `make torture` (tests/torture), and the order of syncing and moving."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from diy_core.system import renaming
from parity.convert.formats import convert
from tests.torture import bits, disks, headers, kills, sources, writers
from tests.torture.common import KINDS, TINY, shards, target_of, write_model
from tests.torture.forks import ForkServer


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    with ForkServer() as server:
        yield server


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_conversion_leaves_the_old_checkpoint_or_the_new_one(
    tmp_path: Path, server: ForkServer, kind: str
) -> None:
    with_overwrite, without = kills.run(4, 1, tmp_path, server, [kind])
    assert with_overwrite.outcomes.keys() <= {"old", "new", "finished"}
    assert without.outcomes.keys() <= {"absent", "new", "finished"}
    assert with_overwrite.trials == without.trials == 4


def test_a_file_that_may_not_grow_is_one_clear_error(tmp_path: Path, server: ForkServer) -> None:
    for figures in disks.run_limits(6, 1, tmp_path, server):
        assert figures.outcomes["refused"] >= 3


def test_a_full_or_read_only_disk_is_one_clear_error(tmp_path: Path) -> None:
    try:
        prefix = disks.name_space()
    except PermissionError as error:
        pytest.skip(f"no mounts of its own: {error}")
    with ForkServer(prefix) as server:
        found = disks.run_mounts(4, 1, tmp_path, server)
    assert len(found) == 9
    refused = {one.name: one.outcomes["refused"] for one in found}
    assert all(refused[f"disk full, {kind}"] >= 2 for kind in KINDS)
    assert all(refused[f"read-only, {kind}"] == 2 for kind in KINDS)


def test_of_eight_writers_one_stays_whole_and_nothing_that_is_added_is_lost(
    tmp_path: Path, server: ForkServer
) -> None:
    found = writers.run(3, 1, tmp_path, server, ["hf", "gguf"])
    for with_overwrite, without in (found[:2], found[2:]):
        assert with_overwrite.outcomes == {"written": 24, "refused": 0}
        assert without.outcomes == {"written": 3, "refused": 21}


@pytest.mark.parametrize("kind", ["hf", "gguf"])  # Orbax takes a second for each
def test_a_source_that_is_replaced_is_refused_or_whole(
    tmp_path: Path, server: ForkServer, kind: str
) -> None:
    replaced, odd = sources.run(4, 1, tmp_path, server, [kind], ["holes"])
    assert replaced.outcomes.keys() <= {"old", "new", "refused"}
    assert replaced.trials == 4
    assert odd.outcomes["refused"] > 0


@pytest.mark.parametrize("name", headers.TARGETS)
def test_a_damaged_header_is_refused_or_read_as_it_says(tmp_path: Path, name: str) -> None:
    trials = 20 if headers.TARGETS[name].checkpoint == "orbax" else 120
    (figures,) = headers.run(round(trials / headers.TARGETS[name].share), 1, tmp_path, [name])
    assert figures.trials == trials
    assert figures.outcomes["refused"] + figures.outcomes["loaded, sums refused"] > 0


@pytest.mark.parametrize("name", bits.FORMATS)
def test_a_flipped_bit_in_the_weights_is_found(tmp_path: Path, name: str) -> None:
    (figures,) = bits.run(10, 1, tmp_path, [name])
    assert figures.trials == 10


def test_a_damaged_source_is_one_clear_error(tmp_path: Path, server: ForkServer) -> None:
    for figures in bits.run_messages(6, 1, tmp_path, server):
        assert figures.trials == 6
        assert figures.outcomes["refused"] >= 2  # of Orbax's bits some hold no weight


@pytest.mark.parametrize("before", [True, False], ids=["replaced", "new"])
@pytest.mark.parametrize("kind", KINDS)
def test_everything_is_on_the_disk_before_the_move(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, before: bool
) -> None:
    target = target_of(kind, tmp_path)
    for seed in (1, 2):
        write_model(tmp_path / f"source-{seed}", TINY, seed)
    if before:
        convert(tmp_path / "source-1", target, to=kind, **shards(kind))
    synced: dict[str, int] = {}  # when each file was last changed, at the time it was synced
    moved: dict[str, int] = {}  # the same at the time of the move, under the names after it
    after: list[str] = []
    usual_sync, usual_exchange = os.fsync, renaming._rename

    def sync(descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        synced[path] = os.fstat(descriptor).st_mtime_ns
        if moved:
            after.append(path)
        usual_sync(descriptor)

    def record(old: Path, new: Path) -> None:
        if new == target:
            assert not moved, "moved twice"
            moved.update({name.replace(str(old), str(new), 1): n for name, n in synced.items()})

    def exchange(old: Path, new: Path, how: int) -> bool:
        record(old, new)
        return usual_exchange(old, new, how)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(renaming, "_rename", exchange)
    for name in ("rename", "replace"):
        usual = getattr(Path, name)
        monkeypatch.setattr(Path, name, lambda old, new, u=usual: (record(old, new), u(old, new)))
    convert(tmp_path / "source-2", target, to=kind, **shards(kind), overwrite=before)
    files = [target, *target.rglob("*")]
    assert len(files) == 1 if kind == "gguf" else len(files) > 3
    for file in files:
        assert str(file) in moved, f"{file} was moved before it was synced"
        if file.is_file():
            assert moved[str(file)] == file.stat().st_mtime_ns, f"{file} was written afterwards"
    assert after == [str(tmp_path)]  # and then the move itself
