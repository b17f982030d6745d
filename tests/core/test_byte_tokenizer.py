"""The files of the tokenizer that needs none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st

from diy_core.checkpoints.gguf.vocabulary import vocabulary_metadata
from diy_core.data import BYTES, prepare, tokenizer_hash
from diy_core.errors import CheckpointError
from diy_core.text.byte_tokenizer import is_byte_tokenizer, write_byte_tokenizer
from diy_core.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bytes")
    write_byte_tokenizer(folder)
    return folder


@given(text=st.text().filter(lambda text: "<|endoftext|>" not in text))
def test_every_byte_of_a_text_is_a_token(folder: Path, text: str) -> None:
    tokenizer = Tokenizer.from_pretrained(folder)
    assert tokenizer.encode(text) == list(text.encode())
    assert tokenizer.decode(list(text.encode())) == text


def test_all_bytes_are_there_and_one_end(folder: Path) -> None:
    tokenizer = Tokenizer.from_pretrained(folder)
    assert (tokenizer.vocab_size, tokenizer.eos_token_ids) == (257, [256])
    every = bytes(range(256))
    assert tokenizer.decode(list(every)) == every.decode(errors="replace")
    assert tokenizer.decode([72, 105, 256]) == "Hi"


def test_transformers_reads_the_same(folder: Path) -> None:
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    text = "Gr\u00fc\u00dfe  \u4e16\u754c\U0001f600\x00\x7f\u00ad\ufffd\ta\n\r "
    assert theirs(text)["input_ids"] == list(text.encode())
    assert theirs.decode(list(text.encode())) == text
    assert (theirs.eos_token_id, len(theirs)) == (256, 257)
    settings = transformers.GenerationConfig.from_pretrained(folder)
    assert settings.eos_token_id == 256


def test_data_of_bytes_belong_to_it_and_what_it_tokenises_is_the_same(
    folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("a text with an \u00e4")
    plain = prepare(tmp_path / "a.txt", tmp_path / "plain", tokenizer="bytes")
    files = prepare(tmp_path / "a.txt", tmp_path / "files", tokenizer=folder)
    assert list(plain.tokens) == list(files.tokens)
    assert plain.description["tokenizer"] == files.description["tokenizer"] == BYTES
    assert tokenizer_hash(folder) == BYTES


def test_a_file_that_was_changed_is_another_tokenizer(folder: Path, tmp_path: Path) -> None:
    state = json.loads((folder / "tokenizer.json").read_text())
    for change in ({}, {"normalizer": {"type": "Lowercase"}}):
        (tmp_path / "tokenizer.json").write_text(json.dumps(state | change))
        assert is_byte_tokenizer(tmp_path) is not bool(change)
    for content in (b"{", b"\xff", b" " * (1 << 20)):
        (tmp_path / "tokenizer.json").write_bytes(content)
        assert not is_byte_tokenizer(tmp_path)
    assert not is_byte_tokenizer(tmp_path / "nowhere")


def test_gguf_cannot_hold_it(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="has no merges"):
        vocabulary_metadata(folder, 257, [])
