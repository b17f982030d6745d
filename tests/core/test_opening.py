"""Opening a checkpoint of any kind, and its tokenizer."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path

import pytest

from diy_core import CheckpointError
from diy_core.checkpoints.gguf.writer import GGUFWriter
from diy_core.checkpoints.hf.directory import HFReader
from diy_core.checkpoints.opening import READERS, open_with, tokenizer_of
from diy_core.checkpoints.transfer import transfer
from tests.oracles import tiny
from tests.tiny_checkpoints import build_tokenizer, put, put_tokenizer, same, weights

CONFIG = tiny(vocab_size=264)  # rows for all tokens


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = put(tmp_path / "hf", weights(CONFIG), CONFIG)
    put_tokenizer(path)
    return path


def written_as_gguf(source: Path) -> Path:
    file = source.with_name("model.gguf")
    transfer(HFReader(source), functools.partial(GGUFWriter, file))
    return file


def test_each_kind_is_read_by_its_reader(source: Path) -> None:
    for path in (source, written_as_gguf(source)):
        assert same(dict(open_with(path, READERS).read_all()), weights(CONFIG))


def test_a_kind_without_a_reader_has_a_command(source: Path) -> None:
    file = written_as_gguf(source)
    with pytest.raises(CheckpointError, match="is a GGUF file, which is not read here: `parity"):
        open_with(file, {"hf": HFReader})


def test_every_kind_has_the_same_tokenizer(source: Path, tmp_path: Path) -> None:
    steps = tmp_path / "steps"  # Orbax's, whose tokenizer lies beside the steps
    (steps / "100" / "default").mkdir(parents=True)
    (steps / "100" / "default" / "_METADATA").touch()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, steps)
    expected = build_tokenizer().encode("he 2 the").ids
    for path in (source, written_as_gguf(source), steps, steps / "100"):
        tokenizer = tokenizer_of(path)
        assert tokenizer.encode("he 2 the") == expected
        with pytest.raises(ValueError, match=rf"^{tmp_path}/.* has no chat template"):
            tokenizer.chat([{"role": "user", "content": "hi"}])


def test_a_gguf_file_without_a_tokenizer_says_where_to_put_one(source: Path) -> None:
    (source / "tokenizer.json").unlink()
    file = written_as_gguf(source)
    words = rf"^{file}: has no tokenizer; `parity convert {file} DIR --to hf` makes a directory to"
    with pytest.raises(CheckpointError, match=words):
        tokenizer_of(file)


def test_what_is_wrong_in_a_file_is_said_of_the_file(source: Path) -> None:
    """And not of the directory that its tokenizer is unpacked into, which is gone by then."""
    file = written_as_gguf(source)
    content, good = file.read_bytes(), rb"\"bos_token\": \"<|begin|>\""
    assert content.count(good) == 1
    file.write_bytes(content.replace(good, rb"\"bos_token\": 1234567890123"))
    with pytest.raises(CheckpointError, match="bos_token must be a token") as refused:
        tokenizer_of(file)
    assert str(refused.value).startswith(f"{file}: ")
    assert len(refused.value.faults) == 1
