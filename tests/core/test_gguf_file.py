"""A GGUF file is read and never mapped: it may become shorter, or say anything of its length."""

from __future__ import annotations

import os
import re
import struct
import time
import tracemalloc
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from diy_core.checkpoints.gguf import file as gguf_file
from diy_core.checkpoints.gguf.file import metadata_of, open_gguf
from diy_core.errors import CheckpointError
from tests.odd_files import ODD_FILES, put_odd_file

NUMBERS = list(range(300_000))  # more than is read ahead


@pytest.fixture
def file(tmp_path: Path) -> Path:
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_array("numbers", NUMBERS)
    writer.add_array("words", ["one", "two", "three"])
    writer.add_tensor("a", np.arange(12, dtype=np.float32).reshape(3, 4))
    writer.add_tensor("rope_freqs.weight", np.arange(4, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path / "x.gguf"


def test_it_says_what_the_library_says(file: Path) -> None:
    ours, theirs = open_gguf(file), gguf.GGUFReader(file)
    assert list(ours.fields) == list(theirs.fields)
    for name, value in metadata_of(ours).items():
        assert value == theirs.fields[name].contents()
    for one, other in zip(ours.tensors, theirs.tensors, strict=True):
        for what in ("name", "tensor_type", "n_elements", "n_bytes", "data_offset"):
            assert getattr(one, what) == getattr(other, what)
        assert one.shape.tolist() == other.shape.tolist()


def test_of_tensors_only_the_factors_of_rope_have_their_values(file: Path) -> None:
    values = {tensor.name: tensor.data for tensor in open_gguf(file).tensors}
    assert values["a"] is None
    assert values["rope_freqs.weight"].tolist() == [0, 1, 2, 3]


def test_a_file_that_becomes_shorter_is_an_error(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_and_fill(stream: Any, path: Path, start: int, buffer: memoryview) -> None:
        if start:
            os.truncate(file, 4096)
        usual(stream, path, start, buffer)

    usual = gguf_file.fill
    monkeypatch.setattr(gguf_file, "fill", cut_and_fill)
    with pytest.raises(CheckpointError, match=r"x\.gguf: has become shorter while it was read"):
        open_gguf(file)


def test_metadata_have_a_limit(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIY_LIMITS", "gguf_bytes=1048576")
    with pytest.raises(CheckpointError, match="its metadata are longer than 1048576 bytes"):
        open_gguf(file)


@pytest.mark.parametrize("kind", ODD_FILES)
def test_only_regular_files_are_opened(file: Path, kind: str) -> None:
    put_odd_file(file, kind)
    with pytest.raises(CheckpointError, match=ODD_FILES[kind]):
        open_gguf(file)


def _text(content: bytes) -> bytes:
    return struct.pack("<Q", len(content)) + content


HOLES = {
    "empty texts": (1, _text(b"x") + struct.pack("<IIQ", 9, 8, 8_000_000), "gguf_items=N"),
    "numbers": (1, _text(b"x") + struct.pack("<IIQ", 9, 0, 64_000_000), "gguf_items=N"),
    "a long text": (1, _text(b"x") + struct.pack("<IQ", 8, 90_000_000), "gguf_bytes=N"),
    "a long name": (1, struct.pack("<Q", 60_000_000), "name of 60000000 bytes"),
    "entries": (5_000_000, b"", "gguf_entries=N"),
    "lists of lists": (1, _text(b"x") + struct.pack("<IIQ", 9, 9, 1_000_000), "array of arrays"),
}


@pytest.mark.parametrize("kind", [*HOLES, "tensors", "axes"])
def test_sizes_are_not_believed(kind: str, tmp_path: Path) -> None:
    tensors = {"tensors": (4_000_000, b""), "axes": (1, _text(b"t") + struct.pack("<I", 5_000_000))}
    count, head = tensors.get(kind, (0, b""))
    entries, more, said = HOLES.get(kind, (0, head, "gguf_tensors=N" if count > 1 else "axes"))
    with (tmp_path / "x.gguf").open("wb") as stream:
        stream.write(b"GGUF" + struct.pack("<IQQ", 3, count, entries) + more)
        stream.truncate(100_000_000)  # a hole: 4 kB on the disk
    tracemalloc.start()
    begin = time.process_time()
    with pytest.raises(CheckpointError, match=rf"x\.gguf: is not a readable GGUF file: .*{said}"):
        open_gguf(tmp_path / "x.gguf")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 180 << 20
    assert time.process_time() - begin < 10


_ONE = _text(b"x") + struct.pack("<IB", 7, 1)
_TENSOR = _text(b"t") + struct.pack("<IQ", 1, 32)


@pytest.mark.parametrize(
    ("version", "tensors", "entries", "content", "said"),
    [
        (3, 0, 1, _text(b"x") + struct.pack("<II", 99, 0), "its entry 'x' is of type 99, which"),
        (3, 0, 1, _text(b"x") + struct.pack("<IIQ", 9, 77, 1), "its entry 'x' is of type 77, wh"),
        (3, 0, 2, _ONE + _ONE, "it has the entry 'x' twice"),
        (3, 1, 0, _TENSOR + struct.pack("<IQ", 555, 0), "tensor t is of type 555, which is unkn"),
        (3, 1, 0, _TENSOR + struct.pack("<IQ", 0, 2**64 - 32), "what it describes at byte 18446"),
        (3, 1, 0, _TENSOR[:-8] + struct.pack("<QIQ", 2**63, 0, 0), "tensor t has the shape .9223"),
        (7, 0, 0, b"", "is a GGUF file of version 7; versions 2 and 3 are read"),
    ],
)
def test_what_gguf_has_not_is_named_in_our_words(
    tmp_path: Path, version: int, tensors: int, entries: int, content: bytes, said: str
) -> None:
    head = b"GGUF" + struct.pack("<IQQ", version, tensors, entries)
    (tmp_path / "x.gguf").write_bytes(head + content + bytes(64))
    with pytest.raises(CheckpointError, match=said) as error:
        open_gguf(tmp_path / "x.gguf")
    assert not re.search(r"np\.|GGML|GGUFValue|KeyError", str(error.value))


def test_text_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    entry = _text(b"x") + struct.pack("<I", 8) + _text(b"\xff\xfe")
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + entry + bytes(64))
    with pytest.raises(ValueError, match=r"its entry 'x' is not UTF-8: .* byte 0xff"):
        metadata_of(open_gguf(tmp_path / "x.gguf"))
