"""GGUF files that were split: read whole from any part, as the gguf library splits them."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest

from diy_core import CheckpointError
from diy_core.checkpoints.gguf.file import metadata_of, open_gguf
from diy_core.checkpoints.gguf.parts import open_parts
from diy_core.checkpoints.gguf.reader import GGUFReader
from diy_core.checkpoints.gguf.writer import GGUFWriter, add_entry
from diy_core.checkpoints.hf.directory import HFReader
from diy_core.checkpoints.transfer import transfer
from tests.gguf_files import split
from tests.oracles import tiny
from tests.tiny_checkpoints import put, put_tokenizer, same, weights

CONFIG = tiny(vocab_size=270)


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    source = put(tmp_path / "hf", weights(CONFIG), CONFIG)
    put_tokenizer(source)
    transfer(HFReader(source), functools.partial(GGUFWriter, tmp_path / "whole.gguf"))
    return tmp_path / "whole.gguf"


def test_any_part_stands_for_all(whole: Path, tmp_path: Path) -> None:
    parts = split(whole, "m.gguf")
    assert [part.name for part in parts] == [f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    expected = GGUFReader(whole)
    for part in parts:
        reader = GGUFReader(part)
        assert reader.files == parts
        assert reader.config == expected.config
        assert same(dict(reader.read_all(verify=True)), weights(CONFIG))
        assert reader.notes == []
    side = tmp_path / "side"
    side.mkdir()
    GGUFReader(parts[2]).copy_side_files(side)
    assert (side / "tokenizer.json").read_bytes() == (tmp_path / "hf/tokenizer.json").read_bytes()


def test_a_missing_part_is_named(whole: Path) -> None:
    parts = split(whole, "m.gguf")
    parts[1].unlink()
    words = r"is one of 3 parts of a split model, and m-00002-of-00003\.gguf is not beside it: get"
    for part in (parts[0], parts[2]):
        with pytest.raises(CheckpointError, match=words):
            GGUFReader(part)
    parts[2].unlink()
    with pytest.raises(CheckpointError, match=r"m-00002-of-00003\.gguf, m-00003-of-0.* are not"):
        GGUFReader(parts[0])


@pytest.mark.parametrize("name", ["model.gguf", "m-00002-of-00003.gguf", "m-00001-of-00004.gguf"])
def test_a_part_by_another_name_says_which_it_needs(whole: Path, name: str) -> None:
    first = split(whole, "m.gguf")[0]
    other = first.with_name("elsewhere") / name
    other.parent.mkdir()
    shutil.copy(first, other)
    words = r"is part 1 of 3 of one model, .*: call it NAME-00001-of-00003\.gguf"
    with pytest.raises(CheckpointError, match=words):
        GGUFReader(other)


def test_the_same_part_twice_is_no_other_part(whole: Path) -> None:
    parts = split(whole, "m.gguf")
    shutil.copy(parts[1], parts[2])
    words = r"m-00003-of-00003\.gguf: split\.no is 1, expected 2: it is a part of another model"
    with pytest.raises(CheckpointError, match=words):
        GGUFReader(parts[0])


def test_a_part_of_another_split_is_refused(whole: Path) -> None:
    parts, others = split(whole, "m.gguf"), split(whole, "n.gguf", tensors=11)
    assert len(others) == 2
    shutil.copy(others[1], parts[1])
    with pytest.raises(CheckpointError, match=r"split\.count is 2, expected 3"):
        GGUFReader(parts[0])


def test_a_whole_file_is_no_part(whole: Path) -> None:
    parts = split(whole, "m.gguf")
    shutil.copy(whole, parts[1])
    with pytest.raises(CheckpointError, match=r"m-00002-of-00003\.gguf: has no split\.no, as a"):
        GGUFReader(parts[0])


@pytest.mark.parametrize("count", [0, 1])
def test_a_split_into_one_part_may_have_any_name(whole: Path, count: int) -> None:
    rewritten(whole, tensors=100, **{"split.count": count, "split.no": 0})
    assert metadata_of(open_gguf(whole))["split.count"] == count
    found = open_parts(whole)
    assert found.files == [whole]
    assert len(found.tensors) == 20
    assert not [key for key in found.metadata if key.startswith("split.")]


@pytest.mark.parametrize("number", [3, "1", None])
def test_a_part_without_a_number_in_its_range_is_refused(whole: Path, number: object) -> None:
    parts = split(whole, "m.gguf")
    rewritten(parts[1], tensors=8, **{"split.no": number})
    words = rf"m-00002-of-00003\.gguf: split\.no is {number!r} and split\.count is 3"
    with pytest.raises(CheckpointError, match=words):
        GGUFReader(parts[1])


def rewritten(part: Path, *, tensors: int, extra: tuple[str, ...] = (), **said: object) -> None:
    """A part with only its first tensors, others by name, and other entries; None: left out."""
    source = gguf.GGUFReader(part)
    writer = gguf.GGUFWriter(part.with_name("new"), "llama")
    entries = {key: field.contents() for key, field in source.fields.items() if "split." in key}
    for key, value in (entries | said).items():
        add_entry(writer, key, value)
    for tensor in source.tensors[:tensors]:
        writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
    for name in extra:
        writer.add_tensor(name, np.ones(16, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    part.with_name("new").rename(part)


def test_tensors_are_counted_and_stand_in_one_part_only(whole: Path) -> None:
    parts = split(whole, "m.gguf")
    rewritten(parts[2], tensors=3)
    with pytest.raises(CheckpointError, match=r"hold 19 tensors, and split\.tensors\.count is 20"):
        GGUFReader(parts[0])
    name = gguf.GGUFReader(parts[0]).tensors[1].name
    rewritten(parts[2], tensors=3, extra=(name,))
    words = rf"tensor {name} is in m-00001-of-00003\.gguf and in m-00003-of-00003\.gguf"
    with pytest.raises(CheckpointError, match=words):
        GGUFReader(parts[0])


def test_a_part_that_is_damaged_is_named(whole: Path) -> None:
    parts = split(whole, "m.gguf")
    parts[1].write_bytes(parts[1].read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"m-00002-of-00003\.gguf: "):
        GGUFReader(parts[0])
