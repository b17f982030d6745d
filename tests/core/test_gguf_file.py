"""A GGUF file is read and never mapped: it may become shorter, or say anything of its length."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from diy_core.checkpoints import gguf_file
from diy_core.checkpoints.gguf_file import open_gguf
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
    for name in ours.fields:
        assert ours.fields[name].contents() == theirs.fields[name].contents()
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
