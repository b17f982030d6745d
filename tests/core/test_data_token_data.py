"""Prepared data that is opened: what fits a model, and what is damaged."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diy_core.data import DataError, TokenData, prepare, tokenizer_hash
from diy_core.errors import CheckpointError
from tests.odd_files import ODD_FILES, put_odd_file
from tests.tiny_checkpoints import put_tokenizer


@pytest.fixture
def path(tmp_path: Path) -> Path:
    source = tmp_path / "a.jsonl"
    source.write_text('{"text": "one"}\n{"text": "three"}\n')
    prepare(source, tmp_path / "data", tokenizer="bytes")
    return tmp_path / "data"


def describe(path: Path, **changes: Any) -> None:
    file = path / "data.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_documents_are_read_one_by_one(path: Path) -> None:
    data = TokenData(path)
    assert len(data) == 2
    assert data[1].tolist() == [*b"three", 256]
    assert data.tokens.dtype == np.uint16
    assert not data.tokens[:].flags.writeable
    with pytest.raises(IndexError, match="document 2 of 2"):
        data[2]
    data.verify()


def test_the_files_are_what_is_written_about_them(path: Path) -> None:
    tokens = np.fromfile(path / "tokens.bin", "<u2").tolist()
    assert tokens == [*b"one", 256, *b"three", 256]
    assert np.fromfile(path / "documents.bin", "<i8").tolist() == [4, 10]
    told = json.loads((path / "data.json").read_text())
    assert {k: told[k] for k in ("format", "dtype", "tokens", "documents", "counted")} == {
        "format": 1,
        "dtype": "uint16",
        "tokens": 10,
        "documents": 2,
        "counted": 8,
    }
    assert (told["tokenizer"], told["vocab_size"]) == ("bytes", 257)
    assert (told["largest_id"], told["longest_document"]) == (256, 6)


def test_a_model_must_have_the_tokenizer_and_the_vocabulary(path: Path, tmp_path: Path) -> None:
    data = TokenData(path)
    data.require(257, "bytes")
    data.require(257)
    put_tokenizer(tmp_path)
    other = tokenizer_hash(tmp_path)
    with pytest.raises(DataError, match=f"was tokenised with bytes, the model has .*{other}: prep"):
        data.require(257, other)
    with pytest.raises(DataError, match="holds token id 256, the model's vocab_size is 256: prep"):
        data.require(256, "bytes")


def test_a_directory_without_data_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no data\.json: prepare the data first"):
        TokenData(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "is of format 2, this program reads 1"),
        ({"dtype": "int8"}, "dtype must be one of uint16, uint32, got 'int8'"),
        ({"tokens": "many"}, "tokens must be a whole number"),
        ({"documents": -1}, "documents must be a whole number"),
        ({"tokens": True}, "tokens must be a whole number"),
        ({"documents": 0}, "holds no documents"),
        ({"files": None}, "files is missing"),
        ({"tokens": 9}, r"tokens\.bin has 20 bytes, data\.json says 18\. Copy or prepare"),
        ({"documents": 3}, r"documents\.bin has 16 bytes, data\.json says 24"),
        ({"files": {"counted.bin": {}}}, r"counted\.bin is missing, data\.json says 10"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(
    path: Path, changes: dict[str, Any], message: str
) -> None:
    describe(path, **changes)
    with pytest.raises(DataError, match=message):
        TokenData(path)


@pytest.mark.parametrize("ends", [[4, 9], [10, 4], [0, 10], [-1, 10], [10, 10]])
def test_ends_that_do_not_rise_to_the_last_token_are_refused(path: Path, ends: list[int]) -> None:
    np.array(ends, "<i8").tofile(path / "documents.bin")
    with pytest.raises(DataError, match=r"documents\.bin: is damaged: the ends must rise up to 10"):
        TokenData(path)


def test_damage_of_every_byte_is_found(path: Path) -> None:
    for name in ("tokens.bin", "documents.bin"):
        content = (path / name).read_bytes()
        for cut in (content[:-1], content + b"\0", b""):
            (path / name).write_bytes(cut)
            with pytest.raises(DataError, match=rf"{name} has {len(cut)} bytes"):
                TokenData(path)
        (path / name).write_bytes(content)
    data, content = TokenData(path), (path / "tokens.bin").read_bytes()
    for place in range(len(content)):
        flipped = bytearray(content)
        flipped[place] ^= 1
        (path / "tokens.bin").write_bytes(flipped)
        with pytest.raises(DataError, match=r"tokens\.bin has sha256"):
            data.verify()
    (path / "data.json").write_text("{")
    with pytest.raises(DataError, match="not valid JSON"):
        TokenData(path)


def test_what_is_opened_is_what_is_read_and_verified(path: Path) -> None:
    data = TokenData(path)
    (path / "other").write_bytes(bytes(20))
    os.replace(path / "other", path / "tokens.bin")
    assert data[1].tolist() == [*b"three", 256]
    data.verify()
    with pytest.raises(DataError, match=r"tokens\.bin has sha256"):
        TokenData(path).verify()


def test_a_file_that_becomes_shorter_is_an_error(path: Path) -> None:
    data = TokenData(path)
    os.truncate(path / "tokens.bin", 0)
    with pytest.raises(CheckpointError, match=r"tokens\.bin: has become shorter while it was read"):
        data[1]
    with pytest.raises(DataError, match=r"tokens\.bin: has become shorter while it was read"):
        data.verify()


@pytest.mark.parametrize("kind", ODD_FILES)
@pytest.mark.parametrize("name", ["data.json", "tokens.bin", "documents.bin"])
def test_only_regular_files_are_opened(path: Path, name: str, kind: str) -> None:
    put_odd_file(path / name, kind)
    with pytest.raises(DataError, match=f"{name}: {ODD_FILES[kind]}"):
        TokenData(path)
