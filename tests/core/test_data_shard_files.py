"""Finished shards: used where they are what was written, and made again where they are not."""

from __future__ import annotations

import json
import os
import socket
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diy_core.data import DataError, prepare
from diy_core.data import sources as cutting
from diy_core.data.merge import merge
from diy_core.data.shard_files import ShardFile
from tests.data_files import files, jsonl, texts

ROWS = [f"document number {i}" for i in range(20)]


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The shards of a preparation of `a.jsonl` that came to its last step and no further."""
    monkeypatch.setattr(cutting, "SHARD_BYTES", 64)
    jsonl(tmp_path / "a.jsonl", [{"text": row} for row in ROWS])
    with monkeypatch.context() as patch:

        def no_space(*_: object) -> None:
            raise OSError(28, "No space left on device")

        patch.setattr("diy_core.data.preparation.merge", no_space)
        with pytest.raises(OSError, match="No space"):
            prepare(tmp_path / "a.jsonl", tmp_path / "out", tokenizer="bytes")
    return sorted((tmp_path / ".out.parts").glob("*.npz"))


def opened(path: Path) -> ShardFile:
    with zipfile.ZipFile(path) as archive:
        return ShardFile(path, json.loads(archive.read("seal.json"))["made_of"])


def with_other_tokens(path: Path) -> None:
    with np.load(path) as arrays:
        content = dict(arrays)
    content["tokens"][5] = 60000
    np.savez(path, **content)


def with_the_old_seal(path: Path) -> None:
    """Other tokens, in a file that is a shard in every other respect."""
    with zipfile.ZipFile(path) as archive:
        seal = archive.read("seal.json")
    with_other_tokens(path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist() if name[-4:] == ".npy"}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {**members, "seal.json": seal}.items():
            archive.writestr(name, content)


def packed(path: Path) -> None:
    """The same content, deflated: what unpacks may unpack without end."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def in_its_place(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def act(path: Path) -> None:
        path.unlink()
        make(path)

    return act


def listen(path: Path) -> None:
    os.chdir(path.parent)  # names of sockets are short
    with socket.socket(socket.AF_UNIX) as channel:
        channel.bind(path.name)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut": lambda path: os.truncate(path, path.stat().st_size - 30),
    "empty": lambda path: os.truncate(path, 0),
    "other tokens": with_other_tokens,
    "other tokens under the old seal": with_the_old_seal,
    "packed": packed,
    "of the next place": lambda path: path.write_bytes(path.with_name("00000003.npz").read_bytes()),
    "of other settings": lambda path: ShardFile(path, "other").save(opened(path).load()),
    "missing": lambda path: path.unlink(),
    "a FIFO": in_its_place(os.mkfifo),
    "a socket": in_its_place(listen),
    "a link to nothing": in_its_place(lambda path: path.symlink_to("nothing")),
    "a link to itself": in_its_place(lambda path: path.symlink_to(path.name)),
}


def test_finished_shards_are_used(tmp_path: Path, kept: list[Path]) -> None:
    file = opened(kept[0])
    shard = file.load()
    tokens = shard.tokens.copy()
    tokens[:3] = 65  # a mark
    file.save(type(shard)(**{**vars(shard), "tokens": tokens}))
    data = prepare(tmp_path / "a.jsonl", tmp_path / "out", tokenizer="bytes")
    assert texts(data) == ["AAAument number 0", *ROWS[1:]]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_shard_that_is_not_what_was_written_is_made_again(
    tmp_path: Path, kept: list[Path], damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    DAMAGES[damage](kept[2])
    data = prepare(tmp_path / "a.jsonl", tmp_path / "out", tokenizer="bytes")
    assert texts(data) == ROWS
    assert not kept[2].parent.exists()


def test_no_byte_of_a_shard_can_change_unseen(tmp_path: Path, kept: list[Path]) -> None:
    whole, file = kept[1].read_bytes(), opened(kept[1])
    shard = file.load()
    for at in range(0, len(whole), 5):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << at % 8
        kept[1].write_bytes(damaged)
        # A bit that neither numpy nor the sums read, such as the time in the archive, may change.
        if file.is_whole():
            for name, array in vars(file.load()).items():
                np.testing.assert_array_equal(array, getattr(shard, name), strict=True)


def test_two_shards_that_changed_places_are_made_again(tmp_path: Path, kept: list[Path]) -> None:
    one, two = kept[0].read_bytes(), kept[1].read_bytes()
    kept[0].write_bytes(two)
    kept[1].write_bytes(one)
    data = prepare(tmp_path / "a.jsonl", tmp_path / "out", tokenizer="bytes")
    assert texts(data) == ROWS


def test_a_shard_that_changes_before_it_is_merged_is_an_error_and_goes(
    tmp_path: Path, kept: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = files(prepare(tmp_path / "a.jsonl", tmp_path / "other", tokenizer="bytes").path)

    def meanwhile(*arguments: Any) -> None:
        with_other_tokens(kept[1])
        merge(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr("diy_core.data.preparation.merge", meanwhile)
        with pytest.raises(DataError, match=r"00000001\.npz: was changed after it was written"):
            prepare(tmp_path / "a.jsonl", tmp_path / "out", tokenizer="bytes")
    assert not kept[1].exists()
    prepare(tmp_path / "a.jsonl", tmp_path / "out", tokenizer="bytes")
    assert files(tmp_path / "out") == expected


def test_nothing_is_written_through_what_has_the_temporary_name(
    tmp_path: Path, kept: list[Path]
) -> None:
    (tmp_path / "mine").write_text("mine")
    kept[0].unlink()
    kept[0].with_suffix(".tmp").symlink_to(tmp_path / "mine")
    data = prepare(tmp_path / "a.jsonl", tmp_path / "out", tokenizer="bytes")
    assert texts(data) == ROWS
    assert (tmp_path / "mine").read_text() == "mine"
