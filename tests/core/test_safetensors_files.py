"""safetensors files written tensor by tensor, and read back by the safetensors library."""

from __future__ import annotations

import hashlib
import json
import os
import random
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from diy_core import CheckpointError
from diy_core.checkpoints.hf import safetensors_files
from diy_core.checkpoints.hf.safetensors_files import (
    SafetensorsWriter,
    read_header,
    read_slot,
    sum_of_slot,
)
from diy_core.checkpoints.hf.writer import plan_shards
from diy_core.checkpoints.interface import Stored
from tests.tiny_checkpoints import DTYPES, Arrays, same, weights


def mixed() -> Arrays:
    """Odd sizes in every dtype, narrow ones first: alignment has to be made."""
    dtypes = ["bfloat16", "float32", "float16", "float64"]
    draw = np.random.default_rng(0)
    return {
        f"w{i}": draw.normal(size=(3, i % 5 + 1)).astype(DTYPES[dtypes[i % 4]]) for i in range(13)
    }


def write(file: Path, arrays: Arrays, order: Any = None) -> Path:
    layout = {name: (array.shape, array.dtype) for name, array in arrays.items()}
    writer = SafetensorsWriter(file, layout)
    for name in order or arrays:
        assert not writer.complete
        writer.write(name, arrays[name])
    assert writer.complete
    writer.close()
    return file


def header(file: Path) -> tuple[int, dict[str, Any]]:
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return 8 + length, json.loads(content[8 : 8 + length])


@pytest.mark.parametrize("seed", range(3))
def test_the_library_reads_what_was_written_in_any_order(tmp_path: Path, seed: int) -> None:
    arrays = mixed()
    order = random.Random(seed).sample(list(arrays), len(arrays))
    file = write(tmp_path / "m.safetensors", arrays, order)
    assert same(safetensors.numpy.load_file(file), arrays)
    with safetensors.safe_open(file, framework="np") as opened:
        assert opened.metadata() == {"format": "pt"}


def test_every_tensor_is_aligned_to_its_items(tmp_path: Path) -> None:
    arrays = mixed()
    begin, entries = header(write(tmp_path / "m.safetensors", arrays))
    assert begin % 8 == 0
    for name, array in arrays.items():
        assert (begin + entries[name]["data_offsets"][0]) % array.itemsize == 0


@pytest.mark.parametrize("piece", [1, 16, 1 << 20])
def test_transposed_arrays_and_small_pieces_come_out_alike(
    tmp_path: Path, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(safetensors_files, "PIECE", piece)
    arrays = mixed()
    views = {name: np.asfortranarray(array) for name, array in arrays.items()}
    file = write(tmp_path / "m.safetensors", views)
    assert same(safetensors.numpy.load_file(file), arrays)
    for name, slot in read_header(file).items():
        assert read_slot(slot).tobytes() == arrays[name].tobytes()
        assert sum_of_slot(slot) == hashlib.sha256(arrays[name].tobytes()).hexdigest()


def test_a_system_that_writes_half_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = os.pwrite
    monkeypatch.setattr(
        os, "pwrite", lambda file, data, at: usual(file, data[: len(data) // 2 + 1], at)
    )
    assert same(safetensors.numpy.load_file(write(tmp_path / "m", mixed())), mixed())


def test_a_file_in_the_way_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "m").write_text("mine")
    with pytest.raises(FileExistsError):
        SafetensorsWriter(tmp_path / "m", {})
    assert (tmp_path / "m").read_text() == "mine"


def test_a_file_that_became_shorter_is_noticed(tmp_path: Path) -> None:
    file = write(tmp_path / "m.safetensors", mixed())
    slots = read_header(file)
    last = max(slots.values(), key=lambda slot: slot.end)
    os.truncate(file, last.end - 1)
    for look in (read_slot, sum_of_slot):
        with pytest.raises(CheckpointError, match="has become shorter while it was read"):
            look(last)
    file.unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_slot(last)


def layout(arrays: Mapping[str, np.ndarray]) -> dict[str, Stored]:
    return {name: Stored(array.shape, array.dtype) for name, array in arrays.items()}


@pytest.mark.parametrize("limit", [1, 1500, 3000, 6000, 1 << 30])
def test_shards_are_as_full_as_they_may_be(tmp_path: Path, limit: int) -> None:
    arrays = weights()
    shards = plan_shards(layout(arrays), limit)
    count = len(shards)
    assert [name for names in shards.values() for name in names] == list(arrays)
    if count == 1:
        assert list(shards) == ["model.safetensors"]
    else:
        wanted = [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
        assert list(shards) == wanted
    sizes = []
    for file, names in shards.items():
        write(tmp_path / file, {name: arrays[name] for name in names})
        sizes.append((tmp_path / file).stat().st_size)
        assert sizes[-1] <= limit or len(names) == 1
    # Another tensor would not have fitted, but for the bytes that are kept for headers.
    headers = 128 * (2 + max(map(len, shards.values()))) + 64 * len(arrays)
    for size, following in zip(sizes, list(shards.values())[1:], strict=False):
        assert size + arrays[following[0]].nbytes + headers > limit
    assert {1: count == len(arrays), 1 << 30: count == 1}.get(limit, 1 < count < len(arrays))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"<!DOCTYPE html>\n<html>", "it is a text that begins with '<!DOCTYPE html>', such as an"),
        (
            b"PK\x03\x04" + b"\0" * 60,
            "it is a zip archive of pickled weights, as torch.save writes",
        ),
        (b"\x80\x02}q\0" + b"\0" * 60, "it is a file of pickled weights, as torch.save writes"),
        (b"GGUF\x03\0\0\0" + b"\0" * 60, "it is a GGUF file: give it by itself"),
        (b"\x1f\x8b\x08\0" + b"\xff" * 60, "it is packed with gzip: unpack it first"),
        (b"\nEntry not found\n", "it is a text that begins with 'Entry not found', such as an"),
        (b"<!DOCTYPE \x00html>", "a header of"),
        (b" " * 9, "a header of"),
        (b"text", "a header of"),
    ],
)
def test_a_page_in_place_of_the_file_is_called_a_text(
    tmp_path: Path, content: bytes, said: str
) -> None:
    file = tmp_path / "m.safetensors"
    file.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_header(file)
    assert f"m.safetensors: is not a readable safetensors file: {said}" in str(caught.value)
